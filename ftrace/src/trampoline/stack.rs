//! Finds a thread's own stack without the allocator and without locks.
//!
//! glibc places a thread's static thread-local memory at the upper end of its stack. The first thread's stack is the
//! one that the kernel names. The lower end is the lower end of the mapping, beneath which there is a guard page.
//! `pthread_getattr_np` would return the stack, but allocates.

use std::ops::Range;
use std::os::fd::{BorrowedFd, IntoRawFd, RawFd};

use rustix::fs::{Mode, OFlags, open};
use rustix::io::read;
use rustix::process::{Resource, getrlimit};

/// The largest assumed size of the first thread's stack, which grows. Used if the stack's limit is larger or unlimited.
const MOST: u64 = 1 << 30;

/// A line of `/proc/self/maps` that is being read: its range, and its last bytes.
#[derive(Default)]
struct MapsLine {
    start: u64,
    end: u64,
    /// The index of the number that is being read, from 0. 2 when both are read.
    field: u8,
    last: [u8; 7],
}

impl MapsLine {
    /// Takes a byte. Returns the line at its end.
    fn take(&mut self, byte: u8) -> Option<MapsLine> {
        match (self.field, byte) {
            (_, b'\n') => return Some(std::mem::take(self)),
            (0, b'-') | (1, b' ') => self.field += 1,
            (0 | 1, digit) => {
                let number = if self.field == 0 { &mut self.start } else { &mut self.end };
                let digit = char::from(digit).to_digit(16).unwrap_or(0);
                *number = *number << 4 | u64::from(digit);
            }
            _ => {
                self.last.rotate_left(1);
                self.last[6] = byte;
            }
        }
        None
    }

    /// Returns the thread's stack in this line, if the line is one of the two mappings that can hold the stack, and the
    /// thread is on it.
    fn stack(&self, here: u64, local: u64) -> Option<Range<u64>> {
        let range = self.start..self.end;
        if !range.contains(&here) {
            return None;
        }
        if &self.last == b"[stack]" {
            let limit = getrlimit(Resource::Stack).current.unwrap_or(MOST).min(MOST);
            return Some(self.end.saturating_sub(limit).min(self.start)..self.end);
        }
        (range.contains(&local) && here < local).then_some(self.start..local)
    }
}

/// The file `/proc/self/maps`. The system calls are made without the C library, because its close(2) is a cancellation
/// point: if the thread were cancelled there, its traced function would never begin.
struct Maps(RawFd);

impl Maps {
    fn open() -> Option<Maps> {
        let maps = open(c"/proc/self/maps", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
        Some(Maps(maps.into_raw_fd()))
    }

    fn borrow(&self) -> BorrowedFd<'_> {
        // SAFETY: the file is open until this value is dropped.
        unsafe { BorrowedFd::borrow_raw(self.0) }
    }
}

impl Drop for Maps {
    fn drop(&mut self) {
        // SAFETY: the file is open, and this value owns it.
        unsafe { rustix::io::close(self.0) };
    }
}

/// Returns this thread's own stack: its lowest address, and its size in bytes. Returns `None` if the thread runs on
/// another stack at present. `local` is an address in the thread's static thread-local memory.
pub(super) fn own(local: u64) -> Option<(u64, u64)> {
    let here = 0_u8;
    let here = modload_edit::wide((&raw const here).addr());
    let maps = Maps::open()?;
    // The buffer is small, because the thread may be on a signal's stack.
    let mut buffer = [0; 512];
    let mut line = MapsLine::default();
    loop {
        let got = read(maps.borrow(), &mut buffer).ok().filter(|got| *got != 0)?;
        let found = buffer[..got].iter().find_map(|byte| line.take(*byte)?.stack(here, local));
        if let Some(found) = found {
            return Some((found.start, found.end - found.start));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::MapsLine;

    fn stack(text: &[u8], here: u64, local: u64) -> Option<(u64, u64)> {
        let mut line = MapsLine::default();
        let found = text.iter().find_map(|byte| line.take(*byte)?.stack(here, local))?;
        Some((found.start, found.end))
    }

    const MAPS: &[u8] = b"00400000-00401000 r-xp 00000000 08:01 1234   /bin/[stack] no\n\
        7f0000000000-7f0000800000 rw-p 00000000 00:00 0 \n\
        7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0                          [stack]\n";

    #[test]
    fn a_thread_is_on_its_own_stack_or_on_none() {
        for (here, local, expected) in [
            (0x7f00_0040_0000, 0x7f00_007f_f000, Some((0x7f00_0000_0000, 0x7f00_007f_f000))),
            // Above the thread-local memory, or in another mapping.
            (0x7f00_007f_f800, 0x7f00_007f_f000, None),
            (0x7f00_0040_0000, 0x40_0800, None),
            (0x40_0800, 0x7f00_007f_f000, None),
        ] {
            assert_eq!(stack(MAPS, here, local), expected, "{here:#x}");
        }
        let (start, end) = stack(MAPS, 0x7ffc_0002_0000, 0x40_0800).unwrap();
        assert!(start <= 0x7ffc_0000_0000 && end == 0x7ffc_0002_1000);
    }
}
