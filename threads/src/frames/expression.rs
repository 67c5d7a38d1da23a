//! DWARF expressions of rows, evaluated without allocation.
//!
//! Supported are arithmetic, comparisons, registers and loads: the operations in rows of PLTs, of signal-return code
//! and of realigned stacks. An expression with any other operation has no value, and its frame no row.

use gimli::{EndianSlice, LittleEndian, Operation};

use super::memory::Memory;
use super::x86_64::{Register, Registers};

/// The number of values that an expression may have on its stack at once. PLT entries need three.
const DEEPEST: usize = 8;

/// The reason why an expression has no value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum NoValue {
    /// The expression is malformed, or uses an operation that is not supported.
    Unsupported,
    /// The expression needs a register that is not known.
    Unknown(Register),
    /// The expression loads from an address that cannot be read.
    Unreadable(u64),
}

type Reader<'a> = EndianSlice<'a, LittleEndian>;

/// The operand stack of the expression.
struct OperandStack {
    values: [u64; DEEPEST],
    len: usize,
}

impl OperandStack {
    fn push(&mut self, value: u64) -> Result<(), NoValue> {
        *self.values.get_mut(self.len).ok_or(NoValue::Unsupported)? = value;
        self.len += 1;
        Ok(())
    }

    fn pop(&mut self) -> Result<u64, NoValue> {
        self.len = self.len.checked_sub(1).ok_or(NoValue::Unsupported)?;
        Ok(self.values[self.len])
    }

    /// Returns a value by its distance from the top.
    fn peek(&self, depth: u8) -> Result<u64, NoValue> {
        let at = self.len.checked_sub(1 + usize::from(depth)).ok_or(NoValue::Unsupported)?;
        Ok(self.values[at])
    }

    /// Replaces the two topmost values by one. `operation` gets the deeper one first.
    fn two(&mut self, operation: fn(u64, u64) -> u64) -> Result<(), NoValue> {
        let top = self.pop()?;
        let below = self.pop()?;
        self.push(operation(below, top))
    }

    fn compare(&mut self, operation: fn(&i64, &i64) -> bool) -> Result<(), NoValue> {
        let top = self.pop()?.cast_signed();
        let below = self.pop()?.cast_signed();
        self.push(u64::from(operation(&below, &top)))
    }
}

/// Shifts a value. The result is 0 if the number of bits is at least the width of the value.
fn shift(value: u64, by: u64, shift: fn(u64, u32) -> Option<u64>) -> u64 {
    u32::try_from(by).ok().and_then(|by| shift(value, by)).unwrap_or(0)
}

/// Returns the value of an expression in a frame with these registers. `initial`, if there is one, is on the stack at
/// the start: in the rows of registers, the CFA.
pub(crate) fn evaluate(
    expression: Reader<'_>,
    encoding: gimli::Encoding,
    initial: Option<u64>,
    registers: &Registers,
    memory: &mut impl Memory,
) -> Result<u64, NoValue> {
    let mut rest = expression;
    let mut stack = OperandStack { values: [0; DEEPEST], len: 0 };
    if let Some(initial) = initial {
        stack.push(initial)?;
    }
    // There are no branches, so each byte is parsed once.
    while !rest.is_empty() {
        let operation = Operation::parse(&mut rest, encoding).map_err(|_| NoValue::Unsupported)?;
        match operation {
            Operation::RegisterOffset { register, offset, base_type } if base_type.0 == 0 => {
                let register = Register::numbered(register.0).ok_or(NoValue::Unsupported)?;
                let value = registers.get(register).ok_or(NoValue::Unknown(register))?;
                stack.push(value.wrapping_add_signed(offset))?;
            }
            Operation::Deref { size: 8, space: false, base_type } if base_type.0 == 0 => {
                let at = stack.pop()?;
                stack.push(memory.word(at).ok_or(NoValue::Unreadable(at))?)?;
            }
            Operation::UnsignedConstant { value } => stack.push(value)?,
            Operation::SignedConstant { value } => stack.push(value.cast_unsigned())?,
            Operation::PlusConstant { value } => {
                let top = stack.pop()?;
                stack.push(top.wrapping_add(value))?;
            }
            Operation::Plus => stack.two(u64::wrapping_add)?,
            Operation::Minus => stack.two(u64::wrapping_sub)?,
            Operation::Mul => stack.two(u64::wrapping_mul)?,
            Operation::And => stack.two(|below, top| below & top)?,
            Operation::Or => stack.two(|below, top| below | top)?,
            Operation::Xor => stack.two(|below, top| below ^ top)?,
            Operation::Shl => stack.two(|below, top| shift(below, top, u64::checked_shl))?,
            Operation::Shr => stack.two(|below, top| shift(below, top, u64::checked_shr))?,
            Operation::Eq => stack.compare(i64::eq)?,
            Operation::Ne => stack.compare(i64::ne)?,
            Operation::Ge => stack.compare(i64::ge)?,
            Operation::Gt => stack.compare(i64::gt)?,
            Operation::Le => stack.compare(i64::le)?,
            Operation::Lt => stack.compare(i64::lt)?,
            Operation::Drop => drop(stack.pop()?),
            Operation::Pick { index } => {
                let picked = stack.peek(index)?;
                stack.push(picked)?;
            }
            Operation::Swap => {
                let (top, below) = (stack.pop()?, stack.pop()?);
                stack.push(top)?;
                stack.push(below)?;
            }
            Operation::Nop => {}
            _ => return Err(NoValue::Unsupported),
        }
    }
    stack.pop()
}

#[cfg(test)]
mod tests {
    use gimli::{EndianSlice, Format, LittleEndian};

    use super::{NoValue, evaluate};
    use crate::frames::memory::Memory;
    use crate::frames::x86_64::{Register, Registers};

    /// Memory in which every address below 0x1000 holds itself plus 1.
    struct Small;

    impl Memory for Small {
        fn read(&mut self, at: u64, into: &mut [u8]) -> bool {
            into.copy_from_slice(&(at + 1).to_le_bytes());
            at < 0x1000
        }
    }

    #[track_caller]
    fn check(bytes: &[u8], expected: Result<u64, NoValue>) {
        let registers = Registers::unknown().with(Register::RSP, 0x100).with(Register::RIP, 0x40_102b);
        let encoding = gimli::Encoding { format: Format::Dwarf32, version: 4, address_size: 8 };
        let value = evaluate(EndianSlice::new(bytes, LittleEndian), encoding, None, &registers, &mut Small);
        assert_eq!(value, expected, "{bytes:x?}");
    }

    #[test]
    fn rows_of_a_plt_know_whether_it_has_pushed() {
        // breg7+8; breg16+0; lit15; and; lit11; ge; lit3; shl; plus
        let plt = [0x77, 0x08, 0x80, 0x00, 0x3f, 0x1a, 0x3b, 0x2a, 0x33, 0x24, 0x22];
        check(&plt, Ok(0x110));
        let mut earlier = plt;
        earlier[3] = 0x7f; // breg16-1: 0x40102a
        check(&earlier, Ok(0x108));
    }

    #[test]
    fn each_operation() {
        check(&[0x77, 0x10, 0x06], Ok(0x111)); // breg7+16; deref
        check(&[0x08, 7, 0x09, 0xfe, 0x1c], Ok(9)); // const1u 7; const1s -2; minus
        check(&[0x35, 0x23, 0x80, 0x01], Ok(133)); // lit5; plus_uconst 128
        check(&[0x35, 0x33, 0x1e], Ok(15)); // lit5; lit3; mul
        check(&[0x35, 0x33, 0x21], Ok(7)); // or
        check(&[0x35, 0x33, 0x27], Ok(6)); // xor
        check(&[0x35, 0x31, 0x25], Ok(2)); // shr
        check(&[0x35, 0x08, 64, 0x25], Ok(0)); // shr by 64
        check(&[0x35, 0x08, 200, 0x24], Ok(0)); // shl by 200
        check(&[0x35, 0x09, 0xff, 0x2b], Ok(1)); // 5 > -1
        check(&[0x35, 0x35, 0x29], Ok(1)); // eq
        check(&[0x35, 0x35, 0x2e], Ok(0)); // ne
        check(&[0x35, 0x35, 0x2c], Ok(1)); // le
        check(&[0x35, 0x35, 0x2d], Ok(0)); // lt
        check(&[0x35, 0x31, 0x16, 0x1c], Ok(u64::MAX - 3)); // lit5; lit1; swap; minus: 1 - 5
        check(&[0x35, 0x31, 0x13], Ok(5)); // drop
        check(&[0x35, 0x12, 0x22], Ok(10)); // dup; plus
        check(&[0x35, 0x31, 0x14, 0x96], Ok(5)); // over; nop
    }

    #[test]
    fn what_has_no_value_says_why() {
        check(&[], Err(NoValue::Unsupported));
        check(&[0x22], Err(NoValue::Unsupported)); // plus of nothing
        check(&[0x30; 9], Err(NoValue::Unsupported)); // nine values
        check(&[0x2f, 0xfd, 0xff], Err(NoValue::Unsupported)); // skip -3: would never end
        check(&[0x35, 0x94, 4], Err(NoValue::Unsupported)); // deref_size
        check(&[0x57], Err(NoValue::Unsupported)); // reg7
        check(&[0x08], Err(NoValue::Unsupported)); // cut off
        check(&[0x92, 40, 0], Err(NoValue::Unsupported)); // bregx 40
        let rbx = Register::RBX;
        check(&[0x73, 0x00], Err(NoValue::Unknown(rbx)));
        check(&[0x0a, 0x00, 0x10, 0x06], Err(NoValue::Unreadable(0x1000)));
    }
}
