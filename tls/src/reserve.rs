//! The reserve: static thread-local memory of the program that holds this code. Each thread has a copy at the same
//! distance from its thread pointer.

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use modload_edit::{Addr, index, wide};
use modload_threads::is_alone;

use crate::error::TlsError;
use crate::library::{Template, library_variable, template};
use crate::sizes::{RESERVE_ALIGN, RESERVE_SIZE};
use crate::x86_64::own_reserve;

/// The size of the largest block that gets a part without needing it.
const SPARE_SIZE: usize = RESERVE_SIZE / 16;

/// Where the reserve is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ReservePlace {
    /// Its distance from the thread pointer.
    pub(crate) from_thread_pointer: i64,
    /// Its bytes in the template from which new threads are made.
    pub(crate) template: u64,
}

/// Returns the place of the reserve, or `None` if it is not at the same distance from the thread pointer in all threads.
fn place() -> Option<ReservePlace> {
    static PLACE: OnceLock<Option<ReservePlace>> = OnceLock::new();
    if let Some(place) = PLACE.get() {
        return *place;
    }
    // Made outside of the cell: a child that is forked meanwhile would wait for the cell for ever.
    let found = find_place();
    *PLACE.get_or_init(|| found)
}

fn find_place() -> Option<ReservePlace> {
    let own = Addr::new(wide(own_reserve().expose_provenance()));
    let variable = library_variable(own)?;
    let Template { start, len } = template(variable.library)?;
    let whole = variable.offset.checked_add(wide(RESERVE_SIZE))? <= len;
    let block = variable.from_thread_pointer.filter(|_| whole)?;
    Some(ReservePlace {
        from_thread_pointer: block.wrapping_add_unsigned(variable.offset),
        template: start + variable.offset,
    })
}

/// The use of the reserve.
struct Ranges {
    /// The ranges in use, in order. The beginning of the reserve is never used: it makes the reserve part of the
    /// template.
    used: Vec<Range<usize>>,
    /// The end of the part that was ever used. The rest is zero in each thread.
    touched: usize,
}

impl Ranges {
    /// Returns a range that no module uses.
    fn find(&self, len: usize, align: usize) -> Option<Range<usize>> {
        let room = |from: usize| {
            let start = from.next_multiple_of(align);
            let end = start.checked_add(len)?;
            let next = self.used.iter().map(|used| used.start).find(|next| *next >= from);
            (end <= next.unwrap_or(RESERVE_SIZE)).then_some(start..end)
        };
        let gaps = std::iter::once(RESERVE_ALIGN).chain(self.used.iter().map(|used| used.end));
        gaps.into_iter().find_map(room)
    }

    /// Returns the number of bytes that no module uses.
    fn left(&self) -> usize {
        RESERVE_SIZE - RESERVE_ALIGN - self.used.iter().map(ExactSizeIterator::len).sum::<usize>()
    }

    fn use_range(&mut self, range: Range<usize>, place: ReservePlace) -> ReserveSlice {
        let is_clean = range.start >= self.touched;
        self.touched = self.touched.max(range.end);
        let before = self.used.partition_point(|used| used.start < range.start);
        self.used.insert(before, range.clone());
        ReserveSlice { range, is_clean, place }
    }
}

static RANGES: Mutex<Ranges> = Mutex::new(Ranges { used: Vec::new(), touched: RESERVE_ALIGN });

fn ranges() -> MutexGuard<'static, Ranges> {
    RANGES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A part of the reserve. Dropping it gives it back.
#[derive(Debug)]
pub(crate) struct ReserveSlice {
    range: Range<usize>,
    /// Whether each thread's copy is zero.
    is_clean: bool,
    place: ReservePlace,
}

impl ReserveSlice {
    /// Takes a part of this size and alignment.
    pub(crate) fn take(size: u64, align: u64) -> Result<ReserveSlice, TlsError> {
        let place = place().ok_or(TlsError::NoReserve)?;
        if align > wide(RESERVE_ALIGN) {
            return Err(TlsError::FixedAlign(align));
        }
        let mut ranges = ranges();
        let found = ranges.find(index(size), index(align.max(1)));
        let range = found.ok_or_else(|| TlsError::ReserveFull { asked: size, left: wide(ranges.left()) })?;
        Ok(ranges.use_range(range, place))
    }

    /// Takes a part for a module that can do without, if the part is small, enough is left for others, and its contents
    /// need not be brought into other threads.
    pub(crate) fn take_spare(size: u64, align: u64, is_zero: bool) -> Option<ReserveSlice> {
        let (len, align) = (index(size), index(align.max(1)));
        if len > SPARE_SIZE || align > RESERVE_ALIGN {
            return None;
        }
        let place = place()?;
        let alone = is_alone().unwrap_or(false);
        let mut ranges = ranges();
        let range = match alone {
            true => ranges.find(len, align)?,
            false if is_zero => {
                let start = ranges.touched.next_multiple_of(align);
                Some(start..start.checked_add(len)?).filter(|range| range.end <= RESERVE_SIZE)?
            }
            false => return None,
        };
        let is_enough = ranges.left() >= RESERVE_SIZE / 2 + len;
        is_enough.then(|| ranges.use_range(range, place))
    }

    /// Whether each thread's copy already consists of this image and zeros.
    pub(crate) fn is_already(&self, image: &[u8]) -> bool {
        self.is_clean && image.iter().all(|byte| *byte == 0)
    }

    /// Returns the distance from the thread pointer.
    pub(crate) fn thread_pointer_offset(&self) -> i64 {
        self.place.from_thread_pointer.wrapping_add_unsigned(wide(self.range.start))
    }

    /// Returns the address in the template.
    pub(crate) fn template(&self) -> u64 {
        self.place.template + wide(self.range.start)
    }

    pub(crate) fn len(&self) -> usize {
        self.range.len()
    }
}

impl Drop for ReserveSlice {
    fn drop(&mut self) {
        ranges().used.retain(|used| *used != self.range);
    }
}

#[cfg(test)]
mod tests {
    use super::{RESERVE_ALIGN, RESERVE_SIZE, ReserveSlice};
    use crate::error::TlsError;

    #[test]
    fn parts_are_separate_and_come_back() {
        let taken: Vec<_> = [(8, 8), (1, 1), (100, 32), (64, 64)]
            .map(|(size, align)| (ReserveSlice::take(size, align).unwrap(), align))
            .into();
        for (slice, align) in &taken {
            assert_eq!(slice.thread_pointer_offset() % i64::try_from(*align).unwrap(), 0);
            assert!(slice.is_already(&[0; 8]) && !slice.is_already(&[0, 1]));
        }
        let mut ranges: Vec<_> = taken.iter().map(|(slice, _)| slice.range.clone()).collect();
        ranges.sort_by_key(|range| range.start);
        assert!(ranges[0].start >= RESERVE_ALIGN && ranges.windows(2).all(|two| two[0].end <= two[1].start));
        let first = ranges[0].clone();
        drop(taken);
        let again = ReserveSlice::take(8, 8).unwrap();
        assert_eq!(again.range, first);
        assert!(!again.is_already(&[]), "it was in use");
        let all = u64::try_from(RESERVE_SIZE - RESERVE_ALIGN).unwrap();
        assert_eq!(ReserveSlice::take(all, 1).unwrap_err(), TlsError::ReserveFull { asked: all, left: all - 8 });
        assert_eq!(ReserveSlice::take(8, 128).unwrap_err(), TlsError::FixedAlign(128));
        drop(again);
        assert_eq!(ReserveSlice::take(all, 1).unwrap().len(), RESERVE_SIZE - RESERVE_ALIGN);
    }
}
