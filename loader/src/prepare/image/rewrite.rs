//! The rewriting engines that work before COMING, and that of function entries.

use modload_abi::section;
use modload_edit::{Addr, CodeBuffers, Ledger};

use super::machine::Machine;
use super::{place, sort};
use crate::elf::file::File;
use crate::prepare::error::PrepareError;
use crate::prepare::specialise::{follow, in_order, tables};

/// Runs every engine for which the file has a table, and sorts the tables that Linux sorts.
pub(super) fn rewrite(
    file: &File<'_>,
    places: &[Option<Addr>],
    machine: &Machine,
    code: &mut Ledger<'_, CodeBuffers>,
    share: &mut impl FnMut(&'static str),
) -> Result<(), PrepareError> {
    let table = |name| place::table(file, places, name).filter(|table| !table.is_empty());
    if let Some(table) = table(section::EX_TABLE) {
        sort::ex_table(&table, code)?;
    }
    share("sort");
    let text = place::table(file, places, section::TEXT).map_or((Addr::NULL, 0), |text| (text.at, text.size));
    let found: Vec<_> = tables().filter_map(|(engine, name)| Some((engine, name, table(name)?))).collect();
    for (engine, name, table) in in_order(&found) {
        follow(engine, name, &table, text, machine.facts(), &machine.rewriting, code)?;
        share(name);
    }
    if let (Some(ip), Some(orc)) = (table(section::ORC_UNWIND_IP), table(section::ORC_UNWIND)) {
        sort::orc(&ip, &orc, code)?;
    }
    if let Some(table) = table(section::MCOUNT_LOC) {
        sort::addresses(&table, code)?;
    }
    share("sort");
    Ok(())
}
