//! The imports between the files of a crate: read from `use` items and from paths in code, as the compiler resolves
//! them.
//!
//! The input is code without comments, literals and tests. A parent that declares `mod child;` does not import the
//! child. A re-export (`pub use child::Name`) is not an import either, unless the file uses the name itself: a file
//! that imports the name imports the file that defines the name.

use std::collections::{BTreeMap, BTreeSet};

/// The files of one crate's `src`, and the imports of each file.
pub(crate) struct Imports {
    /// Maps a file to the files that it imports, each with the line of the first import.
    edges: BTreeMap<String, BTreeMap<String, usize>>,
}

/// A file and the names that `use` items bring into it.
struct File {
    path: String,
    /// The path of the file's module, from the crate's root.
    module: Vec<String>,
    uses: Vec<Use>,
    /// Lines and segments of paths in code that begin with `crate`, `self` or `super`.
    paths: Vec<(usize, Vec<String>)>,
    /// The file's code without `use` items.
    rest: String,
}

/// One name that a `use` item imports.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Use {
    line: usize,
    path: Vec<String>,
    /// The name in this file; `*` for all names of a module.
    name: String,
    is_public: bool,
}

impl Imports {
    /// Reads the imports of a crate. `sources` has the path and the code of each file; paths begin with `src`, the folder of the
    /// crate's root.
    pub(crate) fn of<'s>(src: &str, sources: impl IntoIterator<Item = (&'s str, &'s str)>) -> Imports {
        let mut files: BTreeMap<Vec<String>, File> = BTreeMap::new();
        for (path, code) in sources {
            let Some(module) = path.strip_prefix(src).and_then(module_of) else { continue };
            files.insert(module.clone(), File::read(path, module, code));
        }
        let mut edges = BTreeMap::new();
        for file in files.values() {
            let mut of_file = BTreeMap::new();
            let used = file.uses.iter().filter(|item| !item.is_public || item.name == "*" || is_used(file, &item.name));
            let used = used.map(|item| (item.line, &item.path));
            for (line, path) in used.chain(file.paths.iter().map(|(line, path)| (*line, path))) {
                let found = resolve(&files, &file.module, path, 0);
                if let Some(to) = found.filter(|to| *to != file.path) {
                    of_file.entry(to).or_insert(line);
                }
            }
            edges.insert(file.path.clone(), of_file);
        }
        Imports { edges }
    }

    /// All imports: the importing file, the line, and the imported file.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, usize, &str)> {
        self.edges.iter().flat_map(|(from, to)| to.iter().map(move |(to, line)| (from.as_str(), *line, to.as_str())))
    }

    /// Returns the circles: sets of at least two files, each of which imports all others, directly or through other
    /// files. The largest is first.
    pub(crate) fn circles(&self) -> Vec<BTreeSet<&str>> {
        let reached: BTreeMap<&str, BTreeSet<&str>> =
            self.edges.keys().map(|from| (from.as_str(), self.reached(from))).collect();
        let mut circles: BTreeSet<BTreeSet<&str>> = BTreeSet::new();
        for (file, all) in &reached {
            if all.contains(file) {
                let back = all.iter().filter(|to| reached.get(*to).is_some_and(|of| of.contains(file)));
                circles.insert(back.copied().collect());
            }
        }
        let mut circles: Vec<_> = circles.into_iter().collect();
        circles.sort_by_key(|circle| std::cmp::Reverse(circle.len()));
        circles
    }

    /// The files that a file imports, directly or by way of others.
    fn reached<'s>(&'s self, from: &'s str) -> BTreeSet<&'s str> {
        let mut reached = BTreeSet::new();
        let mut left = vec![from];
        while let Some(at) = left.pop() {
            for to in self.edges.get(at).into_iter().flat_map(BTreeMap::keys) {
                if reached.insert(to.as_str()) {
                    left.push(to);
                }
            }
        }
        reached
    }
}

/// The module of a file: `/a/b.rs` and `/a/b/mod.rs` are `a::b`, `/lib.rs` and `/main.rs` are the root.
fn module_of(path: &str) -> Option<Vec<String>> {
    let path = path.strip_suffix(".rs")?.trim_start_matches('/');
    let path = path.strip_suffix("/mod").unwrap_or(path);
    let is_root = ["lib", "main"].contains(&path);
    Some(if is_root { Vec::new() } else { path.split('/').map(str::to_owned).collect() })
}

impl File {
    fn read(path: &str, module: Vec<String>, code: &str) -> File {
        let (uses, rest) = uses(code);
        let paths = paths(&rest);
        File { path: path.to_owned(), module, uses, paths, rest }
    }
}

/// Whether a file uses a name elsewhere than in `use` items.
fn is_used(file: &File, name: &str) -> bool {
    words(&file.rest).any(|(_, word)| word == name)
}

/// The names and keywords of some code, with their places.
fn words(code: &str) -> impl Iterator<Item = (usize, &str)> {
    let is_part = |letter: char| letter.is_alphanumeric() || letter == '_';
    let mut at = 0;
    std::iter::from_fn(move || {
        let start = at + code[at..].find(is_part)?;
        let end = code[start..].find(|letter| !is_part(letter)).map_or(code.len(), |len| start + len);
        at = end;
        Some((start, &code[start..end]))
    })
}

fn line_of(code: &str, at: usize) -> usize {
    code[..at].matches('\n').count() + 1
}

/// Returns the `use` items of some code, and the code without them. Lines keep their numbers.
fn uses(code: &str) -> (Vec<Use>, String) {
    let mut uses = Vec::new();
    let mut rest = code.to_owned();
    for (at, word) in words(code) {
        // `use<'a>` is part of a type.
        let tree = &code[at + word.len()..];
        if word != "use" || !tree.starts_with(char::is_whitespace) {
            continue;
        }
        let Some(len) = tree.find(';') else { continue };
        let before = code[..at].trim_end();
        let is_public = before.ends_with("pub") || (before.ends_with(')') && last_line(before).contains("pub("));
        let line = line_of(code, at);
        branches(&tree[..len], &[], &mut |path, name| uses.push(Use { line, path, name, is_public }));
        let blank: String = code[at..=at + word.len() + len].chars().map(|c| if c == '\n' { c } else { ' ' }).collect();
        if blank.len() == word.len() + len + 1 {
            rest.replace_range(at..=at + word.len() + len, &blank);
        }
    }
    (uses, rest)
}

fn last_line(code: &str) -> &str {
    code.rsplit('\n').next().unwrap_or_default()
}

/// Takes a tree of imports apart: `a::{b, c::{self, d as e}}` imports `a::b`, `a::c` and `a::c::d`.
fn branches(tree: &str, before: &[String], each: &mut impl FnMut(Vec<String>, String)) {
    let (head, group) = match tree.split_once('{') {
        Some((head, group)) => (head, Some(group.rsplit_once('}').map_or(group, |(inside, _)| inside))),
        None => (tree, None),
    };
    let (head, alias) = head.split_once(" as ").map_or((head, None), |(head, alias)| (head, Some(alias.trim())));
    let segments = head.split("::").map(str::trim).filter(|segment| !segment.is_empty());
    let mut path: Vec<String> = before.iter().cloned().chain(segments.map(str::to_owned)).collect();
    if let Some(group) = group {
        let (mut depth, mut start) = (0_usize, 0);
        for (at, letter) in group.char_indices().chain([(group.len(), ',')]) {
            match letter {
                '{' => depth += 1,
                '}' => depth = depth.saturating_sub(1),
                ',' if depth == 0 => {
                    if !group[start..at].trim().is_empty() {
                        branches(&group[start..at], &path, each);
                    }
                    start = at + 1;
                }
                _ => {}
            }
        }
        return;
    }
    // `a::{self}` is `a`; `self` alone is the file's own module.
    if path.len() > 1 && path.last().is_some_and(|last| last == "self") {
        path.pop();
    }
    let name = alias.or(path.last().map(String::as_str)).unwrap_or_default().to_owned();
    each(path, name);
}

/// The paths in code that begin with `crate`, `self` or `super`, but not visibilities.
fn paths(code: &str) -> Vec<(usize, Vec<String>)> {
    let mut found = Vec::new();
    let mut until = 0;
    for (at, word) in words(code) {
        if at < until || !["crate", "self", "super"].contains(&word) || code[..at].trim_end().ends_with("(in") {
            continue;
        }
        let mut path = vec![word.to_owned()];
        let mut end = at + word.len();
        while let Some(rest) = code[end..].strip_prefix("::") {
            let Some((0, segment)) = words(rest).next() else { break };
            path.push(segment.to_owned());
            end += 2 + segment.len();
        }
        until = end;
        if path.len() > 1 {
            found.push((line_of(code, at), path));
        }
    }
    found
}

/// Returns the file that defines the item of a path, as seen from a module. Returns `None` if the item belongs to
/// another crate.
fn resolve(files: &BTreeMap<Vec<String>, File>, from: &[String], path: &[String], depth: usize) -> Option<String> {
    let mut at = from.to_vec();
    let mut segments = path.iter().peekable();
    match segments.peek().map(|segment| segment.as_str()) {
        Some("crate") => {
            at.clear();
            segments.next();
        }
        Some("self") => {
            segments.next();
        }
        Some("super") => {
            while segments.next_if(|segment| *segment == "super").is_some() {
                at.pop();
            }
        }
        // A child, or another crate.
        Some(first) => {
            let child = [from, &[first.to_owned()]].concat();
            if !files.contains_key(&child) {
                return None;
            }
        }
        None => return None,
    }
    while let Some(segment) = segments.next() {
        let child = [&at[..], std::slice::from_ref(segment)].concat();
        if files.contains_key(&child) {
            at = child;
            continue;
        }
        let file = files.get(&at)?;
        let other = file.uses.iter().find(|item| item.name == *segment && item.path != path);
        if let Some(other) = other.filter(|_| depth < 8) {
            let further: Vec<String> = other.path.iter().chain(segments).cloned().collect();
            return resolve(files, &at, &further, depth + 1);
        }
        break;
    }
    files.get(&at).map(|file| file.path.clone())
}
