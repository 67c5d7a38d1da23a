//! Fills text that no thread may run with INT3.

use modload_edit::{Addr, index, wide};

use crate::vocabulary::error::WriteFailed;
use crate::vocabulary::machine::INT3;
use crate::writing::cores;
use crate::writing::text_lock::TextLock;

static INT3S: [u8; 0x1_0000] = [INT3; 0x1_0000];

/// Fills text with INT3, and synchronises every core.
pub(crate) fn fill_with_int3(lock: &mut TextLock<'_>, at: Addr, len: u64) -> Result<(), WriteFailed> {
    let mut done = 0;
    while done < len {
        let part = &INT3S[..INT3S.len().min(index(len - done))];
        lock.write(at + done, part)?;
        done += wide(part.len());
    }
    cores::synchronise()
}
