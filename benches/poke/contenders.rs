//! The contenders. Each turns all of its sites on or off on request.
#![expect(unsafe_code, reason = "the floor is C, and its functions are called")]

use std::error::Error;
use std::ffi::c_int;
use std::hint::black_box;
use std::io;
use std::mem::transmute;

use modload_edit::{EditSet, index};
use modload_tests::Sites;
use modload_text::{TextLock, TrapMask, poke};

type Outcome = Result<(), Box<dyn Error>>;

/// A way of changing sites.
pub(crate) trait Contender: Sync {
    fn name(&self) -> &'static str;

    /// Returns whether a thread may execute the sites meanwhile.
    fn may_be_running(&self) -> bool {
        true
    }

    /// Prepares for the turns. [`Contender::end`] undoes this.
    fn begin(&self) -> Outcome {
        Ok(())
    }

    fn end(&self) -> Outcome {
        Ok(())
    }

    fn turn(&self, on: bool) -> Outcome;

    /// Calls the function of a site.
    fn call(&self, sites: &Sites, _floor: &Floor, site: usize) {
        black_box(sites.call(site));
    }
}

/// modload, with all sites in one batch.
pub(crate) struct Modload {
    on: EditSet,
    off: EditSet,
    mask: TrapMask,
}

impl Modload {
    pub(crate) fn new(sites: &Sites, count: usize, mask: TrapMask) -> Modload {
        Modload { on: sites.on(0..count), off: sites.off(0..count), mask }
    }
}

impl Contender for Modload {
    fn name(&self) -> &'static str {
        match self.mask {
            TrapMask::Trusted => "modload, trusted",
            TrapMask::Checked => "modload, checked",
            TrapMask::Held => "modload, held",
            TrapMask::Unheld => "modload, never held",
        }
    }

    fn turn(&self, on: bool) -> Outcome {
        poke(&mut TextLock::take(), if on { &self.on } else { &self.off }, self.mask)?;
        Ok(())
    }
}

/// modload, with a batch for each site.
pub(crate) struct OneByOne {
    batches: Vec<[EditSet; 2]>,
}

impl OneByOne {
    pub(crate) fn new(sites: &Sites, count: usize) -> OneByOne {
        OneByOne { batches: (0..count).map(|site| [sites.off([site]), sites.on([site])]).collect() }
    }
}

impl Contender for OneByOne {
    fn name(&self) -> &'static str {
        "modload, one by one"
    }

    fn turn(&self, on: bool) -> Outcome {
        for batch in &self.batches {
            poke(&mut TextLock::take(), &batch[usize::from(on)], TrapMask::Trusted)?;
        }
        Ok(())
    }
}

#[link(name = "poke", kind = "static")]
unsafe extern "C" {
    fn poke_open(sites: usize, stride: usize) -> *const u8;
    safe fn poke_handle_traps() -> c_int;
    safe fn poke_stop_handling() -> c_int;
    safe fn poke_passes(sites: usize, on: c_int) -> c_int;
    safe fn poke_chunks(sites: usize, on: c_int) -> c_int;
    safe fn poke_one_by_one(sites: usize, on: c_int) -> c_int;
    safe fn poke_stores(sites: usize, on: c_int) -> c_int;
    safe fn poke_flip_open(sites: usize, stride: usize) -> c_int;
    safe fn poke_flips(sites: usize, on: c_int) -> c_int;
    safe fn poke_three_writes() -> c_int;
}

fn done(result: c_int) -> Outcome {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error().into()) }
}

/// The text of the floor. Only the last opened one is used.
pub(crate) struct Floor {
    text: *const u8,
    stride: usize,
}

impl Floor {
    pub(crate) fn open(sites: usize, stride: u64) -> Result<Floor, Box<dyn Error>> {
        let stride = index(stride);
        // SAFETY: maps new memory. A text that was opened before stays mapped and is not used any more.
        let text = unsafe { poke_open(sites, stride) };
        if text.is_null() {
            return Err(io::Error::last_os_error().into());
        }
        done(poke_flip_open(sites, stride))?;
        Ok(Floor { text, stride })
    }

    pub(crate) fn contender(how: How, count: usize) -> FloorTurns {
        FloorTurns { how, count }
    }
}

// SAFETY: threads only read and call the text.
unsafe impl Sync for Floor {}

/// A way in which the floor changes sites.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum How {
    Passes,
    Chunks,
    OneByOne,
    Stores,
    Flips,
}

/// A contender that changes the floor's text in one of its ways.
pub(crate) struct FloorTurns {
    how: How,
    count: usize,
}

impl Contender for FloorTurns {
    fn name(&self) -> &'static str {
        match self.how {
            How::Passes => "C, three passes, alias",
            How::Chunks => "C, chunks of 256, alias",
            How::OneByOne => "C, one by one, alias",
            How::Stores => "C, one store each, alias",
            How::Flips => "C, mprotect flips",
        }
    }

    fn may_be_running(&self) -> bool {
        self.how != How::Flips
    }

    fn begin(&self) -> Outcome {
        done(poke_handle_traps())
    }

    fn end(&self) -> Outcome {
        done(poke_stop_handling())
    }

    fn turn(&self, on: bool) -> Outcome {
        let on = c_int::from(on);
        done(match self.how {
            How::Passes => poke_passes(self.count, on),
            How::Chunks => poke_chunks(self.count, on),
            How::OneByOne => poke_one_by_one(self.count, on),
            How::Stores => poke_stores(self.count, on),
            How::Flips => poke_flips(self.count, on),
        })
    }

    fn call(&self, _: &Sites, floor: &Floor, site: usize) {
        let at = floor.text.wrapping_add(site * floor.stride).cast::<()>();
        // SAFETY: the text there is an `int f(void)`, whether its site is off or on.
        let function = unsafe { transmute::<*const (), extern "C" fn() -> c_int>(at) };
        black_box(function());
    }
}

/// Three writes through /proc/self/mem and three synchronisations, and nothing else.
pub(crate) struct Three;

impl Contender for Three {
    fn name(&self) -> &'static str {
        "C, 3 writes and 3 syncs"
    }

    fn turn(&self, _: bool) -> Outcome {
        done(poke_three_writes())
    }
}
