//! gdb's JIT interface: each module has a symbol file that gdb reads from memory.
//!
//! <https://sourceware.org/gdb/current/onlinedocs/gdb.html/JIT-Interface.html>

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use modload_loader::{Kept, Onlooker, Seen, Shown};

use crate::builder::HostBuilder;
use crate::onlookers::onlooker_data;
use crate::symbol_file::{self, SymbolFileParts};

impl HostBuilder {
    /// Tells gdb about each module through gdb's JIT interface: gdb then shows function names, unwinds frames and sets
    /// breakpoints (also before the module is loaded, with `set breakpoint pending on`). With debug information it also
    /// shows lines and variables. gdb knows a module from before its first instruction until after its last, also if
    /// gdb attaches later.
    ///
    /// Each module then keeps a copy of its symbols and debug information in memory. gdb needs some time per module: a
    /// load under gdb stops the process.
    #[must_use]
    pub fn debugger(mut self) -> HostBuilder {
        self.onlookers.push(Arc::new(Debugger));
        self
    }
}

/// An onlooker that registers the symbol file of each module.
#[derive(Debug)]
pub(crate) struct Debugger;

impl Onlooker for Debugger {
    fn published(&self, seen: &Seen<'_>) -> Shown {
        let Some(image) = symbol_file::image(seen, SymbolFileParts::All) else {
            tracing::warn!(module = seen.module().name(), "no symbol file could be made for debuggers");
            return Shown::default();
        };
        let lasting = symbol_file::has_init(seen).then(|| symbol_file::image(seen, SymbolFileParts::Lasting)).flatten();
        let current = CurrentFile(Arc::new(AtomicU64::new(onlooker_data().files.add(image))));
        Shown {
            until_init: lasting.map(|image| {
                let kept: Box<dyn Kept> = Box::new(Replacement { current: current.clone(), image: Some(image) });
                kept
            }),
            until_gone: Some(Box::new(RegistrationEnd(current))),
        }
    }
}

/// The number of the symbol file that is registered for a module. Changed only under the lock of the files.
#[derive(Clone, Debug)]
struct CurrentFile(Arc<AtomicU64>);

impl CurrentFile {
    /// Removes the registered file. Then registers `image`, if there is one and the first file was still registered.
    fn replace(&self, image: Option<Box<[u8]>>) {
        let files = &mut onlooker_data().files;
        // In this order, so that no two files claim the same addresses.
        if files.remove(self.0.load(Ordering::Relaxed))
            && let Some(image) = image
        {
            self.0.store(files.add(image), Ordering::Relaxed);
        }
    }
}

/// Dropped with the init sections. From then on their addresses may belong to another module, and so may breakpoints
/// that gdb would set there.
#[derive(Debug)]
struct Replacement {
    current: CurrentFile,
    image: Option<Box<[u8]>>,
}

impl Drop for Replacement {
    fn drop(&mut self) {
        self.current.replace(self.image.take());
    }
}

/// Dropped before the text is unpublished, while gdb can still remove its breakpoints.
#[derive(Debug)]
struct RegistrationEnd(CurrentFile);

impl Drop for RegistrationEnd {
    fn drop(&mut self) {
        self.0.replace(None);
    }
}
