//! What the guest's /proc/kallsyms says.

use std::collections::HashMap;

use crate::Result;

/// Addresses by name: of the kernel, and of each module.
#[derive(Default)]
pub(crate) struct Symbols<'t> {
    kernel: HashMap<&'t str, Vec<u64>>,
    modules: HashMap<&'t str, Vec<(&'t str, u64)>>,
    /// Those of the kernel's that are not local.
    globals: HashMap<&'t str, u64>,
    /// The kernel's keys for static calls: their names without `__SCK__`.
    calls: HashMap<u64, &'t str>,
}

impl<'t> Symbols<'t> {
    /// Lines `ADDRESS TYPE NAME [MODULE]`.
    pub(crate) fn parse(text: &'t str) -> Result<Symbols<'t>> {
        let mut symbols = Symbols::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            let (Some(address), Some(kind), Some(name)) = (words.next(), words.next(), words.next()) else {
                return Err(format!("no line of /proc/kallsyms: {line}").into());
            };
            let address = u64::from_str_radix(address, 16)?;
            match words.next() {
                None => {
                    symbols.kernel.entry(name).or_default().push(address);
                    if kind.starts_with(|letter: char| letter.is_ascii_uppercase()) {
                        symbols.globals.insert(name, address);
                    }
                    symbols.calls.extend(name.strip_prefix("__SCK__").map(|call| (address, call)));
                }
                Some(module) => {
                    let module = module.trim_start_matches('[').trim_end_matches(']');
                    symbols.modules.entry(module).or_default().push((name, address));
                }
            }
        }
        Ok(symbols)
    }

    /// A symbol of the kernel's own, if it has one of this name.
    pub(crate) fn unique(&self, name: &str) -> Option<u64> {
        let [address] = self.kernel.get(name)?[..] else { return None };
        Some(address)
    }

    /// One that is not local, and may have the name of others that are.
    pub(crate) fn global(&self, name: &str) -> Option<u64> {
        self.globals.get(name).copied()
    }

    /// One that has to be there.
    pub(crate) fn kernel(&self, name: &str) -> Result<u64> {
        self.unique(name).ok_or_else(|| format!("the kernel has no symbol {name}, or several").into())
    }

    /// A name of what stands there in the kernel itself, the first in order.
    pub(crate) fn name_at(&self, address: u64) -> Option<&'t str> {
        self.kernel.iter().filter(|(_, places)| places.contains(&address)).map(|(name, _)| *name).min()
    }

    /// The trampoline of a key of the kernel's own for static calls, which is named as the key is.
    pub(crate) fn trampoline(&self, key: u64) -> Option<u64> {
        let name = self.calls.get(&key)?;
        self.unique(&format!("__SCT__{name}"))
    }

    /// The symbols of a module.
    pub(crate) fn of_module(&self, module: &str) -> &[(&'t str, u64)] {
        self.modules.get(module).map_or(&[], Vec::as_slice)
    }

    /// Those of a module's symbols that others may use, by name: what has a `__ksymtab_` entry.
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
    use super::Symbols;

    #[test]
    fn trampolines_are_named_as_their_keys_are() {
        let text = "ffffffff81000000 T __SCT__call\nffffffff82000000 D __SCK__call\nffffffff82000008 D __SCK__other\n";
        let symbols = Symbols::parse(text).unwrap();
        assert_eq!(symbols.trampoline(0xffff_ffff_8200_0000), Some(0xffff_ffff_8100_0000));
        assert_eq!(symbols.trampoline(0xffff_ffff_8200_0008), None);
    }

    #[test]
    fn a_global_symbol_may_have_the_name_of_a_local_one() {
        let text = "ffffffff81000000 t read\nffffffff81000010 T read\nffffffff81000020 t own\n";
        let symbols = Symbols::parse(text).unwrap();
        assert_eq!((symbols.global("read"), symbols.unique("read")), (Some(0xffff_ffff_8100_0010), None));
        assert_eq!(symbols.global("own"), None);
    }

    #[test]
    fn exports_are_what_has_an_entry() {
        let text = "ffffffff81000000 T start\nffffffff81000000 T twice\nffffffff81000010 t twice\n\
                    ffffffffc0000000 t offered\t[m]\nffffffffc0000010 r __ksymtab_offered\t[m]\n\
                    ffffffffc0000020 t own\t[m]\n";
        let symbols = Symbols::parse(text).unwrap();
        assert_eq!(symbols.unique("start"), Some(0xffff_ffff_8100_0000));
        assert_eq!(symbols.unique("twice"), None);
        assert_eq!(symbols.of_module("m").len(), 3);
        assert_eq!(symbols.exports().into_iter().collect::<Vec<_>>(), [("offered", 0xffff_ffff_c000_0000)]);
        assert!(Symbols::parse("ffffffff81000000 T").is_err());
    }
}
