//! A loader that finds every symbol and never runs anything.

use modload_loader::{External, Externals, Faults, Injected, Stage};

/// Defines every symbol, at an address that is never called.
pub(crate) struct Everything;

impl Externals for Everything {
    fn exported(&self, _: &[u8]) -> Option<External> {
        None
    }

    fn fallback(&self, _: &[u8]) -> Option<External> {
        Some(External { addr: modload_edit::Addr::new(0x1234_5678), gpl_only: false, crc: None })
    }

    fn names(&self) -> Vec<String> {
        Vec::new()
    }
}

/// Nothing is run.
pub(crate) struct BeforeRunning;

impl Faults for BeforeRunning {
    fn before(&self, stage: Stage) -> Result<(), Injected> {
        if stage == Stage::Publish { Err(Injected) } else { Ok(()) }
    }
}
