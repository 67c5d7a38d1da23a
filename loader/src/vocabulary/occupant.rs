//! Threads that keep a module's text where it is.

use std::fmt;

use modload_threads::frames::WalkError;

/// A thread that keeps a module's text where it is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Occupant {
    /// Its id, as gettid(2) gives it.
    pub thread: i32,
    /// Its name, escaped; empty if it has ended meanwhile.
    pub name: String,
    /// What is known of it.
    pub why: Occupies,
}

/// How a thread keeps a module's text where it is.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Occupies {
    /// It runs the module's code, or will return to it: its innermost frame there, as `func+0x12/0x40 [module]`.
    Inside(String),
    /// Its stack cannot be walked to the end, so that nobody knows.
    Unknown(WalkError),
    /// It has not begun its first function, or has returned from it and not ended: that may be the module's.
    Between,
    /// It cannot be asked, and its stack cannot be walked to the end where it sleeps.
    Asleep {
        /// The system call in which it sleeps; `None` outside of one, in a page fault say.
        call: Option<i64>,
        /// Why the walk ended.
        error: WalkError,
        /// An address of the module's code among the words of its stack, as `func+0x12/0x40 [module]`: it may be an old one.
        word: Option<String>,
    },
    /// At its end it has to call destructors of the module's.
    Destructors(usize),
    /// It is not known which it is, and may be several: threads that the module has created and that have not begun, or not destroyed
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
