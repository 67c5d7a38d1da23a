//! Counts the sites that lie within eight aligned bytes, so that one store could change them.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::Write;
use std::fs;

use modload_edit::{index, wide};
use modload_fixtures::{Compiler, Kernel, Language, generate_medium, object_from_text};
use object::elf::{R_X86_64_PC32, R_X86_64_PLT32};
use object::read::elf::ElfFile64;
use object::{Object, ObjectSection, ObjectSymbol, RelocationFlags, RelocationTarget, SectionIndex, SectionKind};

/// Tables of sites, with the distance of their records in bytes. Each record begins with the site's address.
const TABLES: [(&str, u64); 4] =
    [("__mcount_loc", 8), ("__patchable_function_entries", 8), ("__jump_table", 16), (".static_call_sites", 8)];
const CALLS: &str = "direct calls";

/// The statistics of sites of one kind.
#[derive(Default)]
struct Share {
    /// The number of sites that begin at each byte of eight aligned ones.
    begin: [u64; 8],
    /// The number of sites within eight aligned bytes.
    within: u64,
    /// The number of sites in sections with a smaller alignment, whose places are not known.
    anywhere: u64,
}

type Shares = BTreeMap<&'static str, Share>;

/// Returns the table for the generated object with function NOPs, without and with ENDBR64 before them, and for
/// Debian's modules.
pub(crate) fn table(with_kernel: bool) -> Result<String, Box<dyn Error>> {
    let mut table =
        format!("{:<58} {:>9} {:>9} {:>7}  begin at byte 0 .. 7 of eight\n", "", "sites", "within", "share");
    let source = generate_medium(1000, 12);
    for protection in ["-fcf-protection=none", "-fcf-protection=full"] {
        let flags = ["-O2", "-fPIC", "-fpatchable-function-entry=5", protection];
        let object = object_from_text("stores", Language::C, &source, Compiler::Gcc, &flags)?;
        let mut shares = Shares::new();
        count(&fs::read(object)?, &mut shares)?;
        print(&mut table, protection, &shares)?;
    }
    match Kernel::find().filter(|_| with_kernel) {
        Some(kernel) => {
            let mut shares = Shares::new();
            let modules = kernel.modules()?;
            for module in &modules {
                count(&fs::read(module)?, &mut shares)?;
            }
            print(&mut table, &format!("{} modules", modules.len()), &shares)?;
        }
        None if with_kernel => eprintln!("SKIPPED Debian's modules: MODLOAD_KERNEL does not name a kernel"),
        None => {}
    }
    Ok(table)
}

fn print(table: &mut String, source_name: &str, shares: &Shares) -> Result<(), Box<dyn Error>> {
    for (kind, Share { begin, within, anywhere }) in shares {
        let sites: u64 = begin.iter().sum();
        if sites == 0 {
            return Err(format!("{source_name}: no sites in {kind}").into());
        }
        let tenths = within * 1000 / sites;
        let name = format!("{source_name}: {kind}");
        write!(table, "{name:<58} {sites:>9} {within:>9} {:>5}.{}%  {begin:?}", tenths / 10, tenths % 10)?;
        writeln!(table, "{}", if *anywhere == 0 { String::new() } else { format!(", {anywhere} anywhere") })?;
    }
    Ok(())
}

/// Adds an object's sites.
fn count(bytes: &[u8], shares: &mut Shares) -> Result<(), Box<dyn Error>> {
    let file = ElfFile64::<object::Endianness>::parse(bytes)?;
    let mut take = |kind, section, at| -> Result<(), Box<dyn Error>> {
        let section = file.section_by_index(section)?;
        let site = section.data()?.get(index(at)..).ok_or("a site outside of its section")?;
        shares.entry(kind).or_default().take(section.align() >= 8, at, length(site));
        Ok(())
    };
    for section in file.sections() {
        let table = TABLES.into_iter().find(|(name, _)| section.name() == Ok(name));
        for (at, relocation) in section.relocations() {
            if let Some((kind, apart)) = table {
                if at.is_multiple_of(apart) {
                    let (section, site) = target(&file, &relocation)?;
                    take(kind, section, site)?;
                }
            } else if section.kind() == SectionKind::Text && is_near(relocation.flags()) {
                let call = at.checked_sub(1).ok_or("a relocation without an instruction")?;
                if section.data()?.get(index(call)) == Some(&0xe8) {
                    take(CALLS, section.index(), call)?;
                }
            }
        }
    }
    Ok(())
}

fn is_near(flags: RelocationFlags) -> bool {
    matches!(flags, RelocationFlags::Elf { r_type: R_X86_64_PC32 | R_X86_64_PLT32 })
}

/// Returns the section and the offset to which a record refers.
fn target(file: &ElfFile64<'_>, relocation: &object::Relocation) -> Result<(SectionIndex, u64), Box<dyn Error>> {
    let RelocationTarget::Symbol(symbol) = relocation.target() else { return Err("a record without a symbol".into()) };
    let symbol = file.symbol_by_index(symbol)?;
    let section = symbol.section_index().ok_or("a record of a symbol that is not defined")?;
    Ok((section, symbol.address().wrapping_add_signed(relocation.addend())))
}

/// Returns the length of a site: a jump or a NOP of two bytes, or an instruction of five bytes.
fn length(site: &[u8]) -> u64 {
    match site {
        [0xeb, ..] | [0x66, 0x90, ..] => 2,
        _ => 5,
    }
}

impl Share {
    fn take(&mut self, is_placed: bool, at: u64, len: u64) {
        if !is_placed {
            self.anywhere += 1;
            return;
        }
        let begin = at % wide(self.begin.len());
        self.begin[index(begin)] += 1;
        self.within += u64::from(begin + len <= 8);
    }
}
