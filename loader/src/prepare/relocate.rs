//! Stage *relocate*: GOT, PLT and every section's relocations, as edits of the staged memory.

use modload_abi::section;
use modload_edit::Ledger;
use modload_relocs::{OnDiscarded, RelocCounts, RelocatedSection, Slots};

use crate::elf::file::{File, FileSection, Relas};
use crate::prepare::deferred::awaited;
use crate::prepare::error::{PrepareError, RelocationAdvice};
use crate::prepare::layout::ModuleLayout;
use crate::prepare::memory::Staging;
use crate::prepare::resolved::Resolved;

/// Applies all relocations. `low` says whether the memory lies in the low 2 GiB.
pub(crate) fn relocate(
    file: &File<'_>,
    layout: &ModuleLayout,
    resolved: &Resolved,
    memory: &mut Staging,
    low: bool,
) -> Result<RelocCounts, PrepareError> {
    let slots = layout.slots.clone().place(memory.addr(layout.got), memory.addr(layout.plt));
    let slots = slots.with_thread_local(resolved.thread_local.clone());
    let symbols = &resolved.symbols[..];
    fill(&slots, file, layout, symbols, memory).map_err(|source| explain(file, source, low))?;
    let mut counts = RelocCounts::default();
    for relas in early(file) {
        let (Some(section), Some(spot)) = (file.section(relas.target), layout.section(relas.target)) else { continue };
        let (addr, discarded) = (memory.addr(spot), on_discarded(section));
        let target = RelocatedSection { section: relas.section, addr, bytes: section.data, discarded };
        let mut window = memory.window(spot, section.size);
        let applied = modload_relocs::apply(&target, relas.records, symbols, &slots, &mut window);
        counts += applied.map_err(|source| explain(file, source, low))?;
    }
    Ok(counts)
}

/// [`relocate`] through a ledger, which records every edit.
pub(crate) fn relocate_kept(
    file: &File<'_>,
    layout: &ModuleLayout,
    resolved: &Resolved,
    ledger: &mut Ledger<'_, Staging>,
    low: bool,
) -> Result<(), PrepareError> {
    let addr = |ledger: &Ledger<'_, Staging>, spot| ledger.code().addr(spot);
    let (got, plt) = (addr(ledger, layout.got), addr(ledger, layout.plt));
    let slots = layout.slots.clone().place(got, plt).with_thread_local(resolved.thread_local.clone());
    let symbols = &resolved.symbols[..];
    let explained = |source| explain(file, source, low);
    slots.fill_got(symbols, ledger).map_err(explained)?;
    slots.fill_plt(ledger).map_err(explained)?;
    let (entries, pointers) = (addr(ledger, layout.indirect_plt), addr(ledger, layout.indirect_slots));
    layout.indirect.fill_plt(entries, pointers, file.symbol_table, ledger).map_err(explained)?;
    layout.indirect.fill_slots(entries, pointers, file.symbol_table, ledger).map_err(explained)?;
    for relas in early(file) {
        let (Some(section), Some(spot)) = (file.section(relas.target), layout.section(relas.target)) else { continue };
        let target = RelocatedSection {
            section: relas.section,
            addr: addr(ledger, spot),
            bytes: section.data,
            discarded: on_discarded(section),
        };
        modload_relocs::apply(&target, relas.records, symbols, &slots, ledger).map_err(explained)?;
    }
    Ok(())
}

/// Returns the relocations that are applied with the module itself, including a live patch's relocations against the
/// host.
fn early<'f, 'a>(file: &'f File<'a>) -> impl Iterator<Item = &'f Relas<'a>> {
    file.relas.iter().chain(file.klp_relas.iter().filter(|relas| awaited(file, relas).is_none()))
}

/// Rows and records of entries for functions that are not there do no harm.
fn on_discarded(section: &FileSection<'_>) -> OnDiscarded {
    let of_functions = [section::EH_FRAME, section::PATCHABLE_FUNCTION_ENTRIES, section::MCOUNT_LOC].map(str::as_bytes);
    if of_functions.contains(&section.name) { OnDiscarded::LeaveZero } else { OnDiscarded::Refuse }
}

fn fill(
    slots: &Slots,
    file: &File<'_>,
    layout: &ModuleLayout,
    symbols: &[modload_relocs::RelocSymbol],
    memory: &mut Staging,
) -> Result<(), modload_relocs::RelocError> {
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

pub(crate) fn explain(file: &File<'_>, source: modload_relocs::RelocError, low: bool) -> PrepareError {
    let site = source.site();
    let mut all = file.relas.iter().chain(&file.klp_relas);
    let target = all.find(|relas| relas.section == site.section).map_or(0, |relas| relas.target);
    let overflow = matches!(source, modload_relocs::RelocError::Overflow { .. });
    PrepareError::Relocation {
        place: file.display_place(target, site.offset),
        symbol: file.display_name(site.symbol),
        advice: if overflow && !low { RelocationAdvice::NoLowMemory } else { RelocationAdvice::None },
        error: Box::new(source),
    }
}
