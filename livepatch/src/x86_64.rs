//! The code of stubs for functions in transition, and their unwind rows, for x86-64.
//!
//! Another processor has to provide: code that loads the address of the stub's data, compares the thread's word
//! (`modload_threads::word`) and jumps through one of three fields of the data ([`half_code`], [`tag_code`]), and the
//! rows of this code ([`rows`]). The code may change only registers that are free at a function's entry.

use modload_edit::INT3;
use modload_threads::word;

/// The size of a stub in bytes.
pub(crate) const STUB_LEN: usize = 64;

/// The offsets in a stub's data of the fields that the code reads.
pub(crate) struct StubOffsets {
    pub(crate) home: usize,
    pub(crate) to: usize,
    pub(crate) from: usize,
    pub(crate) event: usize,
    pub(crate) tag: usize,
}

/// Returns the code of a stub that compares the low half of the word, for data at an address:
///
/// ```text
///     movabs $data,%r11
///     cmpl   $0,%fs:word
///     jne    1f
///     jmp    *to(%r11)
/// 1:  subl   $1,%fs:word+4
///     jb     2f
///     jmp    *from(%r11)
/// 2:  jmp    *event(%r11)
/// ```
pub(crate) fn half_code(data: u64, offsets: &StubOffsets) -> [u8; STUB_LEN] {
    let word = word_offset();
    let mut code = load(data);
    code.extend([0x64, 0x83, 0x3c, 0x25]);
    code.extend(word.to_le_bytes());
    code.extend([0x00, 0x75, 0x04]);
    code.extend(jump(offsets.to));
    code.extend([0x64, 0x83, 0x2c, 0x25]);
    code.extend((word + 4).to_le_bytes());
    code.extend([0x01, 0x72, 0x04]);
    code.extend(jump(offsets.from));
    code.extend(jump(offsets.event));
    padded(&code)
}

/// Returns the code of a stub that compares the word with the tag, for data at an address:
///
/// ```text
///     movabs $data,%r11
///     mov    tag(%r11),%r11
///     cmp    %fs:word,%r11
///     movabs $data,%r11
///     jb     2f
///     jne    1f
///     jmp    *from(%r11)
/// 1:  jmp    *event(%r11)
/// 2:  jmp    *to(%r11)
/// ```
pub(crate) fn tag_code(data: u64, offsets: &StubOffsets) -> [u8; STUB_LEN] {
    let mut code = load(data);
    code.extend([0x4d, 0x8b, 0x5b, low(offsets.tag)]);
    code.extend([0x64, 0x4c, 0x3b, 0x1c, 0x25]);
    code.extend(word_offset().to_le_bytes());
    code.extend(load(data));
    code.extend([0x72, 0x0a, 0x75, 0x04]);
    code.extend(jump(offsets.from));
    code.extend(jump(offsets.event));
    code.extend(jump(offsets.to));
    padded(&code)
}

/// Returns the unwind rows for stubs, as call frame instructions. A thread in a stub counts as inside the stub's
/// function, whose return address is on the stack.
pub(crate) fn rows(offsets: &StubOffsets) -> Vec<u8> {
    // *((rip & -64) + 2) + home; the CFA is rsp.
    let rip = [0x80, 0, 0x09, 0xc0, 0x1a, 0x23, 2, 0x06, 0x23, low(offsets.home)];
    [&[0x0c, 7, 0, 0x10, 16, low(rip.len())][..], &rip].concat()
}

/// Returns the distance of the word from fs: the psABI places static thread-local memory below fs, within 2 GiB.
fn word_offset() -> i32 {
    i32::try_from(word::offset()).unwrap_or_default()
}

/// movabs $data,%r11
fn load(data: u64) -> Vec<u8> {
    [&[0x49, 0xbb][..], &data.to_le_bytes()].concat()
}

/// jmp *offset(%r11)
fn jump(offset: usize) -> [u8; 4] {
    [0x41, 0xff, 0x63, low(offset)]
}

fn low(number: usize) -> u8 {
    number.to_le_bytes()[0]
}

fn padded(code: &[u8]) -> [u8; STUB_LEN] {
    let mut stub = [INT3; STUB_LEN];
    stub[..code.len()].copy_from_slice(code);
    stub
}
