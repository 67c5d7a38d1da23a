//! The never list of ARCHITECTURE.md, checked against the tree: the rules that no compiler and no dependency edge
//! checks.

mod imports;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use imports::Imports;
use modload_fixtures::workspace_root;
use modload_tests::prose::{OFFENDERS, PRODUCT, repeated_type_names, word_counts};

/// The allowed imports of each folder. A folder that is not in this table fails the test: add a row for it.
const IMPORTS: [(&str, &[&str]); 23] = [
    ("abi", &[]),
    ("edit", &[]),
    ("notifier", &[]),
    ("threads", &[]),
    ("fixtures", &[]),
    ("relocs", &["abi", "edit"]),
    ("alternatives", &["abi", "edit"]),
    ("paravirt", &["abi", "edit"]),
    ("text", &["edit", "threads"]),
    ("tls", &["edit", "threads", "text"]),
    ("loader", BELOW_LOADER),
    ("static_keys", UP_TO_LOADER),
    ("ftrace", UP_TO_LOADER),
    ("livepatch", UP_TO_FTRACE),
    ("host", BELOW_HOST),
    ("control", &["host"]),
    ("sdk", &[]),
    ("cli", &["host", "control", "fixtures"]),
    ("tests", EVERYTHING),
    ("benches", EVERYTHING),
    ("examples", EVERYTHING),
    ("xtask", EVERYTHING),
    ("fuzz", EVERYTHING),
];

/// From the lowest layer upwards. If possible, the rows above name a part of this list.
const LADDER: [&str; 18] = [
    "abi",
    "edit",
    "notifier",
    "threads",
    "relocs",
    "alternatives",
    "paravirt",
    "text",
    "tls",
    "loader",
    "static_keys",
    "ftrace",
    "livepatch",
    "host",
    "control",
    "cli",
    "fixtures",
    "tests",
];
const BELOW_LOADER: &[&str] = LADDER.split_at(9).0;
const UP_TO_LOADER: &[&str] = LADDER.split_at(10).0;
const UP_TO_FTRACE: &[&str] = LADDER.split_at(12).0;
const BELOW_HOST: &[&str] = LADDER.split_at(13).0;
const EVERYTHING: &[&str] = &LADDER;

/// Crates with `forbid(unsafe_code)`.
const SAFE: [&str; 8] = ["abi", "edit", "notifier", "relocs", "alternatives", "paravirt", "control", "fixtures"];

/// The places of unsafe code: whole folders end with a slash. Tests, benches, examples and fuzz targets may have unsafe
/// code, too.
const UNSAFE: [&str; 17] = [
    "text/",
    "threads/",
    "tls/",
    "loader/src/modules/entry.rs",
    "host/src/foreign.rs",
    "host/src/c_api.rs",
    "host/src/keys.rs",
    "host/src/libraries.rs",
    "host/src/process_symbols.rs",
    "host/src/c_library.rs",
    "host/src/jit_list.rs",
    "host/src/x86_64/",
    "cli/src/run.rs",
    "ftrace/src/trampoline.rs",
    "ftrace/src/trampoline/",
    "livepatch/src/structs.rs",
    "sdk/",
];

/// Crates that take values and return values.
const PURE: [&str; 7] = ["abi", "edit", "notifier", "relocs", "alternatives", "paravirt", "loader"];

/// Finds all files below a folder except build results, hidden files, and files of others. `.ci` is included.
fn files_below(folder: &Path, found: &mut Vec<PathBuf>) {
    let mut entries: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if name == "target" || (name.starts_with('.') && name != ".ci") {
            continue;
        }
        if path.is_dir() {
            files_below(&path, found);
        } else {
            found.push(path);
        }
    }
}

fn relative(path: &Path) -> String {
    path.strip_prefix(workspace_root()).unwrap().to_string_lossy().into_owned()
}

/// Returns the text files of the tree: their paths from the root, and their contents.
fn texts() -> Vec<(String, String)> {
    let mut files = Vec::new();
    files_below(workspace_root(), &mut files);
    files.iter().filter_map(|path| Some((relative(path), fs::read_to_string(path).ok()?))).collect()
}

/// A Rust file, taken apart.
#[derive(Default)]
struct Source {
    path: String,
    /// The code without comments and without the contents of literals; lines keep their numbers.
    code: String,
    /// String literals, with their lines.
    literals: Vec<(usize, String)>,
}

impl Source {
    /// Returns the folder of the source's crate.
    fn folder(&self) -> &str {
        self.path.split('/').next().unwrap_or_default()
    }

    /// Returns whether the source is part of the product: not a test, bench or example.
    fn is_product(&self) -> bool {
        let tests = ["tests", "benches", "examples", "xtask", "fuzz", "fixtures"].contains(&self.folder());
        !tests
            && !self.path.contains("/tests/")
            && !self.path.contains("/benches/")
            && !self.path.ends_with("/tests.rs")
    }

    /// Returns the lines of the code that contain `what`.
    fn lines_with(&self, what: &str) -> Vec<String> {
        let lines = self.code.lines().zip(1..);
        let hits = lines.filter(|(line, _)| has_word(line, what));
        hits.map(|(line, number)| format!("{}:{number}: {}", self.path, line.trim())).collect()
    }
}

/// Returns whether the line contains `what`, not as a part of a longer name.
fn has_word(line: &str, what: &str) -> bool {
    let is_name = |letter: char| letter.is_alphanumeric() || letter == '_';
    line.match_indices(what).any(|(at, _)| {
        let before = line[..at].chars().next_back().is_some_and(is_name) && what.starts_with(is_name);
        let after = line[at + what.len()..].chars().next().is_some_and(is_name) && what.ends_with(is_name);
        !before && !after
    })
}

/// Returns a file's text without its tests: a `#[cfg(test)]` module with a file of its own is removed, and a module
/// without its own file ends the text. Lines keep their numbers.
fn without_tests(text: &str) -> String {
    const TESTS: &str = "#[cfg(test)]\nmod ";
    let mut parts = text.split(TESTS);
    let mut kept = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (declared, rest) = part.split_once('\n').unwrap_or((part, ""));
        if !declared.ends_with(';') {
            break;
        }
        kept.push_str("\n\n");
        kept.push_str(rest);
    }
    kept
}

/// Takes a source apart.
fn parse(path: &str, text: &str) -> Source {
    let text = &without_tests(text)[..];
    let mut source = Source { path: path.to_owned(), ..Source::default() };
    let (mut rest, mut line) = (text, 1);
    let mut before = ' ';
    while let Some(letter) = rest.chars().next() {
        let raw = raw_string(rest).filter(|_| !(before.is_alphanumeric() || before == '_'));
        let (len, literal) = if rest.starts_with("//") {
            (rest.find('\n').unwrap_or(rest.len()), None)
        } else if rest.starts_with("/*") {
            (rest.find("*/").map_or(rest.len(), |end| end + 2), None)
        } else if let Some((len, inside)) = raw {
            (len, Some(inside))
        } else if letter == '"' {
            let len = string(rest);
            (len, Some(&rest[1..len - 1]))
        } else if letter == '\'' && character(rest).is_some() {
            (character(rest).unwrap_or(1), None)
        } else {
            source.code.push(letter);
            line += usize::from(letter == '\n');
            before = letter;
            rest = &rest[letter.len_utf8()..];
            continue;
        };
        if let Some(literal) = literal {
            source.literals.push((line, literal.to_owned()));
            source.code.push_str("\"\"");
        }
        let breaks = rest[..len].matches('\n').count();
        source.code.extend(std::iter::repeat_n('\n', breaks));
        line += breaks;
        before = ' ';
        rest = &rest[len..];
    }
    source
}

/// Returns the length of a string literal with its quotes.
fn string(text: &str) -> usize {
    let mut escaped = false;
    for (at, letter) in text.char_indices().skip(1) {
        match letter {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// Returns the length of a raw string literal, and its contents.
fn raw_string(text: &str) -> Option<(usize, &str)> {
    let hashes = text.strip_prefix("br").or_else(|| text.strip_prefix('r'))?;
    let open = hashes.trim_start_matches('#');
    let count = hashes.len() - open.len();
    let inside = open.strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(count));
    let len = inside.find(&end)?;
    Some((text.len() - inside.len() + len + end.len(), &inside[..len]))
}

/// Returns the length of a character literal, if the text is one and not a lifetime.
fn character(text: &str) -> Option<usize> {
    let mut letters = text.char_indices().skip(1);
    let (_, first) = letters.next()?;
    if first == '\\' {
        return text[2..].char_indices().skip(1).find(|(_, letter)| *letter == '\'').map(|(at, _)| at + 3);
    }
    letters.next().filter(|(_, letter)| *letter == '\'').map(|(at, _)| at + 1)
}

fn sources() -> Vec<Source> {
    let rust = texts().into_iter().filter(|(path, _)| path.ends_with(".rs") && !path.starts_with("fixtures/rust_"));
    rust.map(|(path, text)| parse(&path, &text)).collect()
}

fn none(what: &str, found: &[String]) {
    assert!(found.is_empty(), "{what}:\n{}", found.join("\n"));
}

/// The entries of one of a manifest's tables: names of dependencies.
fn table<'t>(manifest: &'t str, heading: &str) -> Vec<&'t str> {
    let lines = manifest.lines().skip_while(|line| *line != heading).skip(1).take_while(|line| !line.starts_with('['));
    lines.filter_map(|line| line.split(['.', '=', ' ']).next()).filter(|name| !name.is_empty()).collect()
}

/// Returns the folder of a package of ours.
fn folder_of(package: &str) -> Option<String> {
    if package == "modload" { Some("host".into()) } else { Some(package.strip_prefix("modload-")?.replace('-', "_")) }
}

#[test]
fn crates_import_only_what_they_may() {
    let manifests: Vec<_> = texts().into_iter().filter(|(path, _)| path.ends_with("/Cargo.toml")).collect();
    assert!(manifests.len() >= 10);
    let mut wrong = Vec::new();
    for (path, manifest) in &manifests {
        let folder = path.trim_end_matches("/Cargo.toml").split('/').next().unwrap_or_default();
        let Some((_, may)) = IMPORTS.iter().find(|(known, _)| *known == folder) else {
            wrong.push(format!("{path}: what may {folder} import? Say it in IMPORTS"));
            continue;
        };
        for heading in ["[dependencies]", "[build-dependencies]", "[dev-dependencies]"] {
            for import in table(manifest, heading).into_iter().filter_map(folder_of) {
                // Tests may use the fixtures and the tools for tests, and with these whatever the tests' processes need.
                let for_tests = heading == "[dev-dependencies]";
                if !may.contains(&&import[..]) && !for_tests {
                    wrong.push(format!("{path}: {heading} {import}"));
                }
            }
        }
    }
    none("imported upward", &wrong);
}

/// The tiers of a crate: folders of its `src`, from the lowest tier upwards. A file imports from its own tier and from
/// those before it.
const TIERS: [(&str, &[&str]); 2] = [
    ("loader", &LOADER_TIERS),
    ("text", &["vocabulary", "address_space", "writing", "allocation", "handlers", "change", "process"]),
];

/// The tiers of the loader.
const LOADER_TIERS: [&str; 5] = ["vocabulary", "elf", "prepare", "modules", "operate"];

/// The one circle of the loader: a module knows its registry, the registry knows its modules and their subscribers, and
/// a subscriber is notified of a module, and of a COMING one.
const KNOT: [&str; 4] = [
    "loader/src/modules/coming.rs",
    "loader/src/modules/module.rs",
    "loader/src/modules/registry.rs",
    "loader/src/modules/subscriber.rs",
];

/// The largest allowed number of files in a crate's largest circle of imports; 1 means no circle. The numbers are the
/// present ones and may only become smaller. [`KNOT`] is the loader's; the others have no reason.
const CIRCLES: [(&str, usize); 19] = [
    ("abi", 1),
    ("edit", 1),
    ("notifier", 1),
    ("threads", 6),
    ("relocs", 1),
    ("alternatives", 1),
    ("paravirt", 1),
    ("text", 1),
    ("tls", 1),
    ("loader", 4),
    ("static_keys", 1),
    ("ftrace", 1),
    ("livepatch", 1),
    ("host", 4),
    ("control", 4),
    ("cli", 3),
    ("fixtures", 3),
    ("tests", 1),
    ("xtask", 2),
];

/// A crate's imports, file by file.
fn imports_of(folder: &str, sources: &[Source]) -> Imports {
    let src = format!("{folder}/src/");
    let of_crate = sources.iter().filter(|source| source.path.starts_with(&src) && !source.path.ends_with("/tests.rs"));
    Imports::of(&src, of_crate.map(|source| (source.path.as_str(), source.code.as_str())))
}

/// Imports from a tier above, in the crate of a folder.
fn upward(imports: &Imports, folder: &str, tiers: &[&str]) -> Vec<String> {
    let src = format!("{folder}/src/");
    let tier = |path: &str| {
        let folder = path.strip_prefix(&src)?.split_once('/')?.0;
        tiers.iter().position(|tier| *tier == folder)
    };
    let is_root = |path: &str| path.strip_prefix(&src) == Some("lib.rs");
    let allowed = |from: &str, to: &str| is_root(from) || tier(to).is_some() && tier(to) <= tier(from);
    let wrong = imports.iter().filter(|(from, _, to)| !allowed(from, to));
    wrong.map(|(from, line, to)| format!("{from}:{line}: imports {to}")).collect()
}

/// Circles of imports with more files than are allowed.
fn large_circles(imports: &Imports, most: usize) -> Vec<String> {
    let large = imports.circles().into_iter().filter(|circle| circle.len() > most);
    large
        .map(|circle| format!("{} files: {}", circle.len(), circle.into_iter().collect::<Vec<_>>().join(" ")))
        .collect()
}

#[test]
fn tiers_as_crates_are_checked() {
    let sources = sources();
    let mut wrong = Vec::new();
    for (crate_folder, tiers) in TIERS {
        let src = format!("{crate_folder}/src/");
        let imports = imports_of(crate_folder, &sources);
        assert!(imports.iter().count() > 60, "imports of {crate_folder} are read");
        wrong.extend(upward(&imports, crate_folder, tiers));
        for source in &sources {
            let Some(path) = source.path.strip_prefix(&src) else { continue };
            let folder = path.split('/').next().unwrap_or_default();
            if folder != "lib.rs" && !tiers.contains(&folder) {
                wrong.push(format!("{}: it is in no tier", source.path));
            }
        }
    }
    let imports = imports_of("loader", &sources);
    let outside = imports.circles().into_iter().flatten().filter(|file| !KNOT.contains(file));
    wrong.extend(outside.map(|file| format!("{file}: is in a circle of imports, and KNOT does not name it")));
    none("imports between tiers", &wrong);
}

#[test]
fn circles_of_imports_do_not_grow() {
    let sources = sources();
    let folders: BTreeSet<&str> =
        sources.iter().filter(|source| source.path.split('/').nth(1) == Some("src")).map(Source::folder).collect();
    let mut wrong = Vec::new();
    for folder in folders {
        let Some((_, most)) = CIRCLES.iter().find(|(known, _)| *known == folder) else {
            wrong.push(format!("{folder}: how large may its largest circle be? Say it in CIRCLES"));
            continue;
        };
        let found = large_circles(&imports_of(folder, &sources), *most);
        wrong.extend(found.into_iter().map(|circle| format!("{folder}: at most {most}: {circle}")));
    }
    none("circles of imports", &wrong);
}

#[test]
fn a_rule_that_is_broken_is_found() {
    let source = parse(
        "loader/src/bad.rs",
        "// unsafe\nlet a = \"unsafe .modinfo\"; let c = '\"'; let l: &'a str = r#\"std::fs \"x\" \"#;\nunsafe { x() }\n",
    );
    assert_eq!(source.lines_with("unsafe"), ["loader/src/bad.rs:3: unsafe { x() }"]);
    assert_eq!(source.literals, [(2, "unsafe .modinfo".into()), (2, "std::fs \"x\" ".into())]);
    assert!(source.lines_with("std::fs").is_empty());
    assert!(!has_word("deny(unsafe_code)", "unsafe") && has_word("eprintln!(", "eprintln!"));
    assert!(!has_word("eprintln!(", "println!"));
    let casting = parse("a.rs", "use a::{\n    B as C,\n};\nlet x = y as u8;\n");
    assert_eq!(casts(&casting), [3]);
    let tested = "use a;\n#[cfg(test)]\nmod tests;\nuse b;\n#[cfg(test)]\nmod more {\n    use c;\n}\n";
    assert_eq!(without_tests(tested), "use a;\n\n\nuse b;\n");
    assert_eq!(table("[dependencies]\na.workspace = true\nb = 1\n\n[lints]\nc = 2\n", "[dependencies]"), ["a", "b"]);
}

#[test]
fn an_import_from_a_tier_above_and_a_circle_are_found() {
    let files = [
        ("lib.rs", "mod elf;\nmod modules;\npub use modules::list::List;\n"),
        ("elf/mod.rs", "pub(crate) mod file;\npub(crate) mod link;\npub(crate) use file::File;\n"),
        ("elf/file.rs", "pub(crate) fn open() {\n    crate::modules::list::enter();\n}\n"),
        (
            "elf/link.rs",
            "mod merge;\nuse std::fmt;\nuse crate::{\n    elf::{File as Object, link},\n    modules as all,\n};\n",
        ),
        ("elf/link/merge.rs", "use super::super::file::open;\npub(in crate::modules) fn merge() -> impl use<> {}\n"),
        ("modules/mod.rs", "pub(crate) mod list;\npub(crate) mod entry;\n"),
        ("modules/list.rs", "use super::entry::{self, Entry};\nuse crate::elf::File;\n"),
        ("modules/entry.rs", "use crate::List;\n"),
    ];
    let paths = files.map(|(path, code)| (format!("loader/src/{path}"), code));
    let imports = Imports::of("loader/src/", paths.iter().map(|(path, code)| (path.as_str(), *code)));
    let seen: Vec<String> = imports.iter().map(|(from, line, to)| format!("{from}:{line} {to}")).collect();
    let expected = [
        "elf/file.rs:2 modules/list.rs",
        "elf/link.rs:3 elf/file.rs",
        "elf/link.rs:3 modules/mod.rs",
        "elf/link/merge.rs:1 elf/file.rs",
        "modules/entry.rs:1 modules/list.rs",
        "modules/list.rs:2 elf/file.rs",
        "modules/list.rs:1 modules/entry.rs",
    ];
    let expected = expected.map(|line| format!("loader/src/{}", line.replace(' ', " loader/src/")));
    assert_eq!(seen, expected);
    assert_eq!(
        upward(&imports, "loader", &LOADER_TIERS),
        [
            "loader/src/elf/file.rs:2: imports loader/src/modules/list.rs",
            "loader/src/elf/link.rs:3: imports loader/src/modules/mod.rs"
        ]
    );
    let circle = "3 files: loader/src/elf/file.rs loader/src/modules/entry.rs loader/src/modules/list.rs";
    assert_eq!(large_circles(&imports, 2), [circle]);
    assert!(large_circles(&imports, 3).is_empty());
}

#[test]
fn unsafe_code_stands_only_where_it_may() {
    let mut found = Vec::new();
    for source in sources().iter().filter(|source| source.is_product()) {
        if !UNSAFE.iter().any(|place| source.path.starts_with(place)) {
            found.extend(source.lines_with("unsafe"));
        }
    }
    none("unsafe code", &found);
    for (path, text) in texts() {
        let pure = SAFE.iter().any(|folder| path == format!("{folder}/src/lib.rs"));
        assert!(!pure || text.contains("#![forbid(unsafe_code)]"), "{path} forbids unsafe code");
    }
}

#[test]
fn pure_crates_and_the_loader_do_no_input_and_no_output() {
    const NEVER: [&str; 12] = [
        "std::fs",
        "std::env",
        "std::net",
        "std::process",
        "fs::",
        "env::",
        "println!",
        "eprintln!",
        "print!",
        "eprint!",
        "stdout",
        "stderr",
    ];
    let mut found = Vec::new();
    for source in sources().iter().filter(|source| source.is_product() && PURE.contains(&source.folder())) {
        found.extend(NEVER.iter().flat_map(|what| source.lines_with(what)));
    }
    none("input or output", &found);
}

#[test]
fn each_thing_is_done_in_one_place() {
    /// Names that may occur only in the code of these folders.
    const PLACES: [(&str, &[&str]); 12] = [
        ("mmap", &["text"]),
        ("mprotect", &["text"]),
        ("memmap2", &["text"]),
        ("region", &["text"]),
        ("libloading", &["host"]),
        ("UnixListener", &["control"]),
        ("ScmRights", &["control"]),
        ("std::env::args", &["cli"]),
        ("args_os", &["cli"]),
        ("process::exit", &["cli"]),
        ("println!", &["cli"]),
        ("eprintln!", &["cli"]),
    ];
    let mut found = Vec::new();
    for source in sources().iter().filter(|source| source.is_product()) {
        for (what, folders) in PLACES {
            if !folders.contains(&source.folder()) {
                found.extend(source.lines_with(what));
            }
        }
        let spelt = |text: &str| text.contains("R_X86_64_");
        let names = spelt(&source.code) || source.literals.iter().any(|(_, literal)| spelt(literal));
        if source.folder() != "relocs" && names {
            found.push(format!("{}: names of relocations", source.path));
        }
    }
    none("not the place for it", &found);
}

/// Words of the code that belong to a module of one processor: assembler code, the processor's own functions, a decoder,
/// and numbers of registers, relocations and machines. A word that ends with `_` stands for all names that begin so.
const PROCESSOR_WORDS: [&str; 10] = [
    "asm!",
    "global_asm!",
    "naked_asm!",
    "std::arch",
    "core::arch",
    "is_x86_feature_detected!",
    "iced_x86",
    "gregs",
    "REG_",
    "EM_X86_64",
];

/// Words that are registers of x86-64 as constants: `Register::RSP`.
const REGISTER_CONSTANTS: [&str; 9] = ["RAX", "RBX", "RCX", "RDX", "RSI", "RDI", "RBP", "RSP", "RIP"];

/// Literals that are the names of registers.
const REGISTER_NAMES: [&str; 17] = [
    "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", "rip", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
];

/// Opcodes that are hardly ever anything else when a number is written so: call, jmp, jmp short, int3, ret, nop.
const OPCODES: [&str; 6] = ["0xe8", "0xe9", "0xeb", "0xcc", "0xc3", "0x90"];

/// The first bytes of longer instructions, which count at the beginning of an array or a byte string: nopl, ud1,
/// endbr64, call and jmp through memory, call and jmp through a register with a prefix, movabs to r11.
const OPENINGS: [[&str; 2]; 7] = [
    ["0x0f", "0x1f"],
    ["0x0f", "0xb9"],
    ["0xf3", "0x0f"],
    ["0xff", "0x15"],
    ["0xff", "0x25"],
    ["0x41", "0xff"],
    ["0x49", "0xbb"],
];

/// Lines outside of the modules of processors that [`of_a_processor`] finds, by file, with their number and the reason.
/// The numbers may only become smaller, and no row may be added without need.
const PROCESSOR_EXCEPTIONS: [(&str, usize, &str); 2] = [
    (
        "host/src/jit_list.rs",
        1,
        "the one instruction, `ret`, is the same on aarch64; the weak symbols must be in the object that uses them",
    ),
    ("sdk/rust/src/lib.rs", 1, "the code has only directives for data: the record of an exported symbol"),
];

/// Returns whether a path is in a module of one processor.
fn is_of_a_processor(path: &str) -> bool {
    path.contains("/x86_64/") || path.ends_with("/x86_64.rs")
}

/// Returns the lines of a source that know a processor, each once.
fn of_a_processor(source: &Source) -> Vec<String> {
    let mut lines: BTreeSet<usize> = BTreeSet::new();
    for (line, number) in source.code.lines().zip(1..) {
        let has = |what: &&str| match what.strip_suffix('_') {
            Some(_) => has_word_beginning(line, what),
            None => has_word(line, what),
        };
        let is_known = PROCESSOR_WORDS.iter().any(has)
            || REGISTER_CONSTANTS.iter().chain(&OPCODES).any(|what| has_word(line, what));
        if is_known {
            lines.insert(number);
        }
    }
    // An array may continue on the next line.
    for (at, _) in source.code.match_indices('[') {
        let numbers = source.code[at + 1..].split([',', ']']).map(str::trim);
        let first: Vec<&str> = numbers.take(2).collect();
        if OPENINGS.iter().any(|opening| first == opening) {
            lines.insert(source.code[..at].matches('\n').count() + 1);
        }
    }
    for (line, literal) in &source.literals {
        let opens_with = |bytes: &[&str]| literal.starts_with(&bytes.concat().replace("0x", "\\x"));
        let is_code =
            OPCODES.iter().any(|opcode| opens_with(&[opcode])) || OPENINGS.iter().any(|bytes| opens_with(bytes));
        if is_code || literal.contains("R_X86_64_") || REGISTER_NAMES.contains(&literal.as_str()) {
            lines.insert(*line);
        }
    }
    let text: Vec<&str> = source.code.lines().collect();
    let shown = |number: &usize| text.get(number - 1).unwrap_or(&"").trim();
    lines.iter().map(|number| format!("{}:{number}: {}", source.path, shown(number))).collect()
}

/// Returns whether the line has a name that begins with `what`.
fn has_word_beginning(line: &str, what: &str) -> bool {
    let is_name = |letter: char| letter.is_alphanumeric() || letter == '_';
    line.match_indices(what).any(|(at, _)| !line[..at].chars().next_back().is_some_and(is_name))
}

#[test]
fn a_processor_is_known_only_in_its_modules() {
    let mut found = Vec::new();
    for source in sources().iter().filter(|source| source.is_product() && !is_of_a_processor(&source.path)) {
        let lines = of_a_processor(source);
        match PROCESSOR_EXCEPTIONS.iter().find(|(path, ..)| *path == source.path) {
            None => found.extend(lines),
            Some((path, most, _)) if lines.len() != *most => {
                found.push(format!("{path}: {} lines, and PROCESSOR_EXCEPTIONS says {most}: {lines:#?}", lines.len()));
            }
            Some(_) => {}
        }
    }
    none("instructions or registers outside of a processor's module (docs/porting.md)", &found);
}

#[test]
fn each_module_of_a_processor_is_selected_and_described() {
    let porting = fs::read_to_string(workspace_root().join("docs/porting.md")).unwrap();
    let mut wrong = Vec::new();
    let mut modules = 0;
    for (path, text) in texts().iter().filter(|(path, _)| path.ends_with(".rs")) {
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        for (line, before) in lines.iter().skip(1).zip(&lines) {
            let is_declaration = line.ends_with("mod x86_64;") && !line.starts_with("//");
            if is_declaration && *before != "#[cfg(target_arch = \"x86_64\")]" {
                wrong.push(format!("{path}: {line} is not selected by the processor"));
            }
        }
        let is_head = path.ends_with("/x86_64/mod.rs") || path.ends_with("/x86_64.rs");
        if is_head && parse(path, text).is_product() {
            modules += 1;
            if !text.contains("//! Another processor has to provide") {
                wrong.push(format!("{path}: does not say what another processor has to provide"));
            }
            let module = path.trim_end_matches("mod.rs");
            if !porting.contains(&format!("`{module}`")) {
                wrong.push(format!("{path}: docs/porting.md does not list {module}"));
            }
        }
    }
    assert!(modules >= 15, "only {modules} modules");
    let listed = porting.split('`').skip(1).step_by(2).filter(|word| is_of_a_processor(word));
    let missing = listed.filter(|path| !workspace_root().join(path).exists());
    wrong.extend(missing.map(|path| format!("docs/porting.md lists {path}, which does not exist")));
    none("modules of a processor", &wrong);
}

#[test]
fn an_instruction_outside_of_a_processors_module_is_found() {
    let bad = [
        "let a = 1; // 0xe8, asm!(",
        "let (call, short) = (0xe8, 0x1e8);",
        "core::arch::asm!(\"nop\");",
        "recording_asm!(x);",
        "use iced_x86::Decoder;",
        "let nop = &[",
        "    0x0f, 0x1f, 0x00,",
        "];",
        "let other = [0x0f, 0x2f, 0x1f];",
        "let pc = libc::REG_RIP; let no = MY_REG_RIP;",
        "let names = [\"rax\", \"rax register\"];",
        "let kind = \"R_X86_64_PC32\";",
        "let bytes = b\"\\xff\\x25abcd\"; let text = \"\\u{e9}\";",
        "matches!(byte, 0xc3 | 0xe9)",
        "frame.get(Register::RSP)",
        "machine == elf::EM_X86_64",
    ];
    let source = parse("loader/src/bad.rs", &bad.join("\n"));
    let numbers: Vec<String> = [2, 3, 5, 6, 10, 11, 12, 13, 14, 15, 16].iter().map(ToString::to_string).collect();
    let found = of_a_processor(&source);
    let found: Vec<&str> = found.iter().filter_map(|line| line.split(':').nth(1)).collect();
    assert_eq!(found, numbers);
    for (path, expected) in [
        ("text/src/handlers/x86_64/emulate.rs", true),
        ("paravirt/src/x86_64.rs", true),
        ("text/src/handlers/trap.rs", false),
        ("text/src/my_x86_64.rs", false),
    ] {
        assert_eq!(is_of_a_processor(path), expected, "{path}");
    }
}

#[test]
fn section_names_are_spelt_in_abi_alone() {
    let abi = sources().into_iter().find(|source| source.path == "abi/src/section.rs").expect("abi spells them");
    let is_section = |literal: &&String| literal.starts_with('.') || literal.starts_with("__");
    let names: BTreeSet<String> =
        abi.literals.into_iter().map(|(_, literal)| literal).filter(|literal| is_section(&literal)).collect();
    assert!(names.len() > 30 && names.contains(".modinfo") && names.contains("__ksymtab"));
    let mut found = Vec::new();
    // The SDK is compiled into modules and imports nothing. The SDK mirrors abi, and its fixture shows that the copy is
    // correct.
    let spells = |source: &&Source| source.is_product() && !["abi", "sdk"].contains(&source.folder());
    for source in sources().iter().filter(spells) {
        for (line, literal) in &source.literals {
            let spelt = names.iter().any(|name| {
                let rest = literal.strip_prefix(name.as_str());
                rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
            });
            if spelt {
                found.push(format!("{}:{line}: {literal:?}", source.path));
            }
        }
    }
    none("section names", &found);
}

#[test]
fn house_rules() {
    // Composed from parts, so that this file does not break its own rules.
    let attributes = ["ignore", "should_panic"].map(|name| format!("#[{name}"));
    let unfinished = ["to", "unimplemen"].map(|name| if name == "to" { "todo!" } else { "unimplemented!" });
    let mut found = Vec::new();
    for (path, text) in texts().iter().filter(|(path, _)| path.ends_with(".rs")) {
        // Whole files, including their tests.
        for attribute in &attributes {
            let lines = text.lines().zip(1..).filter(|(line, _)| line.trim_start().starts_with(attribute.as_str()));
            found.extend(lines.map(|(line, number)| format!("{path}:{number}: {line}")));
        }
    }
    for source in sources() {
        found.extend(unfinished.iter().flat_map(|what| source.lines_with(what)));
        for (line, number) in source.code.lines().zip(1..) {
            if line.contains("allow(clippy::as_conversions") || line.contains("allow(unsafe_code") {
                found.push(format!("{}:{number}: {line}", source.path));
            }
        }
    }
    none("never", &found);
}

/// The lines of a source that cast: ` as ` outside of `use`, and not in a path (`<T as Trait>::`).
fn casts(source: &Source) -> Vec<usize> {
    let mut found = Vec::new();
    let mut renaming = false;
    for (line, at) in source.code.lines().zip(0..) {
        let start = line.trim_start();
        renaming |= ["use ", "pub use ", "pub(crate) use "].iter().any(|word| start.starts_with(word));
        let cast = line.contains(" as ") && !renaming && !line.contains(">::");
        if cast {
            found.push(at);
        }
        renaming &= !line.contains(';');
    }
    found
}

#[test]
fn casts_are_expected_with_a_reason() {
    let mut found = Vec::new();
    for source in sources() {
        let lines: Vec<&str> = source.code.lines().collect();
        for at in casts(&source) {
            let expected = lines[at.saturating_sub(6)..=at].iter().any(|line| line.contains("clippy::as_conversions"));
            if !expected {
                found.push(format!("{}:{}: {}", source.path, at + 1, lines[at].trim()));
            }
        }
    }
    none("bare casts", &found);
}

/// The largest allowed number of offenders ([`OFFENDERS`]), and of "it" and "its", in 1,000,000 words of a crate's doc
/// comments. The numbers may only become smaller.
const BUDGET: (usize, usize) = (1_000, 21_500);

/// The number of type names that the product defines more than once. This number may only become smaller.
const REPEATED_TYPE_NAMES: usize = 8;

#[test]
fn doc_comments_keep_to_their_budget_of_words() {
    let counts = word_counts();
    assert_eq!(counts.len(), PRODUCT.len(), "each folder has doc comments");
    let beyond = counts.iter().filter_map(|(folder, count)| {
        let (offenders, pronouns) = BUDGET;
        let found = (count.offenders_per_million(), count.pronouns_per_million());
        (found.0 > offenders || found.1 > pronouns).then(|| {
            format!(
                "{folder}: {} of {OFFENDERS:?} and {} of \"it\" in a million words; {offenders} and {pronouns} allowed",
                found.0, found.1
            )
        })
    });
    none("worded worse than CONTRIBUTING.md has it", &beyond.collect::<Vec<_>>());
}

#[test]
fn names_of_types_are_unique() {
    let repeated = repeated_type_names();
    assert!(repeated.len() <= REPEATED_TYPE_NAMES, "{} names are repeated: {repeated:#?}", repeated.len());
}

#[test]
fn every_crate_keeps_the_lints() {
    let root = fs::read_to_string(workspace_root().join("Cargo.toml")).unwrap();
    for lint in ["as_conversions", "undocumented_unsafe_blocks", "multiple_unsafe_ops_per_block", "todo"] {
        assert!(root.contains(&format!("{lint} = \"deny\"")), "{lint}");
    }
    // The fuzz targets and the example of a plugin are workspaces of their own.
    let others = ["fuzz/Cargo.toml", "examples/rust_plugin/Cargo.toml"];
    let ours = |path: &str| path.ends_with("/Cargo.toml") && !others.contains(&path);
    for (path, manifest) in texts().iter().filter(|(path, _)| ours(path)) {
        assert!(manifest.contains("[lints]\nworkspace = true"), "{path} has the workspace's lints");
        assert!(
            !manifest.contains("path = \"../") || manifest.contains("[[example]]"),
            "{path}: dependencies are named once, in the workspace"
        );
    }
}

#[test]
fn nothing_says_on_which_machine_it_was_written() {
    // Composed from parts, so that this file does not break its own rule.
    let machine = [["/wo", "rk/"], ["/ho", "me/"], ["/ro", "ot/"], ["/tmp/", "bash"]].map(|parts| parts.concat());
    let mut found = Vec::new();
    for (path, text) in texts() {
        for (line, number) in text.lines().zip(1..) {
            if machine.iter().any(|part| line.contains(part.as_str())) {
                found.push(format!("{path}:{number}: {line}"));
            }
            let source = line.strip_prefix("source = ").filter(|_| path.ends_with("Cargo.lock"));
            if source.is_some_and(|source| source != "\"registry+https://github.com/rust-lang/crates.io-index\"") {
                found.push(format!("{path}:{number}: {line}"));
            }
        }
    }
    none("paths of a machine, or another registry", &found);
}

/// Paths of the examples in `docs/changing-it.md`.
const EXAMPLES: [&str; 4] = ["counting/", "counting/Cargo.toml", "counting/src/lib.rs", "cli/src/names.rs"];

#[test]
fn every_path_in_the_architecture_exists() {
    for document in ["ARCHITECTURE.md", "docs/changing-it.md"] {
        paths_exist(document);
    }
}

fn paths_exist(document: &str) {
    let root = workspace_root();
    let text = fs::read_to_string(root.join(document)).unwrap();
    let quoted: BTreeSet<&str> = text.split('`').skip(1).step_by(2).collect();
    let is_path = |word: &&str| {
        let plain = word.chars().all(|letter| letter.is_ascii_alphanumeric() || "/._-".contains(letter));
        plain && word.contains('/') && !word.starts_with('/')
    };
    let is_example = |path: &&str| document != "ARCHITECTURE.md" && EXAMPLES.contains(path);
    let paths: Vec<_> = quoted.into_iter().filter(is_path).filter(|path| !is_example(path)).collect();
    assert!(paths.len() > 20, "only {paths:?}");
    let missing: Vec<String> =
        paths.iter().filter(|path| !root.join(path).exists()).map(|path| (*path).to_owned()).collect();
    none(&format!("named in {document} and not there"), &missing);
}

#[test]
fn every_crate_is_in_the_code_map_and_its_words_are_counted() {
    let text = fs::read_to_string(workspace_root().join("ARCHITECTURE.md")).unwrap();
    let mut missing = Vec::new();
    for (folder, _) in IMPORTS {
        if !text.contains(&format!("\n| `{folder}/` | ")) {
            missing.push(format!("{folder}: has no row in the code map of ARCHITECTURE.md"));
        }
        let product = Source { path: format!("{folder}/src/lib.rs"), ..Source::default() }.is_product();
        if product != PRODUCT.contains(&folder) {
            missing.push(format!("{folder}: in PRODUCT of tests/src/prose.rs if, and only if, it is product"));
        }
    }
    none("lists of crates", &missing);
}

#[test]
fn the_never_list_is_in_the_architecture() {
    let text = fs::read_to_string(workspace_root().join("ARCHITECTURE.md")).unwrap();
    let list = text.split("## The never list").nth(1).expect("ARCHITECTURE.md has it");
    let list = list.split("\n## ").next().unwrap_or_default();
    for number in 1..=11 {
        assert!(list.contains(&format!("\n{number}. ")), "rule {number}");
    }
    assert!(list.contains("tests/tests/tidy.rs"), "it says who checks it");
}
