//! Writing past a protection, and the lock without which nobody can.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use modload_edit::{Addr, wide};
use modload_threads::frames;
use thiserror::Error;

use crate::spans::CHUNK;

static WRITER: Mutex<Writer> = Mutex::new(Writer { memory: None, buffer: Vec::new(), stuck: false });

/// What the lock protects.
#[derive(Debug)]
struct Writer {
    memory: Option<Memory>,
    /// For what is copied on its way into text; kept, so that a batch allocates nothing.
    buffer: Vec<u8>,
    /// Whether a batch could be neither completed nor taken back.
    stuck: bool,
}

/// `/proc/self/mem`, and the process in which it was opened: the descriptor goes on to mean that process after fork.
#[derive(Debug)]
struct Memory {
    file: File,
    opened_by: u32,
}

/// The right to write into published memory. There is one in the process.
#[derive(Debug)]
pub struct TextLock<'a> {
    writer: MutexGuard<'a, Writer>,
}

/// Published memory could not be written.
#[derive(Debug, Error)]
pub enum WriteFailed {
    /// The descriptor belongs to another process.
    #[error(
        "process {here} shares the memory of process {opened_by} or was cloned from it without fork(): \
         only fork() is supported"
    )]
    OtherProcess {
        /// The process that opened it.
        opened_by: u32,
        /// This process.
        here: u32,
    },
    /// After fork the child could not open it again, or no arena was ever built.
    #[error("/proc/self/mem is not open")]
    NotOpen,
    /// No number can lie there.
    #[error("no aligned variable of a module's data is at {at}")]
    NoVariable {
        /// Where.
        at: Addr,
    },
    /// The bytes are written, but not every core is sure to have noticed.
    #[error("membarrier(2) after a change of text")]
    Sync {
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel does not let us write.
    #[error("writing {len} bytes at {at} through /proc/self/mem")]
    Io {
        /// First address.
        at: Addr,
        /// How many bytes.
        len: u64,
        /// What the kernel said.
        source: io::Error,
    },
}

impl TextLock<'static> {
    /// Waits for the lock. A thread must not take it twice; dropping published text takes it, too.
    #[must_use]
    pub fn take() -> TextLock<'static> {
        // What the lock protects is whole between any two statements, so a panic elsewhere does not spoil it.
        TextLock { writer: WRITER.lock().unwrap_or_else(PoisonError::into_inner) }
    }
}

impl TextLock<'_> {
    /// Opens the descriptor in this process, in place of the one inherited.
    pub(crate) fn open(&mut self) -> io::Result<()> {
        self.writer.memory = None;
        // The standard library opens with O_CLOEXEC.
        let file = OpenOptions::new().read(true).write(true).open("/proc/self/mem")?;
        // Where the usual way to read stacks is denied, walks read them through this one.
        frames::read_through(&file);
        self.writer.memory = Some(Memory { file, opened_by: std::process::id() });
        Ok(())
    }

    /// Writes `bytes` at `at`, whatever the protection of the private mapping there.
    pub(crate) fn write(&mut self, at: Addr, bytes: &[u8]) -> Result<(), WriteFailed> {
        let memory = self.writer.memory.as_ref().ok_or(WriteFailed::NotOpen)?;
        let here = std::process::id();
        if memory.opened_by != here {
            return Err(WriteFailed::OtherProcess { opened_by: memory.opened_by, here });
        }
        let failed = |source| WriteFailed::Io { at, len: wide(bytes.len()), source };
        memory.file.write_all_at(bytes, at.get()).map_err(failed)
    }

    /// Makes sure that [`TextLock::take_buffer`] allocates nothing.
    pub(crate) fn reserve_buffer(&mut self) {
        self.writer.buffer.clear();
        self.writer.buffer.reserve(CHUNK);
    }

    /// The buffer, empty and with room for the largest write.
    pub(crate) fn take_buffer(&mut self) -> Vec<u8> {
        self.reserve_buffer();
        std::mem::take(&mut self.writer.buffer)
    }

    /// Gives the buffer back to the next batch.
    pub(crate) fn give_buffer(&mut self, buffer: Vec<u8>) {
        self.writer.buffer = buffer;
    }

    /// Notes that a batch stays half done.
    pub(crate) fn stuck(&mut self) {
        self.writer.stuck = true;
    }

    /// Whether a batch has stayed half done.
    pub(crate) fn is_stuck(&self) -> bool {
        self.writer.stuck
    }
}
