//! The symbols in the guest's /proc/kallsyms.

use std::collections::{HashMap, HashSet};

use crate::Result;

/// Addresses by name: of the kernel, and of each module.
#[derive(Default)]
pub(crate) struct GuestSymbols<'t> {
    kernel: HashMap<&'t str, Vec<u64>>,
    modules: HashMap<&'t str, Vec<(&'t str, u64)>>,
    /// The symbols of the kernel that are not local.
    globals: HashMap<&'t str, u64>,
    /// The unambiguous names of the kernel's symbols, by address.
    names: HashMap<u64, &'t str>,
}

impl<'t> GuestSymbols<'t> {
    /// Parses lines `ADDRESS TYPE NAME [MODULE]`.
    pub(crate) fn parse(text: &'t str) -> Result<GuestSymbols<'t>> {
        let mut symbols = GuestSymbols::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            let (Some(address), Some(kind), Some(name)) = (words.next(), words.next(), words.next()) else {
                return Err(format!("not a line of /proc/kallsyms: {line}").into());
            };
            let address = u64::from_str_radix(address, 16)?;
            match words.next() {
                None => {
                    symbols.kernel.entry(name).or_default().push(address);
                    if kind.starts_with(|letter: char| letter.is_ascii_uppercase()) {
                        symbols.globals.insert(name, address);
                    }
                }
                Some(module) => {
                    let module = module.trim_start_matches('[').trim_end_matches(']');
                    symbols.modules.entry(module).or_default().push((name, address));
                }
            }
        }
        let of_modules: HashSet<&str> = symbols.modules.values().flatten().map(|(name, _)| *name).collect();
        let unique = symbols.kernel.iter().filter(|(name, places)| places.len() == 1 && !of_modules.contains(**name));
        // If an address has several names, the first in alphabetical order is used.
        let mut names: Vec<_> = unique.map(|(name, places)| (places[0], *name)).collect();
        names.sort_unstable_by(|one, other| other.cmp(one));
        symbols.names = names.into_iter().collect();
        Ok(symbols)
    }

    /// Returns the address of a symbol of the kernel itself, if exactly one has this name.
    pub(crate) fn unique(&self, name: &str) -> Option<u64> {
        let [address] = self.kernel.get(name)?[..] else { return None };
        Some(address)
    }

    /// Returns the address of a symbol that is not local. Local symbols may have the same name.
    pub(crate) fn global(&self, name: &str) -> Option<u64> {
        self.globals.get(name).copied()
    }

    /// Returns the address of a symbol that must exist.
    pub(crate) fn kernel(&self, name: &str) -> Result<u64> {
        self.unique(name).ok_or_else(|| format!("the kernel has no symbol {name}, or several").into())
    }

    /// Returns the first name, in alphabetical order, of the kernel's symbols at an address.
    pub(crate) fn name_at(&self, address: u64) -> Option<&'t str> {
        self.kernel.iter().filter(|(_, places)| places.contains(&address)).map(|(name, _)| *name).min()
    }

    /// Returns the name of the kernel's symbol at an address, if no other symbol has this name.
    pub(crate) fn unique_name(&self, address: u64) -> Option<&'t str> {
        self.names.get(&address).copied()
    }

    /// Returns the symbols of a module.
    pub(crate) fn of_module(&self, module: &str) -> &[(&'t str, u64)] {
        self.modules.get(module).map_or(&[], Vec::as_slice)
    }

    /// Returns the exported symbols of modules, by name: those with a `__ksymtab_` entry.
    pub(crate) fn exports(&self) -> HashMap<&'t str, u64> {
        let mut exports = HashMap::new();
        for symbols in self.modules.values() {
            let by_name: HashMap<_, _> = symbols.iter().copied().collect();
            let names = symbols.iter().filter_map(|(name, _)| name.strip_prefix("__ksymtab_"));
            exports.extend(names.filter_map(|name| Some((name, *by_name.get(name)?))));
        }
        exports
    }
}

#[cfg(test)]
mod tests {
    use super::GuestSymbols;

    #[test]
    fn a_name_is_given_only_if_nothing_else_has_it() {
        let text = "ffffffff82000000 D __SCK__call\nffffffff82000008 d key\nffffffff82000010 d key\nffffffff82000018 d own\n\
                    ffffffff82000020 D b\nffffffff82000020 D a\nffffffffc0000000 d own\t[m]\n";
        let symbols = GuestSymbols::parse(text).unwrap();
        let names = [0, 8, 0x10, 0x18, 0x20].map(|at| symbols.unique_name(0xffff_ffff_8200_0000 + at));
        assert_eq!(names, [Some("__SCK__call"), None, None, None, Some("a")]);
    }

    #[test]
    fn a_global_symbol_may_have_the_name_of_a_local_one() {
        let text = "ffffffff81000000 t read\nffffffff81000010 T read\nffffffff81000020 t own\n";
        let symbols = GuestSymbols::parse(text).unwrap();
        assert_eq!((symbols.global("read"), symbols.unique("read")), (Some(0xffff_ffff_8100_0010), None));
        assert_eq!(symbols.global("own"), None);
    }

    #[test]
    fn exports_are_what_has_an_entry() {
        let text = "ffffffff81000000 T start\nffffffff81000000 T twice\nffffffff81000010 t twice\n\
                    ffffffffc0000000 t offered\t[m]\nffffffffc0000010 r __ksymtab_offered\t[m]\n\
                    ffffffffc0000020 t own\t[m]\n";
        let symbols = GuestSymbols::parse(text).unwrap();
        assert_eq!(symbols.unique("start"), Some(0xffff_ffff_8100_0000));
        assert_eq!(symbols.unique("twice"), None);
        assert_eq!(symbols.of_module("m").len(), 3);
        assert_eq!(symbols.exports().into_iter().collect::<Vec<_>>(), [("offered", 0xffff_ffff_c000_0000)]);
        assert!(GuestSymbols::parse("ffffffff81000000 T").is_err());
    }
}
