//! The receivers of edits.

use thiserror::Error;

use crate::{Addr, Edit, EditOrigin, Engine, disassembled, index, wide};

/// A receiver of the edits of an engine, one by one, in the order in which the engine makes them.
pub trait Sink {
    /// Takes one edit.
    ///
    /// # Errors
    /// [`Rejected`]: the sink has taken no part of this edit.
    fn edit(&mut self, edit: Edit<'_>) -> Result<(), Rejected>;
}

/// An edit that a sink did not take.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum Rejected {
    /// The bytes in memory differ from `old` of the edit.
    #[error("{why} at {at}: expected {expected:02x?}, found {found:02x?}")]
    Mismatch {
        /// The address of the edit.
        at: Addr,
        /// `old` of the edit.
        expected: Vec<u8>,
        /// The bytes in memory.
        found: Vec<u8>,
        /// The origin of the edit.
        why: EditOrigin,
    },
    /// The edit lies outside the addresses of this sink.
    #[error("{why} at {at}: {len} bytes do not lie within {start}..{end}")]
    Outside {
        /// The address of the edit.
        at: Addr,
        /// The length of the edit in bytes.
        len: usize,
        /// The first address of the sink.
        start: Addr,
        /// The address after the last one of the sink.
        end: Addr,
        /// The origin of the edit.
        why: EditOrigin,
    },
    /// An earlier edit covers some of these bytes.
    #[error("{second} at {at} collides with {first}")]
    Collision {
        /// The address of the second edit.
        at: Addr,
        /// The origin of the first edit.
        first: EditOrigin,
        /// The origin of the second edit, which is refused.
        second: EditOrigin,
    },
    /// Another engine has written these bytes, and this engine may not overwrite them.
    #[error(
        "{second} would write {} over {first}, which wrote {}",
        shown(.second, .second_bytes),
        shown(.first, .first_bytes)
    )]
    Clash {
        /// The origin of the first edit.
        first: EditOrigin,
        /// The address and the bytes of the first edit.
        first_bytes: (Addr, Vec<u8>),
        /// The origin of the second edit, which is refused.
        second: EditOrigin,
        /// The address and the bytes of the second edit.
        second_bytes: (Addr, Vec<u8>),
    },
    /// `old` and `new` differ in length, or are empty.
    #[error("{why} at {at}: {old} bytes cannot become {new}")]
    Lengths {
        /// The address of the edit.
        at: Addr,
        /// The length of `old`.
        old: usize,
        /// The length of `new`.
        new: usize,
        /// The origin of the edit.
        why: EditOrigin,
    },
}

/// Returns bytes with their disassembly. A relocation writes no whole instruction, so its bytes are not disassembled.
fn shown(why: &EditOrigin, (at, bytes): &(Addr, Vec<u8>)) -> String {
    match why.engine {
        Engine::Relocation | Engine::Slot => format!("{bytes:02x?} at {at}"),
        _ => format!("{bytes:02x?} at {at} ({})", disassembled(*at, bytes)),
    }
}

pub(crate) fn check_lengths(edit: &Edit<'_>) -> Result<(), Rejected> {
    if edit.old.len() == edit.new.len() && !edit.new.is_empty() {
        return Ok(());
    }
    Err(Rejected::Lengths { at: edit.at, old: edit.old.len(), new: edit.new.len(), why: edit.why })
}

/// A buffer that is addressed by its final address `base`. Stores each edit at once and keeps no record of edits.
#[derive(Debug)]
pub struct Window<'b> {
    base: Addr,
    bytes: &'b mut [u8],
}

impl<'b> Window<'b> {
    /// Wraps the bytes, of which the first has the final address `base`.
    #[inline]
    pub fn new(base: Addr, bytes: &'b mut [u8]) -> Window<'b> {
        Window { base, bytes }
    }

    #[cold]
    fn refuse(&self, edit: &Edit<'_>) -> Rejected {
        let Err(lengths) = check_lengths(edit) else {
            let at = index((edit.at - self.base).cast_unsigned());
            let found = at.checked_add(edit.old.len()).and_then(|end| self.bytes.get(at..end));
            return match found {
                Some(found) => Rejected::Mismatch {
                    at: edit.at,
                    expected: edit.old.to_vec(),
                    found: found.to_vec(),
                    why: edit.why,
                },
                None => Rejected::Outside {
                    at: edit.at,
                    len: edit.new.len(),
                    start: self.base,
                    end: self.base + wide(self.bytes.len()),
                    why: edit.why,
                },
            };
        };
        lengths
    }
}

impl Sink for Window<'_> {
    #[inline]
    fn edit(&mut self, edit: Edit<'_>) -> Result<(), Rejected> {
        let at = index((edit.at - self.base).cast_unsigned());
        let place = at.checked_add(edit.new.len()).and_then(|end| self.bytes.get_mut(at..end));
        match place {
            Some(place) if *place == *edit.old && !edit.new.is_empty() => {
                // Equal slices have equal lengths, so `place` is as long as `new`.
                place.copy_from_slice(edit.new);
                Ok(())
            }
            _ => {
                // A new `Edit` is built here, so that the compiler never has to store an accepted edit in memory.
                let Edit { at, old, new, why } = edit;
                Err(self.refuse(&Edit { at, old, new, why }))
            }
        }
    }
}

/// Counts edits and bytes, and accepts every edit.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Counter {
    /// The number of edits.
    pub edits: u64,
    /// The number of bytes that they write.
    pub bytes: u64,
}

impl Sink for Counter {
    fn edit(&mut self, edit: Edit<'_>) -> Result<(), Rejected> {
        check_lengths(&edit)?;
        self.edits += 1;
        self.bytes += wide(edit.new.len());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{Counter, Rejected, Sink, Window};
    use crate::{Addr, Edit, EditOrigin, Engine};

    const WHY: EditOrigin = EditOrigin { engine: Engine::Relocation, section: 2, record: 7 };

    fn edit<'a>(at: u64, old: &'a [u8], new: &'a [u8]) -> Edit<'a> {
        Edit { at: Addr::new(at), old, new, why: WHY }
    }

    #[test]
    fn a_window_stores_what_fits_and_matches() {
        let mut bytes = [0, 1, 2, 3];
        let mut window = Window::new(Addr::new(0x1000), &mut bytes);
        window.edit(edit(0x1002, &[2, 3], &[8, 9])).unwrap();
        assert_eq!(bytes, [0, 1, 8, 9]);
    }

    #[test]
    fn a_window_refuses_and_leaves_the_bytes_alone() {
        let mut bytes = [0, 1, 2, 3];
        let mut window = Window::new(Addr::new(0x1000), &mut bytes);
        let mismatch = window.edit(edit(0x1000, &[9], &[8])).unwrap_err();
        assert_eq!(mismatch.to_string(), "relocation 7 of section 2 at 0x1000: expected [09], found [00]");
        for outside in [0xfff, 0x1003, 0x1004, 0, u64::MAX] {
            let refused = window.edit(edit(outside, &[3, 0], &[8, 8])).unwrap_err();
            assert!(matches!(refused, Rejected::Outside { .. }), "{refused}");
        }
        assert!(matches!(window.edit(edit(0x1000, &[0], &[1, 1])), Err(Rejected::Lengths { old: 1, new: 2, .. })));
        assert!(matches!(window.edit(edit(0x1000, &[], &[])), Err(Rejected::Lengths { .. })));
        assert_eq!(bytes, [0, 1, 2, 3]);
    }

    #[test]
    fn a_counter_counts() {
        let mut counter = Counter::default();
        counter.edit(edit(0, &[0; 4], &[1; 4])).unwrap();
        counter.edit(edit(4, &[0; 8], &[1; 8])).unwrap();
        assert_eq!(counter, Counter { edits: 2, bytes: 12 });
    }

    #[test]
    fn taking_an_edit_back_restores_the_bytes() {
        let mut bytes = [0, 0, 0, 0];
        let there = edit(0x10, &[0, 0], &[5, 6]);
        let mut window = Window::new(Addr::new(0x10), &mut bytes);
        window.edit(there).unwrap();
        window.edit(!there).unwrap();
        assert_eq!(bytes, [0, 0, 0, 0]);
    }
}
