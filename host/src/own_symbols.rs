//! The symbols of the program itself, exported or not. A live patch's symbols of `vmlinux` refer to them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};

use modload_edit::Addr;
use object::elf::{FileHeader64, SymbolType};
use object::read::elf::{ElfFile, FileHeader, Sym};
use object::{LittleEndian, ReadCache, elf};

/// `AT_ENTRY` of `<linux/auxvec.h>`: the entry point of the program.
const AT_ENTRY: u64 = 9;

/// Returns the functions and variables of these names, in the order of the program's symbol table. Returns none if the
/// table was stripped.
pub(crate) fn own_symbols<'n>(names: &BTreeSet<&'n [u8]>) -> BTreeMap<&'n [u8], Vec<Addr>> {
    let mut own = BTreeMap::<_, Vec<_>>::new();
    // A file that cannot be read has no symbols. A patch that needs one is refused with its name.
    let Ok(program) = File::open("/proc/self/exe") else { return own };
    let cache = ReadCache::new(program);
    let Ok(file) = ElfFile::<FileHeader64<LittleEndian>, _>::parse(&cache) else { return own };
    let Some(entry) = entry() else { return own };
    let bias = entry.wrapping_sub(file.elf_header().e_entry(LittleEndian));
    let table = file.elf_symbol_table();
    for symbol in table.symbols().iter() {
        let is_there = !symbol.is_undefined(LittleEndian) && symbol.st_shndx(LittleEndian) != elf::SHN_ABS;
        if !is_kind(symbol.st_type()) || !is_there {
            continue;
        }
        let wanted = table.symbol_name(LittleEndian, symbol).ok().and_then(|name| names.get(name));
        if let Some(name) = wanted {
            own.entry(*name).or_default().push(Addr::new(symbol.st_value(LittleEndian).wrapping_add(bias)));
        }
    }
    own
}

fn is_kind(kind: SymbolType) -> bool {
    matches!(kind, elf::STT_FUNC | elf::STT_OBJECT | elf::STT_NOTYPE)
}

/// Returns the entry point of the running program, from the auxiliary vector.
fn entry() -> Option<u64> {
    let vector = fs::read("/proc/self/auxv").ok()?;
    let number = |bytes: &[u8]| bytes.try_into().map_or(0, u64::from_ne_bytes);
    let mut pairs = vector.chunks_exact(16).map(|pair| pair.split_at(8));
    pairs.find(|(kind, _)| number(kind) == AT_ENTRY).map(|(_, value)| number(value))
}

#[cfg(test)]
mod tests {
    use modload_edit::Addr;

    use super::{entry, own_symbols};

    #[test]
    fn the_program_has_its_own_symbols() {
        // The program's entry point is the C library's startup code.
        let (start, none): (&[u8], &[u8]) = (b"_start", b"there_is_none_of_this_name");
        let own = own_symbols(&[start, none].into());
        assert_eq!(own, [(start, vec![Addr::new(entry().unwrap())])].into());
    }
}
