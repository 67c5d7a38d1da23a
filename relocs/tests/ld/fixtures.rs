//! `tests/fixtures/*.s`. The first lines of each are comments of the form `# key: values`: how the file is linked
//! (`ld`), the addresses of its sections (`at`), symbols defined elsewhere (`define`), the relocations that it tests
//! (`rows`, compared with the output of `as`) and the number of relaxed relocations (`relaxed`; 0 if absent).

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use modload_relocs::{ROWS, RelocField, RelocFormula};

use crate::module::Module;
use crate::tools::{Layout, assemble, link};

struct Fixture {
    name: String,
    source: String,
    keys: BTreeMap<String, String>,
}

impl Fixture {
    fn all() -> Vec<Fixture> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
        let mut fixtures: Vec<_> =
            std::fs::read_dir(folder).unwrap().map(|entry| Fixture::read(&entry.unwrap().path())).collect();
        fixtures.sort_by(|a, b| a.name.cmp(&b.name));
        fixtures
    }

    fn read(path: &Path) -> Fixture {
        let source = std::fs::read_to_string(path).unwrap();
        let top = source.lines().map_while(|line| line.strip_prefix("# "));
        let keys = top.filter_map(|line| line.split_once(": ")).map(|(key, value)| (key.to_owned(), value.to_owned()));
        let keys = keys.collect();
        Fixture { name: path.file_name().unwrap().to_string_lossy().into_owned(), source, keys }
    }

    fn key(&self, key: &str) -> &str {
        self.keys.get(key).map_or("", String::as_str)
    }

    fn layout(&self) -> Layout {
        let pairs = |key| {
            self.key(key).split_whitespace().map(|pair| {
                let (name, addr) = pair.split_once("=0x").unwrap_or_else(|| panic!("{}: {pair}", self.name));
                (name.to_owned(), u64::from_str_radix(addr, 16).unwrap())
            })
        };
        let mut layout = Layout::new(self.key("ld"), &[], &[]);
        layout.sections = pairs("at").collect();
        layout.symbols = pairs("define").collect();
        layout
    }

    fn rows(&self) -> BTreeSet<&str> {
        self.key("rows").split_whitespace().collect()
    }

    fn check(&self) {
        let name = &self.name;
        let layout = self.layout();
        let object = assemble(&self.source);
        let module = Module::new(&object, &layout);
        assert_eq!(module.rows(), self.rows(), "{name}");

        let theirs = link(&object, &layout).unwrap_or_else(|said| panic!("{name}: ld refuses it: {said}"));
        // ld may reserve slots at the start of the GOT. The surplus over this crate's slots is their number.
        let their_slots = u64::try_from(theirs.get(".got").map_or(0, Vec::len)).unwrap() / 8;
        let reserved = u32::try_from(their_slots.saturating_sub(module.slots())).unwrap();
        let ours = module.relocate(reserved).unwrap_or_else(|error| panic!("{name}: {error}"));
        for (section, bytes) in &ours.sections {
            let theirs = match section.as_str() {
                // In a static link ld calls every function directly.
                ".plt.got" => continue,
                // ld removes the GOT if no instruction uses a slot after relaxation.
                ".got" if their_slots == 0 => continue,
                ".got" => &theirs[section][usize::try_from(reserved).unwrap() * 8..],
                _ => &theirs[section],
            };
            assert_eq!(
                first_difference(bytes, theirs),
                None,
                "{name} {section}:\nours {bytes:02x?}\nld's {theirs:02x?}"
            );
        }
        let relaxed: u32 = self.keys.get("relaxed").map_or(0, |count| count.parse().unwrap());
        assert_eq!(ours.counts.relaxed, relaxed, "{name}");
    }
}

fn first_difference(ours: &[u8], theirs: &[u8]) -> Option<usize> {
    let differ = ours.iter().zip(theirs).position(|(a, b)| a != b);
    differ.or((ours.len() != theirs.len()).then_some(ours.len().min(theirs.len())))
}

#[test]
fn every_fixture_becomes_what_ld_makes_of_it() {
    for fixture in Fixture::all() {
        fixture.check();
    }
}

#[test]
fn every_row_that_is_done_has_a_fixture() {
    let fixtures = Fixture::all();
    let covered: BTreeSet<&str> = fixtures.iter().flat_map(Fixture::rows).collect();
    for row in
        ROWS.iter().filter(|row| !matches!(row.value, RelocFormula::Refused(_)) && row.field != RelocField::Nowhere)
    {
        assert!(covered.contains(row.name), "{} has no fixture", row.name);
    }
}
