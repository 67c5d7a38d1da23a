//! Writes that bypass a protection, and the lock that they require.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use modload_edit::{Addr, wide};
use modload_threads::frames;

use crate::vocabulary::error::WriteFailed;

/// The greatest number of bytes that one write of a batch joins, so that the copied bytes are still in the processor's
/// cache.
pub(crate) const MAX_WRITE: usize = 1 << 16;

static WRITER: Mutex<WriterState> = Mutex::new(WriterState { memory: None, buffer: Vec::new(), stuck: false });

/// The data that the lock protects.
#[derive(Debug)]
struct WriterState {
    memory: Option<MemoryFile>,
    /// A buffer for bytes that are copied into text; kept, so that a batch allocates nothing.
    buffer: Vec<u8>,
    /// Whether a batch could be neither completed nor reverted.
    stuck: bool,
}

/// `/proc/self/mem`, and the process that opened it: after fork, the descriptor still refers to that process.
#[derive(Debug)]
struct MemoryFile {
    file: File,
    opened_by: u32,
}

/// The right to write into published memory. Only one exists in the process at a time.
#[derive(Debug)]
pub struct TextLock<'a> {
    writer: MutexGuard<'a, WriterState>,
}

impl TextLock<'static> {
    /// Waits for the lock. A thread must not take the lock twice; dropping published text takes the lock, too.
    #[must_use]
    pub fn take() -> TextLock<'static> {
        // The protected data is consistent between any two statements, so a panic elsewhere does not damage it.
        TextLock { writer: WRITER.lock().unwrap_or_else(PoisonError::into_inner) }
    }
}

impl TextLock<'_> {
    /// Opens the descriptor in this process, in place of the inherited one.
    pub(crate) fn open(&mut self) -> io::Result<()> {
        self.writer.memory = None;
        // The standard library opens with O_CLOEXEC.
        let file = OpenOptions::new().read(true).write(true).open("/proc/self/mem")?;
        // Where process_vm_readv(2) is denied, walks read stacks through this descriptor.
        frames::read_through(&file);
        self.writer.memory = Some(MemoryFile { file, opened_by: std::process::id() });
        Ok(())
    }

    /// Writes `bytes` at `at`. The protection of the private mapping there does not matter.
    pub(crate) fn write(&mut self, at: Addr, bytes: &[u8]) -> Result<(), WriteFailed> {
        let memory = self.writer.memory.as_ref().ok_or(WriteFailed::NotOpen)?;
        let this_process = std::process::id();
        if memory.opened_by != this_process {
            return Err(WriteFailed::OtherProcess { opened_by: memory.opened_by, this_process });
        }
        let failed = |source| WriteFailed::Io { at, len: wide(bytes.len()), source };
        memory.file.write_all_at(bytes, at.get()).map_err(failed)
    }

    /// Makes sure that [`TextLock::take_buffer`] allocates nothing.
    pub(crate) fn reserve_buffer(&mut self) {
        self.writer.buffer.clear();
        self.writer.buffer.reserve(MAX_WRITE);
    }

    /// Returns the buffer, empty and with room for the largest write.
    pub(crate) fn take_buffer(&mut self) -> Vec<u8> {
        self.reserve_buffer();
        std::mem::take(&mut self.writer.buffer)
    }

    /// Returns the buffer to the lock, for the next batch.
    pub(crate) fn return_buffer(&mut self, buffer: Vec<u8>) {
        self.writer.buffer = buffer;
    }

    /// Records that a batch stays incomplete.
    pub(crate) fn set_stuck(&mut self) {
        self.writer.stuck = true;
    }

    /// Returns whether a batch has stayed incomplete.
    pub(crate) fn is_stuck(&self) -> bool {
        self.writer.stuck
    }
}
