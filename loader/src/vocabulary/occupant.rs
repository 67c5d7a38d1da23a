//! Threads that prevent the freeing of a module's text.

use std::fmt;

use modload_threads::frames::WalkError;

/// A thread that prevents the freeing of a module's text.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Occupant {
    /// Thread id, as returned by gettid(2).
    pub thread: i32,
    /// Name of the thread, escaped; empty if the thread has ended meanwhile.
    pub name: String,
    /// The reason.
    pub why: Occupies,
}

/// How a thread prevents the freeing of a module's text.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Occupies {
    /// The thread runs the module's code, or will return there: the innermost frame in the module, as `func+0x12/0x40
    /// [module]`.
    Inside(String),
    /// The thread's stack cannot be walked to the end, so the thread may be inside.
    Unknown(WalkError),
    /// The thread has not begun the first function, or has returned from that function and not ended: that may be the
    /// module's.
    Between,
    /// The thread cannot be held, and the stack of the sleeping thread cannot be walked to the end.
    Asleep {
        /// The system call in which the thread sleeps; `None` outside of system calls, for example in a page fault.
        call: Option<i64>,
        /// Why the walk ended.
        error: WalkError,
        /// An address of the module's code among the words of the thread's stack, as `func+0x12/0x40 [module]`;
        /// possibly a stale one.
        word: Option<String>,
    },
    /// The thread has this number of destructors of the module to call at the end of the thread.
    Destructors(usize),
    /// An unknown thread, or several: threads that the module has created and that have not begun, or not destroyed,
    /// their function.
    Unborn(u64),
}

impl fmt::Display for Occupant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Occupies::Unborn(count) = self.why {
            return write!(f, "{count} threads that it has created have not begun, or not destroyed their function");
        }
        write!(f, "thread {}", self.thread)?;
        if !self.name.is_empty() {
            write!(f, " \"{}\"", self.name)?;
        }
        match &self.why {
            Occupies::Inside(frame) => write!(f, " is in {frame}"),
            Occupies::Unknown(error) => write!(f, " may be: {error}"),
            Occupies::Between => f.write_str(" may be: it has not begun its first function, or not ended after it"),
            Occupies::Asleep { call, error, word } => {
                f.write_str(" may be: it cannot be asked, ")?;
                match call {
                    Some(call) => write!(f, "sleeps in system call {call}")?,
                    None => f.write_str("sleeps outside of system calls")?,
                }
                write!(f, ", and {error}")?;
                word.as_ref().map_or(Ok(()), |word| write!(f, "; {word} is among the words of its stack"))
            }
            Occupies::Unborn(_) => Ok(()),
            Occupies::Destructors(1) => f.write_str(" has a destructor of the module's to call at its end"),
            Occupies::Destructors(count) => write!(f, " has {count} destructors of the module's to call at its end"),
        }
    }
}
