//! The modules of a folder: their dependencies and their load order. Unlike `modprobe`, which reads the tables of
//! `depmod`, this module reads the files themselves.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use modload_abi::modinfo;
use modload_loader::{Inspection, sentence};
use petgraph::algo::{has_path_connecting, tarjan_scc, toposort};
use petgraph::graph::{DiGraph, NodeIndex};
use thiserror::Error;

use crate::file::{ModuleFile, ReadError, SIZE_LIMIT};

/// The modules of a folder, by name.
#[derive(Clone, Debug)]
pub struct Catalog {
    /// The modules by canonical name.
    modules: BTreeMap<String, CatalogEntry>,
    /// The names of the modules that export each symbol.
    exporters: HashMap<String, Vec<String>>,
    /// Files that cannot be read as modules, and second files of the same module name. They cause an error only if such
    /// a module is requested.
    unusable: Vec<Unusable>,
}

#[derive(Clone, Default, Debug)]
struct CatalogEntry {
    path: PathBuf,
    /// The undefined symbols.
    needs: Vec<String>,
    /// `depends=`: modules that are loaded before this one.
    depends: Vec<String>,
    /// `softdep=pre: ..`: modules that are loaded before this one if the folder has them.
    before: Vec<String>,
    /// `softdep=.. post: ..`: modules that are loaded after this one if the folder has them.
    after: Vec<String>,
    /// `alias=`: patterns of further names of the module.
    aliases: Vec<String>,
}

#[derive(Clone, Debug)]
struct Unusable {
    name: String,
    error: Arc<CatalogError>,
}

/// The modules of a folder cannot be put in order.
#[derive(Error)]
#[non_exhaustive]
pub enum CatalogError {
    /// The folder cannot be read.
    #[error("{}", .folder.display())]
    Folder {
        /// The path of the folder.
        folder: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// A file cannot be read.
    #[error("{}", .file.display())]
    Read {
        /// The path of the file.
        file: PathBuf,
        /// The reason.
        source: ReadError,
    },
    /// A file is not a module.
    #[error("{}", .file.display())]
    Inspect {
        /// The path of the file.
        file: PathBuf,
        /// The reason.
        source: Box<modload_loader::ObjectError>,
    },
    /// Two files hold modules of the same name.
    #[error("{} and {} both hold a module \"{name}\"", .first.display(), .second.display())]
    SameName {
        /// The name.
        name: String,
        /// The path of one file.
        first: PathBuf,
        /// The path of the other file.
        second: PathBuf,
    },
    /// The folder has no module of this name.
    #[error("there is no module \"{name}\" in the folder{}", match .unusable {
        0 => String::new(),
        1 => ", of which one file is not a module".to_owned(),
        count => format!(", of which {count} files are not modules"),
    })]
    NotFound {
        /// The requested name.
        name: String,
        /// How many files of the folder could not be used.
        unusable: usize,
    },
    /// The file of the requested module cannot be used.
    #[error(transparent)]
    Unusable(Arc<CatalogError>),
    /// Two modules export a symbol that a third module needs.
    #[error("\"{user}\" needs \"{symbol}\", which \"{first}\" and \"{second}\" both export")]
    Ambiguous {
        /// The module that needs the symbol.
        user: String,
        /// The symbol.
        symbol: String,
        /// One exporter.
        first: String,
        /// The other exporter.
        second: String,
    },
    /// Modules need each other in a cycle.
    #[error("modules need each other: {}", .0.join(", which needs "))]
    Cycle(Vec<String>),
}

impl fmt::Debug for CatalogError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&sentence(self))
    }
}

/// Returns whether a file has a name like a module.
fn is_module(path: &Path) -> bool {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let plain = [".gz", ".xz", ".zst"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(&name);
    plain.ends_with(".o") || plain.ends_with(".ko")
}

impl Catalog {
    /// Examines every `.o` and `.ko` of a folder, compressed or not. Runs no code of them.
    ///
    /// # Errors
    /// [`CatalogError`]: the folder cannot be read.
    pub fn read(folder: &Path) -> Result<Catalog, CatalogError> {
        let failed = |source| CatalogError::Folder { folder: folder.to_owned(), source };
        let mut paths = Vec::new();
        for entry in folder.read_dir().map_err(failed)? {
            paths.push(entry.map_err(failed)?.path());
        }
        paths.retain(|path| is_module(path));
        // The order of a folder's entries depends on the file system.
        paths.sort();
        let mut catalog = Catalog { modules: BTreeMap::new(), exporters: HashMap::new(), unusable: Vec::new() };
        for path in paths {
            catalog.add(path);
        }
        Ok(catalog)
    }

    /// Adds a file. A file that cannot be used is recorded, and does not affect other modules.
    fn add(&mut self, path: PathBuf) {
        let (name, error) = match ModuleFile::read(&path, SIZE_LIMIT) {
            Err(source) => (file_stem(&path), CatalogError::Read { file: path, source }),
            Ok(file) => match Inspection::of(&file.bytes, &file.stem, SIZE_LIMIT) {
                Err(source) => {
                    let source = Box::new(source);
                    (modinfo::canonical(&file.stem).into_owned(), CatalogError::Inspect { file: path, source })
                }
                Ok(inspection) => match self.modules.get(&inspection.name) {
                    None => return self.enter(path, inspection),
                    Some(other) => {
                        let (name, first) = (inspection.name, other.path.clone());
                        (name.clone(), CatalogError::SameName { name, first, second: path })
                    }
                },
            },
        };
        self.unusable.push(Unusable { name, error: Arc::new(error) });
    }

    fn enter(&mut self, path: PathBuf, inspection: Inspection) {
        let Inspection { name, needs, exports, modinfo, .. } = inspection;
        for export in exports {
            self.exporters.entry(export.name).or_default().push(name.clone());
        }
        // A module can do without its weak undefined symbols, so no module is loaded for them.
        let needs = needs.into_iter().filter(|need| !need.weak).map(|need| need.name).collect();
        let mut entry = CatalogEntry { path, needs, ..CatalogEntry::default() };
        for (key, value) in &modinfo {
            entry.take(key, value);
        }
        self.modules.insert(name, entry);
    }

    /// Returns the modules of a name: the module with this name or, if there is none, all modules with this alias.
    #[must_use]
    pub fn named(&self, name: &str) -> Vec<&str> {
        let name = modinfo::canonical(name);
        if let Some((name, _)) = self.modules.get_key_value(&*name) {
            return vec![name];
        }
        let has = |entry: &CatalogEntry| entry.aliases.iter().any(|alias| matches(alias.as_bytes(), name.as_bytes()));
        self.modules.iter().filter(|(_, entry)| has(entry)).map(|(name, _)| name.as_str()).collect()
    }

    /// Returns the modules of a name, or the reason why there is none.
    fn wanted(&self, name: &str) -> Result<Vec<&str>, CatalogError> {
        let canonical = modinfo::canonical(name);
        let is_taken = |unusable: &&Unusable| {
            let twice = matches!(*unusable.error, CatalogError::SameName { .. });
            unusable.name == canonical && (twice || !self.modules.contains_key(&*canonical))
        };
        if let Some(unusable) = self.unusable.iter().find(is_taken) {
            return Err(CatalogError::Unusable(unusable.error.clone()));
        }
        match self.named(name) {
            none if none.is_empty() => {
                let (name, unusable) = (name.escape_debug().to_string(), self.unusable.len());
                Err(CatalogError::NotFound { name, unusable })
            }
            found => Ok(found),
        }
    }

    /// Returns the requested modules and all modules they need, with their files, in load order.
    ///
    /// # Errors
    /// [`CatalogError`]: a module is missing or cannot be used, two modules export the same symbol, or modules need
    /// each other.
    pub fn order(&self, wanted: &[&str]) -> Result<Vec<(&str, &Path)>, CatalogError> {
        let mut order = LoadOrder::default();
        for name in wanted {
            for module in self.wanted(name)? {
                order.node(module);
            }
        }
        let mut soft = Vec::new();
        while let Some(user) = order.open.pop() {
            let entry = &self.modules[user];
            for provider in self.providers(user, entry)? {
                let (before, after) = (order.node(provider), order.node(user));
                order.graph.add_edge(before, after, ());
            }
            for before in entry.before.iter().flat_map(|name| self.named(name)) {
                soft.push((order.node(before), order.node(user)));
            }
            for after in entry.after.iter().flat_map(|name| self.named(name)) {
                soft.push((order.node(user), order.node(after)));
            }
        }
        let mut graph = order.graph;
        toposort(&graph, None).map_err(|_| CatalogError::Cycle(cycle(&graph)))?;
        // A soft dependency that would make a cycle is ignored.
        for (before, after) in soft {
            if !has_path_connecting(&graph, after, before, None) {
                graph.add_edge(before, after, ());
            }
        }
        let sorted = toposort(&graph, None).map_err(|_| CatalogError::Cycle(cycle(&graph)))?;
        Ok(sorted.into_iter().map(|node| (graph[node], self.modules[graph[node]].path.as_path())).collect())
    }

    /// Returns the modules whose exports this module needs, or that it depends on, each once.
    fn providers(&self, user: &str, entry: &CatalogEntry) -> Result<BTreeSet<&str>, CatalogError> {
        // A dependency that the folder does not have may be loaded already.
        let mut providers: BTreeSet<&str> = entry.depends.iter().flat_map(|name| self.named(name)).collect();
        for symbol in &entry.needs {
            match self.exporters.get(symbol).map(Vec::as_slice) {
                // The host or the process may define the symbol. If not, the load reports it.
                None | Some([]) => {}
                Some([provider]) => {
                    providers.insert(provider.as_str());
                }
                Some([first, second, ..]) => {
                    let (first, second) = (first.clone(), second.clone());
                    return Err(CatalogError::Ambiguous { user: user.into(), symbol: symbol.clone(), first, second });
                }
            }
        }
        Ok(providers)
    }
}

/// The modules that are ordered, and those whose dependencies have not been examined yet.
#[derive(Default)]
struct LoadOrder<'c> {
    graph: DiGraph<&'c str, ()>,
    nodes: BTreeMap<&'c str, NodeIndex>,
    open: Vec<&'c str>,
}

impl<'c> LoadOrder<'c> {
    fn node(&mut self, module: &'c str) -> NodeIndex {
        *self.nodes.entry(module).or_insert_with(|| {
            self.open.push(module);
            self.graph.add_node(module)
        })
    }
}

impl CatalogEntry {
    /// Processes an entry of `.modinfo`.
    fn take(&mut self, key: &str, value: &str) {
        let owned = |name: &str| modinfo::canonical(name).into_owned();
        match key {
            "alias" => self.aliases.push(modinfo::canonical_pattern(value)),
            "depends" => self.depends.extend(value.split(',').filter(|name| !name.is_empty()).map(owned)),
            "softdep" => {
                let mut into = None;
                for word in value.split_whitespace() {
                    match (word, into) {
                        ("pre:" | "post:", _) => into = Some(word),
                        (name, Some("pre:")) => self.before.push(owned(name)),
                        (name, Some(_)) => self.after.push(owned(name)),
                        (_, None) => {}
                    }
                }
            }
            _ => {}
        }
    }
}

/// Returns whether a name matches a pattern with `*`, `?` and `[a-z]`, as fnmatch(3).
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    let (mut at, mut from) = (0, 0);
    // The position of the last star, and the end of the text that it has matched.
    let mut star: Option<(usize, usize)> = None;
    loop {
        let rest = &pattern[at..];
        match (rest.first(), name.get(from)) {
            (Some(b'*'), _) => {
                star = Some((at, from));
                at += 1;
                continue;
            }
            (None, None) => return true,
            (Some(_), Some(letter)) => {
                if let Some(len) = one(rest, *letter) {
                    at += len;
                    from += 1;
                    continue;
                }
            }
            _ => {}
        }
        // The star matches one more letter.
        match star {
            Some((star_at, taken)) if taken < name.len() => {
                star = Some((star_at, taken + 1));
                (at, from) = (star_at + 1, taken + 1);
            }
            _ => return false,
        }
    }
}

/// Returns the length of the pattern's first element, if that element matches this letter.
fn one(pattern: &[u8], letter: u8) -> Option<usize> {
    let end = pattern.iter().skip(2).position(|byte| *byte == b']').map(|end| end + 2);
    match (pattern, end) {
        ([b'?', ..], _) => Some(1),
        ([b'[', ..], Some(end)) => {
            let (not, mut set) = match &pattern[1..end] {
                [b'!' | b'^', set @ ..] => (true, set),
                set => (false, set),
            };
            let mut found = false;
            while let [first, rest @ ..] = set {
                (found, set) = match rest {
                    [b'-', last, rest @ ..] => (found || (*first..=*last).contains(&letter), rest),
                    _ => (found || *first == letter, rest),
                };
            }
            (found != not).then_some(end + 1)
        }
        ([own, ..], _) => (*own == letter).then_some(1),
        ([], _) => None,
    }
}

/// Returns the name of the module in a file without a name in its modinfo.
fn file_stem(path: &Path) -> String {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let plain = [".gz", ".xz", ".zst"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(&name);
    let stem = [".ko", ".o"].iter().find_map(|end| plain.strip_suffix(end)).unwrap_or(plain);
    modinfo::canonical(stem).into_owned()
}

/// Returns a cycle of the graph, from user to provider. The first module is repeated at the end.
fn cycle(graph: &DiGraph<&str, ()>) -> Vec<String> {
    let knot = tarjan_scc(graph).into_iter().find(|knot| knot.len() > 1 || graph.contains_edge(knot[0], knot[0]));
    let Some(knot) = knot else { return Vec::new() };
    let mut path = vec![knot[0]];
    loop {
        let at = path[path.len() - 1];
        let mut providers = graph.neighbors_directed(at, petgraph::Direction::Incoming);
        let Some(next) = providers.find(|next| knot.contains(next)) else { return Vec::new() };
        if let Some(start) = path.iter().position(|node| *node == next) {
            path.push(next);
            return path[start..].iter().map(|&node| format!("\"{}\"", graph[node])).collect();
        }
        path.push(next);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashMap};

    use super::{Catalog, CatalogEntry, matches};

    /// Makes a catalog from lines `name: needs -> exports`. A need with `=` is an entry of `.modinfo`, with commas for
    /// blanks.
    fn catalog(lines: &[&str]) -> Catalog {
        let mut catalog = Catalog { modules: BTreeMap::new(), exporters: HashMap::new(), unusable: Vec::new() };
        for line in lines {
            let (name, rest) = line.split_once(':').unwrap();
            let (needs, exports) = rest.split_once("->").unwrap();
            let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
            for export in words(exports) {
                catalog.exporters.entry(export).or_default().push(name.into());
            }
            let (entries, needs): (Vec<_>, Vec<_>) = words(needs).into_iter().partition(|word| word.contains('='));
            let mut entry = CatalogEntry { path: format!("{name}.o").into(), needs, ..CatalogEntry::default() };
            for (key, value) in entries.iter().filter_map(|entry| entry.split_once('=')) {
                entry.take(key, &if key == "softdep" { value.replace(',', " ") } else { value.to_owned() });
            }
            catalog.modules.insert(name.into(), entry);
        }
        catalog
    }

    fn check(lines: &[&str], wanted: &[&str], expected: &str) {
        let order =
            catalog(lines).order(wanted).map(|order| order.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(" "));
        assert_eq!(order.unwrap_or_else(|error| error.to_string()), expected);
    }

    #[test]
    fn providers_come_before_their_users() {
        let chain = ["c: fb -> fc", "a: malloc -> fa", "b: fa -> fb", "other: -> fo"];
        check(&chain, &["c"], "a b c");
        check(&chain, &["c", "a"], "a b c");
        check(&chain, &["b"], "a b");
    }

    #[test]
    fn names_are_compared_as_linux_does_and_may_be_aliases() {
        let lines =
            ["my_mod: -> f", "net_pf_1: alias=net-pf-*-proto-[0-9] alias=other ->", "user: f depends=net-pf-1 ->"];
        check(&lines, &["my-mod"], "my_mod");
        check(&lines, &["net_pf-3-proto_7"], "net_pf_1");
        check(&lines, &["other", "user"], "my_mod net_pf_1 user");
        check(&lines, &["net-pf-3-proto-x"], "there is no module \"net-pf-3-proto-x\" in the folder");
    }

    #[test]
    fn soft_dependencies_come_before_and_behind_if_they_are_there_and_can() {
        check(&["a: softdep=pre:,b,none,post:,c-x ->", "b: ->", "c_x: ->"], &["a"], "b a c_x");
        // Hard dependencies take precedence over soft ones.
        check(&["a: fb softdep=post:,b -> fa", "b: softdep=post:,a -> fb"], &["a"], "b a");
        check(&["a: softdep=pre:,b ->", "b: softdep=pre:,a ->"], &["a"], "b a");
    }

    #[test]
    fn patterns_mean_what_fnmatch_says() {
        for (pattern, name, expected) in [
            ("*", "", true),
            ("a*b*c", "axxbyybzc", true),
            ("a*b*c", "axxbyyb", false),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("[ab]x", "bx", true),
            ("[!ab]x", "bx", false),
            ("[0-9]*[!0-9]", "7x", true),
            ("[]]", "]", true),
            ("[a", "[a", true),
            ("pci:v*d*", "pci:v00008086d0000", true),
        ] {
            assert_eq!(matches(pattern.as_bytes(), name.as_bytes()), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn what_cannot_be_ordered_is_named() {
        check(&["a: -> fa"], &["b"], "there is no module \"b\" in the folder");
        let twice = ["a: f ->", "b: -> f", "c: -> f"];
        check(&twice, &["a"], "\"a\" needs \"f\", which \"b\" and \"c\" both export");
        check(&twice, &["b"], "b");
    }

    #[test]
    fn a_cycle_prints_itself() {
        let lines = ["a: fb -> fa", "b: fc -> fb", "c: fb -> fc"];
        let error = catalog(&lines).order(&["a"]).unwrap_err().to_string();
        let ways = [
            "modules need each other: \"b\", which needs \"c\", which needs \"b\"",
            "modules need each other: \"c\", which needs \"b\", which needs \"c\"",
        ];
        assert!(ways.contains(&error.as_str()), "{error}");
    }

    #[test]
    fn a_chain_of_thousands_is_no_deep_recursion() {
        let lines: Vec<String> = (0..20_000).map(|i| format!("m{i:05}: f{} -> f{i}", i + 1)).collect();
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        let catalog = catalog(&lines);
        let order = catalog.order(&["m00000"]).unwrap();
        assert_eq!((order.len(), order[0].0, order[19_999].0), (20_000, "m19999", "m00000"));
    }
}
