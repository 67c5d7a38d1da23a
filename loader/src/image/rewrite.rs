//! The rewriting engines that work before COMING, and those of function entries, in their order.

use modload_abi::section;
use modload_alternatives as alternatives;
use modload_edit::{Addr, Engine, Ledger, ORDER, Space};
use modload_paravirt::paravirt;

use super::{Machine, sort, table};
use crate::error::Error;
use crate::file::File;

/// Runs every engine for whose records the file has a section.
pub(super) fn rewrite(
    file: &File<'_>,
    places: &[Option<Addr>],
    machine: &Machine,
    code: &mut Ledger<'_, Space>,
    share: &mut impl FnMut(&'static str),
) -> Result<(), Error> {
    let facts = &machine.facts;
    let table = |name| table(file, places, name).filter(|table| !table.is_empty());
    // Linux sorts this one before everything else.
    if let Some(table) = table(section::EX_TABLE) {
        sort::ex_table(&table, code)?;
    }
    for (engine, _) in ORDER {
        match engine {
            Engine::Paravirt => {
                if let Some(table) = table(section::PARAINSTRUCTIONS) {
                    paravirt(&table, &machine.operations, code).map_err(Error::rewrite)?;
                }
                share("paravirt");
            }
            Engine::Retpoline => {
                if let Some(table) = table(section::RETPOLINE_SITES) {
                    alternatives::retpolines(&table, facts, code).map_err(Error::rewrite)?;
                }
                share("retpolines");
            }
            Engine::Return => {
                if let Some(table) = table(section::RETURN_SITES) {
                    alternatives::returns(&table, facts, code).map_err(Error::rewrite)?;
                }
                share("returns");
            }
            Engine::Alternative => {
                if let Some(table) = table(section::ALTINSTRUCTIONS) {
                    let profile = alternatives::Profile::Linux61;
                    alternatives::alternatives(&table, profile, facts, code).map_err(Error::rewrite)?;
                }
                share("alternatives");
            }
            Engine::Endbr => {
                if let Some(table) = table(section::IBT_ENDBR_SEAL) {
                    alternatives::endbr_seals(&table, code).map_err(Error::rewrite)?;
                }
            }
            Engine::SmpLock => {
                let text = super::table(file, places, section::TEXT);
                if let (Some(table), Some(text)) = (table(section::SMP_LOCKS), text) {
                    alternatives::smp_locks(&table, (text.at, text.size), facts, code).map_err(Error::rewrite)?;
                }
            }
            Engine::Sort => {
                if let (Some(ip), Some(orc)) = (table(section::ORC_UNWIND_IP), table(section::ORC_UNWIND)) {
                    sort::orc(&ip, &orc, code)?;
                }
                if let Some(table) = table(section::MCOUNT_LOC) {
                    sort::addresses(&table, code)?;
                }
                share("sort");
            }
            Engine::Fentry => {
                for name in [section::MCOUNT_LOC, section::PATCHABLE_FUNCTION_ENTRIES] {
                    if let Some(table) = table(name) {
                        alternatives::function_entries(&table, code).map_err(Error::rewrite)?;
                    }
                }
                share("function entries");
            }
            // Later than COMING: they are for those who know about keys.
            Engine::JumpLabel | Engine::StaticCall => {}
            Engine::Relocation | Engine::Slot | Engine::Indirect => {}
        }
    }
    Ok(())
}
