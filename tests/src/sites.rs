//! Published text that is made of sites of every form, to be poked: on and off.

use std::mem::transmute;
use std::ptr;
use std::sync::Arc;

use modload_edit::{Addr, Edit, EditOrigin, EditSet, Engine, NOPS, Sink, ZERO, index, wide};
use modload_text::{Arena, Describe, Published, TextLock};

/// Functions `int f(void)`, one after the other. Each has a site that is off or on, and the result shows the state.
#[derive(Debug)]
pub struct Sites {
    _text: Published,
    base: Addr,
    stride: u64,
    sites: Vec<Site>,
}

/// The address of a site, its bytes off and on, and the results of its function.
#[derive(Debug)]
struct Site {
    at: Addr,
    off: Vec<u8>,
    on: Vec<u8>,
    returns: [i32; 2],
}

/// A name for stray calls.
struct Named;

impl Describe for Named {
    fn module(&self) -> &'static str {
        "sites"
    }

    fn symbol(&self, _: Addr) -> Option<(&[u8], u64)> {
        None
    }
}

/// mov $VALUE,%eax
const fn result(value: u8) -> [u8; 5] {
    [0xb8, value, 0, 0, 0]
}

const RET: u8 = 0xc3;
/// The number of forms.
const FORMS: usize = 8;
/// The size of the largest form.
const LARGEST: u64 = 40;

/// An instruction with a 32-bit distance.
fn near(opcode: &[u8], at: Addr, to: Addr) -> Vec<u8> {
    let behind = at + wide(opcode.len()) + 4;
    let distance = i32::try_from(to - behind).unwrap();
    [opcode, &distance.to_le_bytes()[..]].concat()
}

/// Returns the function of one form at `at`: its bytes with the site off, the site, and both of its results.
fn function(form: usize, at: Addr) -> (Vec<u8>, Site) {
    let two = [&result(2)[..], &[RET]].concat();
    let slot_len = 8;
    // The places of the parts: [before][site][between][two][slot]
    let layout = |before: &[u8], len: usize| {
        let site = at + wide(before.len());
        let target = site + wide(len) + 6;
        (site, target, target + wide(two.len()))
    };
    let one = result(1);
    let (before, len): (&[u8], usize) = match form {
        0 => (&[], 5),
        1 => (&[], 2),
        2 | 4 => (&[], 5),
        3 => (&one, 5),
        _ => (&one, 6),
    };
    let (site, target, slot) = layout(before, len);
    let nop = |len: usize| NOPS[len - 1].to_vec();
    // A function that returns 1, if the form needs one: the six bytes between site and target.
    let one_returned = [&one[..], &[RET]].concat();
    let (off, on, between, returns) = match form {
        0 => (nop(5), near(&[0xe9], site, target), one_returned, [1, 2]),
        1 => (nop(2), vec![0xeb, 6], one_returned, [1, 2]),
        // The call's own return is at the place of the function that returns 1, so that function is placed behind
        // everything.
        2 => (near(&[0xe8], site, slot), near(&[0xe8], site, target), vec![RET; 6], [1, 2]),
        3 => (vec![RET, 0xcc, 0xcc, 0xcc, 0xcc], near(&[0xe9], site, target), vec![RET; 6], [1, 2]),
        4 => (ZERO.to_vec(), near(&[0xe8], site, target), vec![RET; 6], [0, 2]),
        5 => (nop(6), near(&[0x67, 0xe8], site, target), vec![RET; 6], [1, 2]),
        6 => (nop(6), near(&[0xff, 0x15], site, slot), vec![RET; 6], [1, 2]),
        _ => (nop(6), near(&[0xff, 0x25], site, slot), vec![RET; 6], [1, 2]),
    };
    let behind = if form == 2 { [&one[..], &[RET, 0xcc, 0xcc]].concat() } else { target.get().to_le_bytes().to_vec() };
    assert_eq!(behind.len(), slot_len);
    let bytes = [before, &off, &between, &two, &behind].concat();
    (bytes, Site { at: site, off, on, returns })
}

impl Sites {
    /// Publishes `count` functions, all off. The distance between the first bytes of two functions is `stride` bytes.
    /// The forms take turns, or all functions have one form.
    ///
    /// # Panics
    /// If `stride` is too small, or the text cannot be had.
    #[must_use]
    pub fn publish(count: usize, stride: u64, form: Option<usize>) -> Sites {
        assert!(stride >= LARGEST);
        let arena = Arena::get().unwrap();
        let mut staged = arena.stage_text(wide(count) * stride, 64).unwrap();
        staged.bytes_mut().fill(modload_text::INT3);
        let base = staged.addr();
        let mut sites = Vec::with_capacity(count);
        for number in 0..count {
            let offset = wide(number) * stride;
            let (bytes, site) = function(form.unwrap_or(number % FORMS), base + offset);
            staged.bytes_mut()[index(offset)..][..bytes.len()].copy_from_slice(&bytes);
            sites.push(site);
        }
        staged.set_owner(Arc::new(Named));
        let text = staged.publish(&mut TextLock::take()).unwrap();
        Sites { _text: text, base, stride, sites }
    }

    /// Returns the number of functions.
    #[must_use]
    pub fn len(&self) -> usize {
        self.sites.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.sites.is_empty()
    }

    /// Returns the start of the text.
    #[must_use]
    pub fn base(&self) -> Addr {
        self.base
    }

    /// Returns the address of a site.
    #[must_use]
    pub fn at(&self, number: usize) -> Addr {
        self.sites[number].at
    }

    /// The edits that turn these sites on.
    ///
    /// # Panics
    /// If two sites overlap, which never happens.
    #[must_use]
    pub fn on(&self, numbers: impl IntoIterator<Item = usize>) -> EditSet {
        self.edits(numbers, |site| (&site.off, &site.on))
    }

    /// The edits that turn these sites off.
    ///
    /// # Panics
    /// If two sites overlap, which never happens.
    #[must_use]
    pub fn off(&self, numbers: impl IntoIterator<Item = usize>) -> EditSet {
        self.edits(numbers, |site| (&site.on, &site.off))
    }

    fn edits<'s>(
        &'s self,
        numbers: impl IntoIterator<Item = usize>,
        pick: impl Fn(&'s Site) -> (&'s Vec<u8>, &'s Vec<u8>),
    ) -> EditSet {
        let mut edits = EditSet::new();
        for number in numbers {
            let site = &self.sites[number];
            let (old, new) = pick(site);
            let why = EditOrigin { engine: Engine::JumpLabel, section: 0, record: u32::try_from(number).unwrap() };
            edits.edit(Edit { at: site.at, old, new, why }).unwrap();
        }
        edits
    }

    /// Calls a function.
    #[must_use]
    pub fn call(&self, number: usize) -> i32 {
        let at = index((self.base + wide(number) * self.stride).get());
        // SAFETY: `publish` has put `int f(void)` at this address, which is well formed whether the site is off or on.
        let function = unsafe { transmute::<*const (), extern "C" fn() -> i32>(ptr::with_exposed_provenance(at)) };
        function()
    }

    /// Returns the results of a function when its site is off, and when its site is on.
    #[must_use]
    pub fn returns(&self, number: usize) -> [i32; 2] {
        self.sites[number].returns
    }
}
