//! Definitions that are replaced by another module's or by a library's: `prepare/vague.rs` has the rule.

use modload_edit::Addr;
use modload_relocs::TlsBlock;
use modload_tls::LibraryVariable;
use object::elf;

use crate::elf::file::FileSymbol;
use crate::modules::recorder::Recorder;
use crate::modules::registry::{Export, ExportTable, FoundExport};
use crate::operate::error::Error;
use crate::operate::judge::WantedUse;
use crate::operate::scene::Scene;
use crate::prepare::vague::{DefinitionStrength, SharedDefinitions};

/// A definition of another module or of a library.
#[derive(Clone, Copy, Debug)]
pub(crate) enum FoundDefinition {
    /// At this address.
    At(Addr),
    /// A thread-local variable at this offset of another module's block.
    InBlock(Addr, TlsBlock),
    /// A thread-local variable of a library.
    InLibrary(LibraryVariable),
}

impl FoundDefinition {
    /// Returns an export of a module.
    pub(crate) fn exported(addr: Addr, block: Option<TlsBlock>) -> FoundDefinition {
        block.map_or(FoundDefinition::At(addr), |block| FoundDefinition::InBlock(addr, block))
    }
}

/// Returns the thread-local variable of a library of the process.
pub(crate) fn library_variable(name: &[u8], scene: Scene<'_>) -> Option<FoundDefinition> {
    let external = scene.of_process(name)?;
    modload_tls::library_variable(external.addr).map(FoundDefinition::InLibrary)
}

/// Returns the definition that replaces this one, if there is one: the host's, another module's, or that of a library of the
/// process. Another module is held from now on.
pub(crate) fn elsewhere(
    symbol: &FileSymbol<'_>,
    strength: DefinitionStrength,
    shared: SharedDefinitions,
    scene: Scene<'_>,
) -> Result<Option<FoundDefinition>, Error> {
    let name = symbol.name();
    let is_variable = symbol.kind == elf::STT_TLS;
    let is_shared = strength == DefinitionStrength::Unique || shared == SharedDefinitions::Globals;
    if symbol.visibility != elf::STV_DEFAULT || name.is_empty() || !is_shared {
        return Ok(None);
    }
    if let Some(external) =
        scene.externals.exported(name).filter(|_| strength != DefinitionStrength::Strong && !is_variable)
    {
        let (gpl_only, crc) = (external.gpl_only, external.crc);
        judge(&WantedUse { symbol: name, owner: "the host", gpl_only, namespace: &[], crc }, scene)?;
        return Ok(Some(FoundDefinition::At(external.addr)));
    }
    let tables = [
        (shared == SharedDefinitions::Globals).then_some(ExportTable::Exports),
        (strength == DefinitionStrength::Unique).then_some(ExportTable::Uniques),
    ];
    for table in tables.into_iter().flatten() {
        let Some((export, owner)) = scene.registry.export_of(table, name) else { continue };
        let both_strong = strength == DefinitionStrength::Strong && export.strength == DefinitionStrength::Strong;
        if both_strong || export.block.is_some() != is_variable {
            continue;
        }
        let Export { gpl_only, crc, namespace, .. } = &export;
        judge(&WantedUse { symbol: name, owner: &owner, gpl_only: *gpl_only, namespace, crc: *crc }, scene)?;
        if let FoundExport::Usable { addr, block } = scene.registry.use_export_of(table, scene.user, name, &export)? {
            return Ok(Some(FoundDefinition::exported(addr, block)));
        }
    }
    let of_process = || match is_variable {
        true => library_variable(name, scene),
        false => scene.of_process(name).map(|external| FoundDefinition::At(external.addr)),
    };
    Ok(if strength == DefinitionStrength::Unique { of_process() } else { None })
}

/// Asks the policy whether the module may use a symbol.
pub(crate) fn judge(wanted: &WantedUse<'_>, scene: Scene<'_>) -> Result<(), Error> {
    scene.judge.symbol(Recorder { registry: scene.registry, module: scene.name }, wanted)
}
