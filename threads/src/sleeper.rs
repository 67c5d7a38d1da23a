//! Inspects threads that sleep in the kernel, without a signal.
//!
//! `/proc/self/task/TID/syscall` gives a sleeping thread's system call with its arguments, its stack pointer and its
//! instruction pointer; `schedstat` counts how often the thread was given a processor. The first file's contents stay
//! true as long as the second file's do not change: [`Sleeper::has_slept`] compares them. docs/threads.md has the
//! argument.
//!
//! No function here allocates memory or takes a lock: all of them may be used while threads are held.

use std::io;

use crate::frames::{Memory, ProcessMemory, Register, Registers};
use crate::system;
use crate::task::{self, Tid};
use crate::x86_64::CALL_ARGUMENTS;

/// The running time of a thread, by its `schedstat`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Ran {
    /// Nanoseconds on a processor.
    time: u64,
    /// Nanoseconds spent waiting for a processor.
    waited: u64,
    /// The number of times that the thread was given a processor: the kernel adds one each time (`sched_info_arrive`).
    turns: u64,
}

/// The number of words that a [`Sleeper`] is packed into.
pub(crate) const WORDS: usize = 13;

/// A thread that sleeps in the kernel: its place, and its running time before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sleeper {
    tid: Tid,
    ran: Ran,
    /// The system call's number; -1 outside of a system call, for example in a page fault.
    call: i64,
    /// The registers that hold a system call's arguments, in the order of arguments; zeros outside of a system call.
    arguments: [u64; 6],
    rsp: u64,
    rip: u64,
}

/// The result of inspecting a thread.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Sight {
    /// The thread sleeps in the kernel.
    Asleep(Sleeper),
    /// The thread runs, or ran between the two files.
    Running,
    /// The thread never runs user code: the kernel shows no stack for it.
    Kernel,
    /// The thread has ended.
    Gone,
    /// The kernel does not count the running time of threads.
    Uncounted,
}

/// Inspects a thread.
///
/// # Errors
/// The error of open(2) or read(2); `InvalidData` for a line that does not follow proc(5).
pub(crate) fn look(tid: Tid) -> io::Result<Sight> {
    // The order matters: a thread that runs between the two reads has run for longer than this count.
    let ran = match ran(tid)? {
        None => return Ok(Sight::Gone),
        Some(Ran { time: 0, waited: 0, turns: 0 }) => return Ok(Sight::Uncounted),
        Some(ran) => ran,
    };
    let mut buffer = [0; 256];
    let Some(text) = task::read_file(tid, "syscall", &mut buffer)? else { return Ok(Sight::Gone) };
    Ok(match Sleeper::parse(tid, ran, text) {
        Parsed::Running => Sight::Running,
        Parsed::Place(Sleeper { rsp: 0, rip: 0, .. }) => Sight::Kernel,
        Parsed::Place(sleeper) => Sight::Asleep(sleeper),
        Parsed::Malformed => return Err(io::ErrorKind::InvalidData.into()),
    })
}

/// Returns the time in nanoseconds that a thread has run; 0 if the thread has ended or the kernel does not count the time.
///
/// # Errors
/// The error of open(2) or read(2); `InvalidData` for a line that does not follow proc(5).
pub(crate) fn time(tid: Tid) -> io::Result<u64> {
    Ok(ran(tid)?.map_or(0, |ran| ran.time))
}

fn ran(tid: Tid) -> io::Result<Option<Ran>> {
    let mut buffer = [0; 128];
    let Some(text) = task::read_file(tid, "schedstat", &mut buffer)? else { return Ok(None) };
    let mut numbers = text.split(u8::is_ascii_whitespace).filter(|part| !part.is_empty()).map(task::number);
    let mut next = || numbers.next().flatten();
    match (next(), next(), next()) {
        (Some(time), Some(waited), Some(turns)) => Ok(Some(Ran { time, waited, turns })),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// A line of `/proc/PID/syscall`.
enum Parsed {
    Running,
    Place(Sleeper),
    Malformed,
}

impl Sleeper {
    fn parse(tid: Tid, ran: Ran, text: &[u8]) -> Parsed {
        let mut parts = text.split(u8::is_ascii_whitespace).filter(|part| !part.is_empty());
        let first = parts.next();
        if first == Some(b"running") {
            return Parsed::Running;
        }
        let Some(call) = first.and_then(task::number::<i64>) else { return Parsed::Malformed };
        let mut next = || parts.next().and_then(|part| part.strip_prefix(b"0x")).and_then(task::hex);
        let mut arguments = [0; 6];
        if call >= 0 {
            for argument in &mut arguments {
                let Some(value) = next() else { return Parsed::Malformed };
                *argument = value;
            }
        }
        let (Some(rsp), Some(rip)) = (next(), next()) else { return Parsed::Malformed };
        Parsed::Place(Sleeper { tid, ran, call, arguments, rsp, rip })
    }

    /// The thread.
    #[must_use]
    pub fn tid(&self) -> Tid {
        self.tid
    }

    /// Returns the number of the system call in which the thread sleeps; `None` outside of a system call, for example
    /// in a page fault.
    #[must_use]
    pub fn call(&self) -> Option<i64> {
        Some(self.call).filter(|call| *call >= 0)
    }

    /// Returns the registers of the system call's arguments. A call with fewer than six arguments leaves other values
    /// in the rest.
    #[must_use]
    pub fn arguments(&self) -> [u64; 6] {
        self.arguments
    }

    /// Returns the address of the instruction that the thread executes next.
    #[must_use]
    pub fn rip(&self) -> u64 {
        self.rip
    }

    /// Returns the thread's stack pointer.
    #[must_use]
    pub fn rsp(&self) -> u64 {
        self.rsp
    }

    /// Returns the thread's registers, as far as they are known. The registers of a system call's arguments are known,
    /// because the kernel shows the registers themselves.
    #[must_use]
    pub fn registers(&self) -> Registers {
        let place = Registers::unknown().with(Register::RETURN, self.rip).with(Register::STACK, self.rsp);
        if self.call().is_none() {
            return place;
        }
        let arguments = CALL_ARGUMENTS.into_iter().zip(self.arguments);
        arguments.fold(place, |registers, (number, value)| match Register::numbered(number) {
            Some(register) => registers.with(register, value),
            None => registers,
        })
    }

    /// Returns whether the thread has not run since it was inspected. Then the thread has slept all the time, and all
    /// found facts still hold.
    ///
    /// # Errors
    /// The error of open(2) or read(2).
    pub fn has_slept(&self) -> io::Result<bool> {
        Ok(ran(self.tid)? == Some(self.ran))
    }

    /// Returns the number of the thread's creator ([`crate::creation`]), 0 if the thread has none; `None` if the number
    /// cannot be read.
    ///
    /// glibc places the list of robust futexes at the same distance from each thread's control block, and thread-local
    /// variables of programs lie below that block.
    pub(crate) fn creator(&self) -> Option<u64> {
        let own = crate::word::own_words();
        let own_creator = u64::try_from((&raw const own.creator).expose_provenance()).ok()?;
        let own_list = system::robust_list(Tid::current().get()).ok().filter(|list| *list != 0)?;
        let list = system::robust_list(self.tid.get()).ok().filter(|list| *list != 0)?;
        ProcessMemory::own().word(own_creator.wrapping_sub(own_list).wrapping_add(list))
    }

    /// Returns whether the thread waits for a signal by rt_sigtimedwait(2), as sigwait(3) and sigwaitinfo(2) do.
    pub(crate) fn waits_for(&self, signal: i32) -> bool {
        if self.call != libc::SYS_rt_sigtimedwait {
            return false;
        }
        // A set that cannot be read may contain any signal.
        ProcessMemory::own().word(self.arguments[0]).is_none_or(|set| set & task::bit(signal) != 0)
    }

    pub(crate) fn pack(&self) -> [u64; WORDS] {
        let Sleeper { tid, ran: Ran { time, waited, turns }, call, arguments: [a, b, c, d, e, f], rsp, rip } = *self;
        let tid = u64::from(tid.get().cast_unsigned());
        [tid, time, waited, turns, call.cast_unsigned(), a, b, c, d, e, f, rsp, rip]
    }

    pub(crate) fn unpack(words: [u64; WORDS]) -> Sleeper {
        let [tid, time, waited, turns, call, a, b, c, d, e, f, rsp, rip] = words;
        let tid = Tid::new(u32::try_from(tid).unwrap_or_default().cast_signed());
        let ran = Ran { time, waited, turns };
        Sleeper { tid, ran, call: call.cast_signed(), arguments: [a, b, c, d, e, f], rsp, rip }
    }
}

#[cfg(test)]
mod tests {
    use super::{Parsed, Ran, Sleeper};
    use crate::frames::Register;
    use crate::task::Tid;

    const RAN: Ran = Ran { time: 1, waited: 2, turns: 3 };

    fn parse(text: &str) -> Option<Sleeper> {
        match Sleeper::parse(Tid::new(7), RAN, text.as_bytes()) {
            Parsed::Place(sleeper) => Some(sleeper),
            Parsed::Running | Parsed::Malformed => None,
        }
    }

    #[test]
    fn lines_are_read_as_the_kernel_writes_them() {
        let sleeper = parse("202 0x10 0x80 0x0 0x4 0x5 0xffffffffffffffff 0x7ffe0010 0x7f001234\n").unwrap();
        assert_eq!(sleeper.call(), Some(202));
        assert_eq!(sleeper.arguments(), [0x10, 0x80, 0, 4, 5, u64::MAX]);
        let known = sleeper.registers();
        let get = |number| known.get(Register::numbered(number).unwrap());
        assert_eq!([5, 4, 1, 10, 8, 9].map(get), [0x10, 0x80, 0, 4, 5, u64::MAX].map(Some));
        assert_eq!([7, 16, 6, 3].map(get), [Some(0x7ffe_0010), Some(0x7f00_1234), None, None]);
        assert_eq!(Sleeper::unpack(sleeper.pack()), sleeper);
        let fault = parse("-1 0x7ffe0010 0x7f001234\n").unwrap();
        assert_eq!((fault.call(), fault.rsp(), fault.rip()), (None, 0x7ffe_0010, 0x7f00_1234));
        assert_eq!(fault.registers().get(Register::numbered(5).unwrap()), None);
        assert_eq!(Sleeper::unpack(fault.pack()), fault);
    }

    #[test]
    fn lines_that_say_less_are_refused() {
        assert!(matches!(Sleeper::parse(Tid::new(7), RAN, b"running\n"), Parsed::Running));
        for text in ["", "x", "202", "202 0x1 0x2 0x3 0x4 0x5 0x6 0x7", "-1", "-1 0x7", "-1 7 8", "202 1 2 3 4 5 6 7 8"]
        {
            assert!(matches!(Sleeper::parse(Tid::new(7), RAN, text.as_bytes()), Parsed::Malformed), "{text}");
        }
    }
}
