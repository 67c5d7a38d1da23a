//! Runs `as` and `ld`, and reads their output.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output};

use object::read::elf::ElfFile64;
use object::{Object, ObjectSection};

/// The addresses of sections and of externally defined symbols.
#[derive(Clone, Default, Debug)]
pub(crate) struct Layout {
    /// The address of each section. `.got` means the whole GOT, with the reserved slots of `.got.plt` first.
    pub(crate) sections: BTreeMap<String, u64>,
    /// The symbols defined elsewhere, with their addresses.
    pub(crate) symbols: BTreeMap<String, u64>,
    /// The options for `ld`.
    pub(crate) flags: Vec<String>,
}

impl Layout {
    /// Makes a layout of options, sections and symbols, for tests that are tables.
    pub(crate) fn new(flags: &str, sections: &[(&str, u64)], symbols: &[(&str, u64)]) -> Layout {
        let owned = |pairs: &[(&str, u64)]| pairs.iter().map(|&(name, at)| (name.to_owned(), at)).collect();
        Layout {
            sections: owned(sections),
            symbols: owned(symbols),
            flags: flags.split_whitespace().map(str::to_owned).collect(),
        }
    }

    fn script(&self) -> String {
        let mut in_order: Vec<_> = self.sections.iter().collect();
        in_order.sort_by_key(|&(_, addr)| addr);
        let mut script = String::from("SECTIONS {\n");
        for (name, addr) in in_order {
            let input = match name.as_str() {
                // For ld, _GLOBAL_OFFSET_TABLE_ is the start of .got.plt, so .got.plt must come first.
                ".got" => "*(.got.plt) *(.igot.plt) *(.got) *(.igot)".to_owned(),
                name => format!("*({name})"),
            };
            script += &format!("  {name} {addr:#x} : SUBALIGN(1) {{ {input} }}\n");
        }
        script + "  /DISCARD/ : { *(.note*) *(.comment) }\n}\n"
    }
}

/// Returns the object that `as` makes of this source.
pub(crate) fn assemble(source: &str) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("a.s"), source).unwrap();
    let output = run("as", &["--64", "-o", "a.o", "a.s"], dir.path());
    assert!(output.status.success(), "as: {}\n{source}", String::from_utf8_lossy(&output.stderr));
    std::fs::read(dir.path().join("a.o")).unwrap()
}

/// Returns the sections of the file that `ld` makes of this object, or the error message of `ld`.
pub(crate) fn link(object: &[u8], layout: &Layout) -> Result<BTreeMap<String, Vec<u8>>, String> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("a.o"), object).unwrap();
    std::fs::write(dir.path().join("a.ld"), layout.script()).unwrap();
    let mut arguments = vec!["-m", "elf_x86_64", "-T", "a.ld", "-o", "a.out", "a.o"];
    arguments.extend(layout.flags.iter().map(String::as_str));
    let symbols: Vec<_> = layout.symbols.iter().map(|(name, at)| format!("--defsym={name}={at:#x}")).collect();
    arguments.extend(symbols.iter().map(String::as_str));
    let output = run("ld", &arguments, dir.path());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if !output.status.success() {
        return Err(said);
    }
    let file = std::fs::read(dir.path().join("a.out")).unwrap();
    let file = ElfFile64::<object::Endianness>::parse(&*file).unwrap();
    let mut sections = BTreeMap::new();
    for section in file.sections() {
        let name = section.name().unwrap().to_owned();
        if let Some(&expected) = layout.sections.get(&name) {
            assert_eq!(section.address(), expected, "ld has moved {name}");
        }
        sections.insert(name, section.data().unwrap().to_vec());
    }
    Ok(sections)
}

fn run(tool: &str, arguments: &[&str], dir: &Path) -> Output {
    let output = Command::new(tool).args(arguments).current_dir(dir).env("LC_ALL", "C").output();
    output.unwrap_or_else(|error| panic!("cannot run `{tool}`, which is part of binutils: {error}"))
}
