//! Memory of another machine for an object: an address for each section and for each undefined symbol of the object.

use std::collections::HashMap;
use std::sync::Arc;

use modload_alternatives::Features;
use modload_edit::Addr;
use modload_loader::{Kallsyms, Machine, MemoryImage, Placement, PrepareError};
use object::LittleEndian as LE;
use object::elf::{FileHeader64, SHN_UNDEF, SHT_SYMTAB};
use object::read::elf::{FileHeader, Sym};

/// Of a section's memory, of all together.
const SIZE_LIMIT: u64 = 1 << 18;

const THUNKS: u64 = 0xffff_ffff_8200_0000;

/// Made for one object; mutants of the object are then placed at the same addresses.
pub(crate) struct Elsewhere {
    machine: Machine,
    addresses: HashMap<String, Addr>,
}

impl Elsewhere {
    /// For an archive there is nothing.
    pub(crate) fn for_object(bytes: &[u8]) -> Elsewhere {
        let (addresses, symbols) = places(bytes).unwrap_or_default();
        let symbols = Arc::new(Kallsyms::parse((symbols + &thunks()).as_bytes()).unwrap());
        Elsewhere { machine: Machine::new(symbols, Features::NONE), addresses }
    }

    pub(crate) fn image(&self, bytes: &[u8]) -> Result<MemoryImage, PrepareError> {
        let Elsewhere { machine, addresses } = self;
        let placement = Placement { bytes, addresses, percpu: None, size_limit: SIZE_LIMIT.max(wide(bytes)) };
        MemoryImage::of(&placement, machine, |_| Ok(()), |_| {})
    }
}

/// Where Linux's thunks for indirect branches are, by the numbers of registers.
fn thunks() -> String {
    const REGISTERS: [&str; 8] = ["rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi"];
    let registers = REGISTERS.into_iter().map(str::to_owned).chain((8..16).map(|number| format!("r{number}")));
    let mut text = format!("{THUNKS:x} T __x86_indirect_thunk_array\n");
    for (register, at) in registers.zip((THUNKS..).step_by(32)) {
        text.push_str(&format!("{at:x} T __x86_indirect_thunk_{register}\n"));
    }
    text
}

fn wide(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap()
}

/// Returns addresses of sections, and a text in the format of /proc/kallsyms.
fn places(bytes: &[u8]) -> Option<(HashMap<String, Addr>, String)> {
    let header = FileHeader64::<LE>::parse(bytes).ok()?;
    let sections = header.sections(LE, bytes).ok()?;
    let (mut addresses, mut symbols) = (HashMap::new(), String::new());
    for (section, at) in sections.iter().zip((0xffff_ffff_c000_0000..).step_by(1 << 20)) {
        let name = sections.section_name(LE, section).ok()?;
        addresses.insert(String::from_utf8(name.to_vec()).ok()?, Addr::new(at));
    }
    let table = sections.symbols(LE, bytes, SHT_SYMTAB).ok()?;
    for (symbol, at) in table.iter().zip((0xffff_ffff_8100_0000_u64..).step_by(16)) {
        let name = std::str::from_utf8(symbol.name(LE, table.strings()).ok()?).ok()?;
        let is_thunk = name.starts_with("__x86_indirect_thunk_");
        if symbol.st_shndx(LE) == SHN_UNDEF && !name.is_empty() && !is_thunk {
            symbols.push_str(&format!("{at:x} T {name}\n"));
        }
    }
    Some((addresses, symbols))
}
