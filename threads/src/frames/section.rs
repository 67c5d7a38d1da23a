//! The entries of an `.eh_frame`, read and checked before they are used (System V ABI, x86-64 psABI 4.2.4; LSB core,
//! 10.6; DWARF 5, 6.4.2).

use std::borrow::Cow;

use thiserror::Error;

/// The defect of an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum Flaw {
    /// The entry ends too early, or beyond the section.
    #[error("it is cut off")]
    CutOff,
    /// The entry has a length of 64 bits, which libgcc does not read.
    #[error("its length has 64 bits")]
    Wide,
    /// The entry's common information is not before it in the section, or is not common information.
    #[error("its common information is not where it says")]
    NoCommon,
    /// The version of the common information is neither 1 nor 3.
    #[error("its version is {0}, not 1 or 3")]
    Version(u8),
    /// A letter of the augmentation is not known.
    #[error("its augmentation has the letter {:?}, which is not known", char::from(*.0))]
    Letter(u8),
    /// A pointer is encoded in a way that compilers do not use for x86-64.
    #[error("it has a pointer of the encoding {0:#04x}, which is not supported")]
    Encoding(u8),
    /// The return address is not in column 16.
    #[error("it has the return address in column {0}, not 16")]
    ReturnAddress(u8),
    /// DW_CFA_set_loc goes to an address outside of the function.
    #[error("its call frame instruction DW_CFA_set_loc goes to {0:#x}, which is not in the function")]
    Location(u64),
    /// An instruction that is not known.
    #[error("it has the call frame instruction {0:#04x}, which is not known or not supported")]
    Instruction(u8),
}

/// The common information of functions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Common<'a> {
    /// Offset of the entry.
    pub(crate) at: usize,
    pub(crate) version: u8,
    /// The augmentation: empty, or `z` and one letter for each thing that the augmentation adds.
    pub(crate) letters: &'a [u8],
    /// The bytes of both factors and of the column of the return address, as in the section.
    pub(crate) factors: &'a [u8],
    /// The encoding of functions' addresses.
    pub(crate) pointers: u8,
    /// The encoding of the addresses of language-specific data, if functions have any.
    pub(crate) lsda: Option<u8>,
    /// The personality routine: whether the address is that of a pointer to the routine, and the address.
    pub(crate) personality: Option<(bool, u64)>,
    pub(crate) program: &'a [u8],
}

/// The description of a function.
#[derive(Clone, Debug)]
pub(crate) struct FrameDescription<'a> {
    /// The first address; 0 if a linker has dropped the function.
    pub(crate) start: u64,
    pub(crate) len: u64,
    /// The address of the language-specific data; 0 if there is none.
    pub(crate) lsda: u64,
    /// The call frame instructions. All addresses in them are absolute.
    pub(crate) program: Cow<'a, [u8]>,
}

/// An entry: its offset, and the bytes behind its length.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FrameEntry<'a> {
    pub(crate) at: usize,
    body: &'a [u8],
}

/// Reads bytes forward.
#[derive(Clone, Copy)]
struct Cursor<'a> {
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], Flaw> {
        let (taken, rest) = self.rest.split_at_checked(len).ok_or(Flaw::CutOff)?;
        self.rest = rest;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, Flaw> {
        Ok(self.take(1)?[0])
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Flaw> {
        self.take(N)?.try_into().map_err(|_| Flaw::CutOff)
    }

    /// Reads a number of variable length, without a sign (LEB128 in DWARF).
    fn number(&mut self) -> Result<u64, Flaw> {
        let mut value = 0;
        for shift in (0..63).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Flaw::CutOff)
    }

    /// Skips a number of variable length, with a sign or without.
    fn skip_number(&mut self) -> Result<(), Flaw> {
        while self.byte()? & 0x80 != 0 {}
        Ok(())
    }

    fn length(&mut self) -> Result<usize, Flaw> {
        usize::try_from(self.number()?).map_err(|_| Flaw::CutOff)
    }

    /// Reads a value in the format that the low half of an encoding names.
    fn value(&mut self, encoding: u8) -> Result<u64, Flaw> {
        Ok(match encoding & 0xf {
            0x0 | 0x4 | 0xc => u64::from_le_bytes(self.array()?),
            0x2 => u16::from_le_bytes(self.array()?).into(),
            0x3 => u32::from_le_bytes(self.array()?).into(),
            0xa => i64::from(i16::from_le_bytes(self.array()?)).cast_unsigned(),
            0xb => i64::from(i32::from_le_bytes(self.array()?)).cast_unsigned(),
            _ => return Err(Flaw::Encoding(encoding)),
        })
    }
}

/// A section, and the address at which it lies or will lie.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FrameSection<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) at: u64,
}

impl<'a> FrameSection<'a> {
    /// Returns the next entry from an offset on, and the offset behind it; `None` at the end. An entry of length 0 ends
    /// the section for an unwinder, and may precede rows of other objects, which were linked behind it. Such an entry
    /// is skipped, as linkers leave it out.
    pub(crate) fn entry(&self, mut at: usize) -> Result<Option<(FrameEntry<'a>, usize)>, Flaw> {
        loop {
            let mut cursor = Cursor { rest: self.bytes.get(at..).ok_or(Flaw::CutOff)? };
            if cursor.rest.is_empty() {
                return Ok(None);
            }
            let len = u32::from_le_bytes(cursor.array()?);
            if len == u32::MAX {
                return Err(Flaw::Wide);
            }
            let body = cursor.take(usize::try_from(len).map_err(|_| Flaw::CutOff)?)?;
            let next = at + 4 + body.len();
            if len != 0 {
                return Ok(Some((FrameEntry { at, body }, next)));
            }
            at = next;
        }
    }

    /// Reads a pointer from the beginning of the cursor. A value of zero is a null pointer, in every relative encoding.
    fn pointer(&self, cursor: &mut Cursor<'a>, encoding: u8) -> Result<u64, Flaw> {
        let offset = self.bytes.len() - distance(self.bytes, cursor.rest);
        let value = cursor.value(encoding)?;
        let base = match encoding & 0x70 {
            0x00 => 0,
            0x10 => self.at.wrapping_add(u64::try_from(offset).map_err(|_| Flaw::CutOff)?),
            _ => return Err(Flaw::Encoding(encoding)),
        };
        Ok(if value == 0 { 0 } else { base.wrapping_add(value) })
    }

    /// Reads an entry as common information.
    pub(crate) fn common(&self, entry: FrameEntry<'a>) -> Result<Common<'a>, Flaw> {
        let mut cursor = Cursor { rest: entry.body };
        cursor.take(4)?;
        let version = cursor.byte()?;
        if version != 1 && version != 3 {
            return Err(Flaw::Version(version));
        }
        let end = cursor.rest.iter().position(|byte| *byte == 0).ok_or(Flaw::CutOff)?;
        let letters = cursor.take(end)?;
        cursor.byte()?;
        let before = cursor.rest;
        cursor.skip_number()?;
        cursor.skip_number()?;
        // Each supported column fits in one byte, in both versions.
        let column = cursor.byte()?;
        if column != 16 {
            return Err(Flaw::ReturnAddress(column));
        }
        let factors = &before[..before.len() - cursor.rest.len()];
        let mut common = Common {
            at: entry.at,
            version,
            letters,
            factors,
            pointers: 0,
            lsda: None,
            personality: None,
            program: &[],
        };
        if let Some((first, rest)) = letters.split_first() {
            if *first != b'z' {
                return Err(Flaw::Letter(*first));
            }
            let len = cursor.length()?;
            let mut data = Cursor { rest: cursor.take(len)? };
            for letter in rest {
                match letter {
                    b'R' => common.pointers = direct(data.byte()?)?,
                    b'L' => common.lsda = Some(direct(data.byte()?)?),
                    b'P' => {
                        let encoding = data.byte()?;
                        common.personality = Some((encoding & 0x80 != 0, self.pointer(&mut data, encoding & 0x7f)?));
                    }
                    b'S' => {}
                    _ => return Err(Flaw::Letter(*letter)),
                }
            }
        }
        common.program = cursor.rest;
        match check_program(common.program, common.pointers)? {
            Addresses::None => Ok(common),
            // Common information belongs to no function, so an address in it is wrong.
            Addresses::Some => Err(Flaw::Instruction(SET_LOC)),
        }
    }

    /// Reads the common information at an offset, for an entry that describes a function.
    pub(crate) fn common_at(&self, at: usize) -> Result<Common<'a>, Flaw> {
        let (entry, _) = self.entry(at).map_err(|_| Flaw::NoCommon)?.ok_or(Flaw::NoCommon)?;
        if entry.at == at && entry.is_common()? { self.common(entry) } else { Err(Flaw::NoCommon) }
    }

    /// Reads the description of a function, which has this common information.
    pub(crate) fn function(&self, entry: FrameEntry<'a>, common: &Common<'a>) -> Result<FrameDescription<'a>, Flaw> {
        let mut cursor = Cursor { rest: entry.body };
        cursor.take(4)?;
        let start = self.pointer(&mut cursor, common.pointers)?;
        // The length is a plain number of the same format, without a sign.
        let len = cursor.value(common.pointers & 0x7)?;
        let mut lsda = 0;
        if !common.letters.is_empty() {
            let len = cursor.length()?;
            let mut data = Cursor { rest: cursor.take(len)? };
            if let Some(encoding) = common.lsda {
                lsda = self.pointer(&mut data, encoding)?;
            }
        }
        let program = match check_program(cursor.rest, common.pointers)? {
            Addresses::Some if start != 0 => Cow::Owned(self.absolute(cursor.rest, common.pointers, start, len)?),
            Addresses::None | Addresses::Some => Cow::Borrowed(cursor.rest),
        };
        Ok(FrameDescription { start, len, lsda, program })
    }

    /// Returns a copy of a checked program of a function of `len` bytes at `start`, with absolute addresses.
    fn absolute(&self, program: &'a [u8], encoding: u8, start: u64, len: u64) -> Result<Vec<u8>, Flaw> {
        let mut copy = Vec::with_capacity(program.len() + 8);
        let mut at = 0;
        while at < program.len() {
            let next = behind_instruction(program, at, encoding)?;
            if program[at] == SET_LOC {
                let to = self.pointer(&mut Cursor { rest: &program[at + 1..] }, encoding)?;
                if to.checked_sub(start).is_none_or(|offset| offset > len) {
                    return Err(Flaw::Location(to));
                }
                copy.push(SET_LOC);
                copy.extend(to.to_le_bytes());
            } else {
                copy.extend(&program[at..next]);
            }
            at = next;
        }
        Ok(copy)
    }
}

impl FrameEntry<'_> {
    /// Returns whether the entry is common information, and not the description of a function.
    pub(crate) fn is_common(&self) -> Result<bool, Flaw> {
        Ok(Cursor { rest: self.body }.array::<4>()? == [0; 4])
    }

    /// Returns the offset of a function's common information. The field holds the distance from itself back to that
    /// offset.
    pub(crate) fn common(&self) -> Result<usize, Flaw> {
        let back = u32::from_le_bytes(Cursor { rest: self.body }.array()?);
        let back = usize::try_from(back).map_err(|_| Flaw::NoCommon)?;
        (self.at + 4).checked_sub(back).ok_or(Flaw::NoCommon)
    }
}

/// Returns the number of bytes from the beginning of `rest`, which is a part of `whole`, to the end of `whole`.
fn distance(whole: &[u8], rest: &[u8]) -> usize {
    whole.as_ptr_range().end.addr() - rest.as_ptr().addr()
}

/// Refuses the indirect encoding: only a personality routine may be reached through a pointer.
fn direct(encoding: u8) -> Result<u8, Flaw> {
    if encoding & 0x80 == 0 { Ok(encoding) } else { Err(Flaw::Encoding(encoding)) }
}

/// The operands that follow the opcode of a call frame instruction.
#[derive(Clone, Copy)]
enum Operands {
    /// This number of bytes.
    Bytes(usize),
    /// This number of numbers of variable length.
    Numbers(u8),
    /// This number of numbers of variable length, and then a block with its length.
    Block(u8),
    /// An address, in the encoding of function addresses.
    Address,
    /// An unknown instruction, or one that compilers do not write here.
    Unknown,
}

/// DW_CFA_set_loc. Compilers write advances instead; assemblers and other tools need not.
const SET_LOC: u8 = 0x01;

/// Tells whether a program has addresses in it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Addresses {
    None,
    Some,
}

/// Instructions by their opcodes (DWARF 5, table 7.29; LSB core, table 10-6), except those that carry an operand in the
/// opcode.
const INSTRUCTIONS: [(u8, Operands); 24] = [
    (0x00, Operands::Bytes(0)),   // nop
    (SET_LOC, Operands::Address), // set_loc
    (0x02, Operands::Bytes(1)),   // advance_loc1
    (0x03, Operands::Bytes(2)),   // advance_loc2
    (0x04, Operands::Bytes(4)),   // advance_loc4
    (0x05, Operands::Numbers(2)), // offset_extended
    (0x06, Operands::Numbers(1)), // restore_extended
    (0x07, Operands::Numbers(1)), // undefined
    (0x08, Operands::Numbers(1)), // same_value
    (0x09, Operands::Numbers(2)), // register
    (0x0a, Operands::Bytes(0)),   // remember_state
    (0x0b, Operands::Bytes(0)),   // restore_state
    (0x0c, Operands::Numbers(2)), // def_cfa
    (0x0d, Operands::Numbers(1)), // def_cfa_register
    (0x0e, Operands::Numbers(1)), // def_cfa_offset
    (0x0f, Operands::Block(0)),   // def_cfa_expression
    (0x10, Operands::Block(1)),   // expression
    (0x11, Operands::Numbers(2)), // offset_extended_sf
    (0x12, Operands::Numbers(2)), // def_cfa_sf
    (0x13, Operands::Numbers(1)), // def_cfa_offset_sf
    (0x14, Operands::Numbers(2)), // val_offset
    (0x15, Operands::Numbers(2)), // val_offset_sf
    (0x16, Operands::Block(1)),   // val_expression
    (0x2e, Operands::Numbers(1)), // GNU_args_size
];

/// The operands by opcode, including those of instructions with an operand in the opcode.
const BY_OPCODE: [Operands; 256] = {
    let mut table = [Operands::Unknown; 256];
    let mut slot = 0x40;
    while slot < 256 {
        // offset also has a number; advance_loc and restore have none.
        table[slot] = if slot & 0xc0 == 0x80 { Operands::Numbers(1) } else { Operands::Bytes(0) };
        slot += 1;
    }
    let mut row = 0;
    while row < INSTRUCTIONS.len() {
        let (opcode, operands) = INSTRUCTIONS[row];
        let mut slot = 0;
        let mut number = 0;
        while number < opcode {
            slot += 1;
            number += 1;
        }
        table[slot] = operands;
        row += 1;
    }
    table
};

/// Checks that each instruction of a program is known and complete. Returns whether the program has addresses in it,
/// which have this encoding. The effects of the instructions are seen when a walk passes through.
///
/// This check runs over each instruction of each loaded function, so it uses offsets in place of a cursor.
fn check_program(program: &[u8], encoding: u8) -> Result<Addresses, Flaw> {
    // The bytes behind the last byte that is not zero are nops, or operands of the last instruction.
    let end = program.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    let mut at = 0;
    let mut addresses = Addresses::None;
    while at < end {
        if program[at] == SET_LOC {
            addresses = Addresses::Some;
        }
        at = behind_instruction(program, at, encoding)?;
    }
    if at <= program.len() { Ok(addresses) } else { Err(Flaw::CutOff) }
}

/// Returns the offset behind the instruction at an offset. The result may lie behind the program's end.
#[inline]
fn behind_instruction(program: &[u8], at: usize, encoding: u8) -> Result<usize, Flaw> {
    let opcode = program[at];
    let at = at + 1;
    Ok(match BY_OPCODE[usize::from(opcode)] {
        Operands::Bytes(len) => at + len,
        Operands::Numbers(count) => behind_numbers(program, at, count)?,
        Operands::Block(count) => {
            let mut cursor = Cursor { rest: &program[behind_numbers(program, at, count)?..] };
            let len = cursor.length()?;
            cursor.take(len)?;
            program.len() - cursor.rest.len()
        }
        Operands::Address => {
            let mut cursor = Cursor { rest: program.get(at..).ok_or(Flaw::CutOff)? };
            cursor.value(encoding)?;
            program.len() - cursor.rest.len()
        }
        Operands::Unknown => return Err(Flaw::Instruction(opcode)),
    })
}

/// Returns the offset behind `count` numbers of variable length.
fn behind_numbers(program: &[u8], mut at: usize, count: u8) -> Result<usize, Flaw> {
    for _ in 0..count {
        while program.get(at).ok_or(Flaw::CutOff)? & 0x80 != 0 {
            at += 1;
        }
        at += 1;
    }
    Ok(at)
}
