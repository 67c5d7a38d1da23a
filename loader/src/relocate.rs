//! Stage *relocate*: GOT, PLT and every section's relocations, as edits of the staged memory.

use modload_abi::section;
use modload_relocs::{Counts, OnDiscarded, Slots, Target};

use crate::error::{Advice, Error};
use crate::file::File;
use crate::layout::Layout;
use crate::memory::Staging;
use crate::resolve::Resolved;

/// Applies all relocations. `low` says whether the memory lies in the low 2 GiB.
pub(crate) fn relocate(
    file: &File<'_>,
    layout: &Layout,
    resolved: &Resolved,
    memory: &mut Staging,
    low: bool,
) -> Result<Counts, Error> {
    let slots = layout.slots.clone().place(memory.addr(layout.got), memory.addr(layout.plt));
    let symbols = &resolved.symbols[..];
    fill(&slots, file, layout, symbols, memory).map_err(|source| explain(file, source, low))?;
    let mut counts = Counts::default();
    for relas in &file.relas {
        let (Some(section), Some(spot)) = (file.section(relas.target), layout.section(relas.target)) else { continue };
        let discarded =
            if section.name == section::EH_FRAME.as_bytes() { OnDiscarded::LeaveZero } else { OnDiscarded::Refuse };
        let target = Target { section: relas.section, addr: memory.addr(spot), bytes: section.data, discarded };
        let mut window = memory.window(spot, section.size);
        let applied = modload_relocs::apply(&target, relas.records, symbols, &slots, &mut window);
        counts += applied.map_err(|source| explain(file, source, low))?;
    }
    Ok(counts)
}

fn fill(
    slots: &Slots,
    file: &File<'_>,
    layout: &Layout,
    symbols: &[modload_relocs::Symbol],
    memory: &mut Staging,
) -> Result<(), modload_relocs::Error> {
    let (got, plt) = (layout.slots.got_size(), layout.slots.plt_size());
    if got != 0 {
        slots.fill_got(symbols, &mut memory.window(layout.got, got))?;
    }
    if plt != 0 {
        slots.fill_plt(&mut memory.window(layout.plt, plt))?;
    }
    let indirect = &layout.indirect;
    if !indirect.symbols().is_empty() {
        let (entries, pointers) = (memory.addr(layout.indirect_plt), memory.addr(layout.indirect_slots));
        let mut window = memory.window(layout.indirect_plt, indirect.plt_size());
        indirect.fill_plt(entries, pointers, file.symbol_table, &mut window)?;
        let mut window = memory.window(layout.indirect_slots, indirect.slots_size());
        indirect.fill_slots(entries, pointers, file.symbol_table, &mut window)?;
    }
    Ok(())
}

pub(crate) fn explain(file: &File<'_>, source: modload_relocs::Error, low: bool) -> Error {
    let site = source.site();
    let target = file.relas.iter().find(|relas| relas.section == site.section).map_or(0, |relas| relas.target);
    let overflow = matches!(source, modload_relocs::Error::Overflow { .. });
    Error::Relocation {
        place: file.display_place(target, site.offset),
        symbol: file.display_name(site.symbol),
        advice: if overflow && !low { Advice::NoLowMemory } else { Advice::None },
        error: Box::new(source),
    }
}
