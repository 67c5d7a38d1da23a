//! How the tree is worded: counts of words that make comments hard to read, type names that are used twice, samples of doc comments.
//!
//! `tests/tests/tidy.rs` holds the counts to a budget, and `cargo xtask prose` prints them.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use modload_fixtures::workspace_root;

/// The words that a doc comment rarely needs. CONTRIBUTING.md has the rule.
pub const OFFENDERS: [&str; 10] =
    ["who", "whoever", "nobody", "everybody", "anybody", "somebody", "what", "whatever", "stands", "comes by"];

/// The folders of the product: their comments and type names are counted.
pub const PRODUCT: [&str; 17] = [
    "abi",
    "alternatives",
    "cli",
    "control",
    "edit",
    "ftrace",
    "host",
    "livepatch",
    "loader",
    "notifier",
    "paravirt",
    "relocs",
    "sdk",
    "static_keys",
    "text",
    "threads",
    "tls",
];

/// A doc comment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DocComment {
    /// The file, from the root of the workspace.
    pub path: String,
    /// The line on which the comment begins, from 1.
    pub line: usize,
    /// The text, one line a line.
    pub text: String,
    /// The first line of the item that the comment describes; empty for a file's own comment.
    pub item: String,
}

/// The words of one crate's doc comments.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct WordCount {
    /// The number of all words.
    pub words: usize,
    /// The number of each offender, in the order of [`OFFENDERS`].
    pub offenders: [usize; OFFENDERS.len()],
    /// The number of "it" and "its".
    pub pronouns: usize,
}

impl WordCount {
    /// Returns how many offenders there are in a million words.
    #[must_use]
    pub fn offenders_per_million(&self) -> usize {
        self.offenders.iter().sum::<usize>() * 1_000_000 / self.words.max(1)
    }

    /// Returns how many "it" and "its" there are in a million words.
    #[must_use]
    pub fn pronouns_per_million(&self) -> usize {
        self.pronouns * 1_000_000 / self.words.max(1)
    }

    /// Adds the words of a text.
    pub fn add(&mut self, text: &str) {
        let is_letter = |letter: char| letter.is_ascii_alphabetic() || letter == '\'';
        let words: Vec<String> = text
            .split(|letter: char| !is_letter(letter))
            .filter(|word| !word.is_empty())
            .map(str::to_ascii_lowercase)
            .collect();
        self.words += words.len();
        self.pronouns += words.iter().filter(|word| matches!(word.as_str(), "it" | "its")).count();
        for (offender, count) in OFFENDERS.iter().zip(&mut self.offenders) {
            let parts: Vec<&str> = offender.split(' ').collect();
            *count += words.windows(parts.len()).filter(|window| *window == parts).count();
        }
    }
}

/// Returns the doc comments of a Rust file.
#[must_use]
pub fn doc_comments(path: &str, text: &str) -> Vec<DocComment> {
    let lines: Vec<&str> = text.lines().collect();
    let comment = |line: &str| {
        let line = line.trim_start();
        let text =
            line.strip_prefix("//!").or_else(|| line.strip_prefix("///").filter(|rest| !rest.starts_with('/')))?;
        Some(text.strip_prefix(' ').unwrap_or(text).to_owned())
    };
    let (mut found, mut at) = (Vec::new(), 0);
    while at < lines.len() {
        let texts: Vec<String> = lines[at..].iter().map_while(|line| comment(line)).collect();
        if texts.is_empty() {
            at += 1;
            continue;
        }
        let after = at + texts.len();
        let is_outer = lines[at].trim_start().starts_with("///");
        let item = lines[after..].iter().map(|line| line.trim()).find(|line| is_outer && !line.starts_with("#["));
        found.push(DocComment {
            path: path.to_owned(),
            line: at + 1,
            text: texts.join("\n"),
            item: item.unwrap_or_default().to_owned(),
        });
        at = after;
    }
    found
}

/// Returns the doc comments of the product, without tests, in the order of paths and lines.
///
/// # Panics
/// A file of the tree cannot be read.
#[must_use]
pub fn product_doc_comments() -> Vec<DocComment> {
    product_sources().iter().flat_map(|(path, text)| doc_comments(path, text)).collect()
}

/// Counts the words of the product's doc comments, by folder.
#[must_use]
pub fn word_counts() -> BTreeMap<String, WordCount> {
    let mut counts = BTreeMap::<String, WordCount>::new();
    for comment in product_doc_comments() {
        let folder = comment.path.split('/').next().unwrap_or_default().to_owned();
        counts.entry(folder).or_default().add(&comment.text);
    }
    counts
}

/// Returns the names of types that the product defines more than once, with the places of the definitions.
#[must_use]
pub fn repeated_type_names() -> BTreeMap<String, Vec<String>> {
    let mut places = BTreeMap::<String, Vec<String>>::new();
    for (path, text) in product_sources() {
        for (line, number) in text.lines().zip(1..) {
            if let Some(name) = defined_type(line) {
                places.entry(name.to_owned()).or_default().push(format!("{path}:{number}"));
            }
        }
    }
    places.retain(|_, places| places.len() > 1);
    places
}

/// Returns the name of the type that a line of code defines. Associated types do not count.
#[must_use]
pub fn defined_type(line: &str) -> Option<&str> {
    let code = line.trim_start();
    let is_top_level = code.len() == line.len();
    let code = match code.strip_prefix("pub") {
        Some(rest) if rest.starts_with('(') => rest.split_once(") ")?.1,
        Some(rest) => rest.strip_prefix(' ')?,
        None => code,
    };
    let kinds = ["struct ", "enum ", "union ", "trait ", "unsafe trait "];
    let name = kinds.iter().find_map(|kind| code.strip_prefix(kind));
    let name = name.or_else(|| code.strip_prefix("type ").filter(|_| is_top_level))?;
    let end = name.find(|letter: char| !(letter.is_ascii_alphanumeric() || letter == '_')).unwrap_or(name.len());
    Some(&name[..end]).filter(|name| name.starts_with(|letter: char| letter.is_ascii_uppercase()))
}

/// Draws doc comments at random: the same ones for the same seed and the same tree.
#[must_use]
pub fn sample(comments: &[DocComment], count: usize, seed: u64) -> Vec<&DocComment> {
    let mut left: Vec<&DocComment> = comments.iter().collect();
    let mut state = seed;
    let mut drawn = Vec::new();
    while drawn.len() < count && !left.is_empty() {
        // splitmix64.
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        let len = u64::try_from(left.len()).unwrap_or(u64::MAX);
        drawn.push(left.swap_remove(usize::try_from(mixed % len).unwrap_or_default()));
    }
    drawn
}

/// Returns the Rust files of the product with their paths, up to the tests that a file contains.
fn product_sources() -> Vec<(String, String)> {
    let mut files = Vec::new();
    for folder in PRODUCT {
        rust_files(&workspace_root().join(folder), &mut files);
    }
    files.sort();
    files
}

fn rust_files(folder: &Path, found: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() {
            if !["tests", "benches", "target"].contains(&name.as_str()) {
                rust_files(&path, found);
            }
        } else if name.ends_with(".rs") && name != "tests.rs" {
            let text = fs::read_to_string(&path).unwrap();
            let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default().to_owned();
            let path = path.strip_prefix(workspace_root()).unwrap_or(&path).to_string_lossy().into_owned();
            found.push((path, text));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{WordCount, defined_type, doc_comments, sample};

    #[test]
    fn words_are_counted_whole_and_in_any_case() {
        let mut count = WordCount::default();
        count.add("Nobody knows what it is. Somewhat; \"WHO\" comes by its stands.");
        assert_eq!(count.words, 11);
        assert_eq!(count.offenders.iter().sum::<usize>(), 5);
        assert_eq!(count.pronouns, 2);
    }

    #[test]
    fn comments_have_their_item_and_their_line() {
        let text = "//! A file.\n\n/// One.\n/// Two.\n#[derive(Debug)]\nstruct Thing;\n// None.\n//// None.\n";
        let found = doc_comments("a.rs", text);
        let short: Vec<_> = found.iter().map(|one| (one.line, one.text.as_str(), one.item.as_str())).collect();
        assert_eq!(short, [(1, "A file.", ""), (3, "One.\nTwo.", "struct Thing;")]);
    }

    #[test]
    fn definitions_of_types_are_found() {
        assert_eq!(defined_type("pub(crate) struct Thing<T> {"), Some("Thing"));
        assert_eq!(defined_type("    enum Inner {"), Some("Inner"));
        assert_eq!(defined_type("type Alias = u8;"), Some("Alias"));
        assert_eq!(defined_type("    type Output = u8;"), None);
        assert_eq!(defined_type("pub fn structure() {}"), None);
    }

    #[test]
    fn a_seed_draws_the_same_sample_without_repetition() {
        let comments = doc_comments("a.rs", &"/// One.\nfn f() {}\n".repeat(50));
        let drawn = sample(&comments, 20, 7);
        assert_eq!(drawn, sample(&comments, 20, 7));
        assert_ne!(drawn, sample(&comments, 20, 8));
        let lines: std::collections::BTreeSet<_> = drawn.iter().map(|one| one.line).collect();
        assert_eq!(lines.len(), 20);
        assert_eq!(sample(&comments, 100, 7).len(), 50);
    }
}
