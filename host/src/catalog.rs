//! The modules of a folder: who needs whom, and in which order they load. What `modprobe` asks `depmod`'s tables, this
//! asks the files themselves.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::path::{Path, PathBuf};

use modload_loader::Inspection;
use petgraph::algo::{tarjan_scc, toposort};
use petgraph::graph::{DiGraph, NodeIndex};
use thiserror::Error;

use crate::file::{ModuleFile, ReadError, SIZE_LIMIT};

/// The modules of a folder, by name.
#[derive(Clone, Debug)]
pub struct Catalog {
    modules: BTreeMap<String, Entry>,
    /// Who exports a symbol: the names of the modules.
    exporters: HashMap<String, Vec<String>>,
}

#[derive(Clone, Debug)]
struct Entry {
    path: PathBuf,
    needs: Vec<String>,
}

/// The modules of a folder cannot be ordered.
#[derive(Debug, Error)]
pub enum CatalogError {
    /// The folder cannot be read.
    #[error("{}", .folder.display())]
    Folder {
        /// Which.
        folder: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// One of its modules cannot be read.
    #[error("{}", .file.display())]
    Read {
        /// Which.
        file: PathBuf,
        /// Why not.
        source: ReadError,
    },
    /// One of its modules is no module.
    #[error("{}", .file.display())]
    Inspect {
        /// Which.
        file: PathBuf,
        /// Why not.
        source: Box<modload_loader::Error>,
    },
    /// Two files hold modules of one name.
    #[error("{} and {} both hold a module \"{name}\"", .first.display(), .second.display())]
    SameName {
        /// The name.
        name: String,
        /// One of them.
        first: PathBuf,
        /// The other.
        second: PathBuf,
    },
    /// There is no module of this name.
    #[error("there is no module \"{0}\" in the folder")]
    NotFound(String),
    /// Two modules export what a third needs.
    #[error("\"{user}\" needs \"{symbol}\", which \"{first}\" and \"{second}\" both export")]
    Ambiguous {
        /// Who needs it.
        user: String,
        /// What.
        symbol: String,
        /// One exporter.
        first: String,
        /// Another.
        second: String,
    },
    /// Modules need each other.
    #[error("modules need each other: {}", .0.join(", which needs "))]
    Cycle(Vec<String>),
}

/// Whether a file is called like a module.
fn is_module(path: &Path) -> bool {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let plain = [".gz", ".xz", ".zst"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(&name);
    plain.ends_with(".o") || plain.ends_with(".ko")
}

impl Catalog {
    /// Looks at every `.o` and `.ko` of a folder, compressed or not. Nothing of them is run.
    ///
    /// # Errors
    /// [`CatalogError`]: the folder or one of its modules cannot be read, or two have one name.
    pub fn read(folder: &Path) -> Result<Catalog, CatalogError> {
        let failed = |source| CatalogError::Folder { folder: folder.to_owned(), source };
        let mut paths = Vec::new();
        for entry in folder.read_dir().map_err(failed)? {
            paths.push(entry.map_err(failed)?.path());
        }
        paths.retain(|path| is_module(path));
        // The order of a folder's entries is the file system's own affair.
        paths.sort();
        let mut catalog = Catalog { modules: BTreeMap::new(), exporters: HashMap::new() };
        for path in paths {
            catalog.add(path)?;
        }
        Ok(catalog)
    }

    fn add(&mut self, path: PathBuf) -> Result<(), CatalogError> {
        let file = ModuleFile::read(&path, SIZE_LIMIT);
        let file = file.map_err(|source| CatalogError::Read { file: path.clone(), source })?;
        let inspection = Inspection::of(&file.bytes, &file.stem, SIZE_LIMIT);
        let inspection =
            inspection.map_err(|source| CatalogError::Inspect { file: path.clone(), source: Box::new(source) })?;
        let Inspection { name, needs, exports, .. } = inspection;
        if let Some(other) = self.modules.get(&name) {
            return Err(CatalogError::SameName { name, first: other.path.clone(), second: path });
        }
        for export in exports {
            self.exporters.entry(export.name).or_default().push(name.clone());
        }
        // A module can do without what it needs weakly, so nobody is loaded for that.
        let needs = needs.into_iter().filter(|need| !need.weak).map(|need| need.name).collect();
        self.modules.insert(name, Entry { path, needs });
        Ok(())
    }

    /// The modules wanted and all that they need, each before those that need it: names and files.
    ///
    /// # Errors
    /// [`CatalogError`]: one is not there, two export the same, or they need each other.
    pub fn order(&self, wanted: &[&str]) -> Result<Vec<(&str, &Path)>, CatalogError> {
        let mut graph = DiGraph::new();
        let mut nodes: BTreeMap<&str, NodeIndex> = BTreeMap::new();
        let mut open = Vec::new();
        for name in wanted {
            let (name, entry) = self
                .modules
                .get_key_value(*name)
                .ok_or_else(|| CatalogError::NotFound(name.escape_debug().to_string()))?;
            nodes.entry(name).or_insert_with(|| {
                open.push((name.as_str(), entry));
                graph.add_node(name.as_str())
            });
        }
        while let Some((user, entry)) = open.pop() {
            for provider in self.providers(user, entry)? {
                let node = *nodes.entry(provider).or_insert_with(|| {
                    open.push((provider, &self.modules[provider]));
                    graph.add_node(provider)
                });
                graph.add_edge(node, nodes[user], ());
            }
        }
        let sorted = toposort(&graph, None).map_err(|_| CatalogError::Cycle(cycle(&graph)))?;
        Ok(sorted.into_iter().map(|node| (graph[node], self.modules[graph[node]].path.as_path())).collect())
    }

    /// The modules whose exports this one needs, each once.
    fn providers(&self, user: &str, entry: &Entry) -> Result<BTreeSet<&str>, CatalogError> {
        let mut providers = BTreeSet::new();
        for symbol in &entry.needs {
            match self.exporters.get(symbol).map(Vec::as_slice) {
                // The host or the process may have it; if not, the load says so.
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

/// One way round a cycle of the graph, from user to provider, the first module named again at the end.
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

    use super::{Catalog, Entry};

    /// A catalogue from lines `name: needs -> exports`.
    fn catalog(lines: &[&str]) -> Catalog {
        let mut catalog = Catalog { modules: BTreeMap::new(), exporters: HashMap::new() };
        for line in lines {
            let (name, rest) = line.split_once(':').unwrap();
            let (needs, exports) = rest.split_once("->").unwrap();
            let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
            for export in words(exports) {
                catalog.exporters.entry(export).or_default().push(name.into());
            }
            catalog.modules.insert(name.into(), Entry { path: format!("{name}.o").into(), needs: words(needs) });
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
