//! Finds room for a mapping near a range. Pure: no function here maps memory.

use modload_edit::Addr;

use crate::address_space::maps::{Backing, Mapping};
use crate::address_space::x86_64::REACH;
use crate::vocabulary::machine::PAGE;

/// The space that is kept free below a mapping that may be a stack. The kernel keeps as much below a stack that it has
/// grown (`stack_guard_gap`).
const STACK_GUARD: u64 = 1 << 20;

/// The space above the heap's end that is reserved for the heap. The heap's only bound is the next mapping, which in a
/// program at 0x55... is a library at 0x7f...; the kernel places other mappings from there downward.
const HEAP_SPACE: u64 = 1 << 40;

/// The lowest address for a mapping: a null pointer with an offset leads below it.
const LOWEST: Addr = Addr::new(1 << 20);
/// The end of the addresses for a mapping: the end of user space by default.
const HIGHEST: Addr = Addr::new((1 << 47) - PAGE);

/// Room near a range.
#[derive(PartialEq, Eq, Debug)]
pub(crate) struct Room {
    /// The addresses where a mapping of the length fits, nearest first.
    pub(crate) places: Vec<Addr>,
    /// The length of the longest free range within reach.
    pub(crate) longest: u64,
}

/// Finds room for `len` bytes, whole pages, each of which reaches each byte of `start..end`. `mappings` are sorted by
/// address, and the heap ends at `heap_end`.
///
/// The result leaves out the space that belongs to growing mappings: a tebibyte from the heap's end on, the whole of
/// the space below the first thread's stack, and a mebibyte below any other writable memory without a file, which may
/// be a stack that grows (MAP_GROWSDOWN; `maps` does not show the flag).
pub(crate) fn find_room(mappings: &[Mapping], heap_end: Addr, start: Addr, end: Addr, len: u64) -> Room {
    let heap_end = heap_end.align_up(PAGE).unwrap_or(HIGHEST);
    let lowest = Addr::new(end.get().saturating_sub(REACH).next_multiple_of(PAGE)).max(LOWEST);
    let highest = Addr::new(start.get().saturating_add(REACH) / PAGE * PAGE).min(HIGHEST);
    let mut room = Room { places: Vec::new(), longest: 0 };
    let mut from = Addr::NULL;
    let ends = mappings.iter().map(|mapping| (mapping.start, Some(mapping))).chain([(HIGHEST, None)]);
    for (free_to, above) in ends {
        let to = match above {
            Some(Mapping { backing: Backing::Stack, .. }) => from,
            Some(Mapping { backing: Backing::Anonymous, access: [_, b'w', ..], .. }) => {
                Addr::new(free_to.get().saturating_sub(STACK_GUARD))
            }
            _ => free_to,
        };
        // The part below the heap's space, and the part above it.
        for (low, high) in [(from, to.min(heap_end)), (from.max(heap_end + HEAP_SPACE), to)] {
            room.add(low.max(lowest), high.min(highest), start, len);
        }
        from = from.max(above.map_or(HIGHEST, |mapping| mapping.end));
    }
    let distance = |at: &Addr| {
        let below = start.checked_offset_from(*at + len);
        below.or_else(|| at.checked_offset_from(end)).unwrap_or(0)
    };
    room.places.sort_by_key(distance);
    room
}

impl Room {
    /// Adds a free range, `low..high`, if it is not empty: its place nearest to the range that begins at `start`.
    fn add(&mut self, low: Addr, high: Addr, start: Addr, len: u64) {
        let Some(free) = high.checked_offset_from(low) else { return };
        self.longest = self.longest.max(free);
        if free >= len {
            self.places.push(if high <= start { high.offset(-len.cast_signed()) } else { low });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Addr, REACH, Room, find_room};
    use crate::address_space::maps::parse;

    const PROGRAM: &str = "\
555555554000-555555600000 r--p 00000000 fe:01 17 /a program
555555600000-555555700000 r-xp 000ac000 fe:01 17 /a program
555555700000-555555701000 rw-p 001ac000 fe:01 17 /a program
555555900000-555555a00000 rw-p 00000000 00:00 0 [heap]
7ffff7000000-7ffff7200000 rw-p 00000000 00:00 0
7ffff7c00000-7ffff7e00000 r-xp 00000000 fe:01 18 /libc.so.6
7ffff7e00000-7ffff7e10000 rw-p 00200000 fe:01 18 /libc.so.6
7ffffffde000-7ffffffff000 rw-p 00000000 00:00 0 [stack]
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0 [vsyscall]
";

    /// Checks the places where a mapping fits near a range, and the longest free range.
    fn check(maps: &str, heap_end: u64, (start, end): (u64, u64), len: u64, expected: (&[u64], u64)) {
        let (start, end) = (Addr::new(start), Addr::new(end));
        let room = find_room(&parse(maps), Addr::new(heap_end), start, end, len);
        let places = expected.0.iter().map(|at| Addr::new(*at)).collect();
        assert_eq!(room, Room { places, longest: expected.1 });
        for at in room.places {
            assert!((at + len - start).abs() <= REACH.cast_signed() && (end - at).abs() <= REACH.cast_signed());
        }
    }

    #[test]
    fn the_nearest_place_is_first_and_the_heaps_space_stays_the_heaps() {
        // Expected: nearly all of the two gigabytes below, and the gap above the program up to a mebibyte below the
        // heap.
        let below = 0x5555_5555_4000 - (0x5555_5570_0000 - REACH);
        let text = (0x5555_5560_0000, 0x5555_5570_0000);
        let heap = 0x5555_55a0_0000;
        check(PROGRAM, heap, text, 0x1000, (&[0x5555_5570_1000, 0x5555_5555_3000], below));
        check(PROGRAM, heap, text, 0x10_0000, (&[0x5555_5545_4000], below));
        check(PROGRAM, heap, text, below, (&[0x5555_5570_0000 - REACH], below));
        check(PROGRAM, heap, text, below + 0x1000, (&[], below));
        // There is no heap yet; it will begin within the gap.
        let without: String =
            PROGRAM.lines().filter(|line| !line.ends_with("[heap]")).map(|line| format!("{line}\n")).collect();
        check(&without, 0x5555_5570_2800, text, 0x2000, (&[0x5555_5570_1000, 0x5555_5555_2000], below));
        check(&without, 0x5555_5570_2800, text, 0x3000, (&[0x5555_5555_1000], below));
    }

    #[test]
    fn the_stacks_space_stays_the_stacks() {
        // Expected: no place above the library, where the space belongs to the stack; the gap between the library and
        // the possible stack below it; then the space below that.
        let libc = (0x7fff_f7c0_0000, 0x7fff_f7e0_0000);
        let below = 0x7fff_f6f0_0000 - (0x7fff_f7e0_0000 - REACH);
        check(PROGRAM, 0x5555_55a0_0000, libc, 0x1000, (&[0x7fff_f7bf_f000, 0x7fff_f6ef_f000], below));
        check(PROGRAM, 0x5555_55a0_0000, libc, 0xa0_0000, (&[0x7fff_f720_0000, 0x7fff_f650_0000], below));
        check(PROGRAM, 0x5555_55a0_0000, libc, 0xa0_1000, (&[0x7fff_f64f_f000], below));
    }

    #[test]
    fn the_lowest_addresses_stay_free() {
        let maps = "400000-500000 r-xp 00000000 fe:01 17 /program\n500000-501000 rw-p 00100000 fe:01 17 /program\n";
        let (text, heap) = ((0x40_0000, 0x50_0000), 0x50_1000);
        check(maps, heap, text, 0x30_0000, (&[0x10_0000], 0x30_0000));
        check(maps, heap, text, 0x30_1000, (&[], 0x30_0000));
        check(maps, heap, text, 8 << 30, (&[], 0x30_0000));
    }
}
