//! gdb's JIT interface: each module has a symbol file that gdb reads from memory.
//!
//! <https://sourceware.org/gdb/current/onlinedocs/gdb.html/JIT-Interface.html>

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use modload_loader::{Kept, Onlooker, Seen, Shown};

use crate::onlookers::told;
use crate::symbol_file::{self, Parts};

/// An onlooker that registers the symbol file of each module.
#[derive(Debug)]
pub(crate) struct Debugger;

impl Onlooker for Debugger {
    fn published(&self, seen: &Seen<'_>) -> Shown {
        let Some(image) = symbol_file::image(seen, Parts::All) else {
            tracing::warn!(module = seen.module().name(), "no symbol file could be made for debuggers");
            return Shown::default();
        };
        let lasting = symbol_file::has_init(seen).then(|| symbol_file::image(seen, Parts::Lasting)).flatten();
        let current = Current(Arc::new(AtomicU64::new(told().files.add(image))));
        Shown {
            until_init: lasting.map(|image| {
                let kept: Box<dyn Kept> = Box::new(Replacement { current: current.clone(), image: Some(image) });
                kept
            }),
            until_gone: Some(Box::new(Gone(current))),
        }
    }
}

/// The number of the symbol file that is registered for a module. Changed only under the lock of the files.
#[derive(Clone, Debug)]
struct Current(Arc<AtomicU64>);

impl Current {
    /// Removes the registered file. Then registers `image`, if there is one and the first file was still registered.
    fn replace(&self, image: Option<Box<[u8]>>) {
        let files = &mut told().files;
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
    current: Current,
    image: Option<Box<[u8]>>,
}

impl Drop for Replacement {
    fn drop(&mut self) {
        self.current.replace(self.image.take());
    }
}

/// Dropped before the text is unpublished, while gdb can still remove its breakpoints.
#[derive(Debug)]
struct Gone(Current);

impl Drop for Gone {
    fn drop(&mut self) {
        self.0.replace(None);
    }
}
