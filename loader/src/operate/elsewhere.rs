//! Definitions that are replaced by another module's or by a library's: `prepare/vague.rs` has the rule.

use modload_edit::Addr;
use object::elf;

use crate::elf::file::FileSymbol;
use crate::modules::recorder::Recorder;
use crate::modules::registry::{Export, ExportTable, FoundExport};
use crate::operate::error::Error;
use crate::operate::judge::WantedUse;
use crate::operate::scene::Scene;
use crate::prepare::vague::{DefinitionStrength, SharedDefinitions};

/// Returns the definition that replaces this one, if there is one: the host's, another module's, or that of a library of the
/// process. Another module is held from now on.
pub(crate) fn elsewhere(
    symbol: &FileSymbol<'_>,
    strength: DefinitionStrength,
    shared: SharedDefinitions,
    scene: Scene<'_>,
) -> Result<Option<Addr>, Error> {
    let name = symbol.name();
    let is_shared = strength == DefinitionStrength::Unique || shared == SharedDefinitions::Globals;
    if symbol.visibility != elf::STV_DEFAULT || name.is_empty() || !is_shared {
        return Ok(None);
    }
    if let Some(external) = scene.externals.exported(name).filter(|_| strength != DefinitionStrength::Strong) {
        let (gpl_only, crc) = (external.gpl_only, external.crc);
        judge(&WantedUse { symbol: name, owner: "the host", gpl_only, namespace: &[], crc }, scene)?;
        return Ok(Some(external.addr));
    }
    let tables = [
        (shared == SharedDefinitions::Globals).then_some(ExportTable::Exports),
        (strength == DefinitionStrength::Unique).then_some(ExportTable::Uniques),
    ];
    for table in tables.into_iter().flatten() {
        let Some((export, owner)) = scene.registry.export_of(table, name) else { continue };
        if strength == DefinitionStrength::Strong && export.strength == DefinitionStrength::Strong {
            continue;
        }
        let Export { gpl_only, crc, namespace, .. } = &export;
        judge(&WantedUse { symbol: name, owner: &owner, gpl_only: *gpl_only, namespace, crc: *crc }, scene)?;
        if let FoundExport::Usable { addr } = scene.registry.use_export_of(table, scene.user, name, &export)? {
            return Ok(Some(addr));
        }
    }
    let of_process = || scene.externals.fallback(name).map(|external| external.addr);
    Ok(if strength == DefinitionStrength::Unique { of_process() } else { None })
}

fn judge(wanted: &WantedUse<'_>, scene: Scene<'_>) -> Result<(), Error> {
    scene.judge.symbol(Recorder { registry: scene.registry, module: scene.name }, wanted)
}
