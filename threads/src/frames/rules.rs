//! The step from a frame to its caller: applies the rules of one row.

use gimli::{
    BaseAddresses, CfaRule, EhFrame, EhFrameOffset, EndianSlice, LittleEndian, RegisterRule, UnwindContext,
    UnwindContextStorage, UnwindSection, UnwindTableRow,
};

use super::expression::{NoValue, evaluate};
use super::index::Reading;
use super::memory::Memory;
use super::process::Objects;
use super::x86_64::{Register, Registers};

/// Storage for a row's rules in the walker itself: for the registers of [`Register`] and some that do not matter here.
#[derive(Clone, Debug)]
struct InPlace;

impl UnwindContextStorage<usize> for InPlace {
    type Rules = [(gimli::Register, RegisterRule<usize>); 24];
    /// Room for a row, the first row of the function, and two remembered ones: compilers nest to a depth of one.
    type Stack = [UnwindTableRow<usize, InPlace>; 4];
}

type Reader<'a> = EndianSlice<'a, LittleEndian>;

/// The reason why a frame's caller is not known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Unknown {
    /// There is no row, or the row is malformed or not supported.
    NoRow,
    /// A rule needs a register that is not known in this frame.
    Register(Register),
    /// The CFA is below the frame's stack pointer, or not aligned.
    Cfa(u64),
    /// The stack cannot be read at this address.
    Unreadable(u64),
}

impl From<NoValue> for Unknown {
    fn from(no_value: NoValue) -> Unknown {
        match no_value {
            NoValue::Unsupported => Unknown::NoRow,
            NoValue::Unknown(register) => Unknown::Register(register),
            NoValue::Unreadable(at) => Unknown::Unreadable(at),
        }
    }
}

/// The result of applying a row to a frame.
pub(crate) struct Unwound {
    pub(crate) cfa: u64,
    /// Whether the frame belongs to code to which the kernel diverts a thread: the outer frame was interrupted, and has
    /// made no call.
    pub(crate) interrupts: bool,
    /// The registers of the caller; `None` if there is no caller.
    pub(crate) caller: Option<Registers>,
}

/// A row of the form that compilers make for nearly all code: registers are unchanged, or on the stack.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PlainRow {
    cfa: (Register, i64),
    saved: [(Register, i64); MOST_SAVED],
    count: usize,
    /// One bit for each register that holds the caller's value.
    same: u32,
    interrupts: bool,
    is_outermost: bool,
}

/// The preserved registers, the return address, and one more.
const MOST_SAVED: usize = 8;

impl PlainRow {
    fn of(row: &UnwindTableRow<usize, InPlace>, interrupts: bool) -> Option<PlainRow> {
        let CfaRule::RegisterAndOffset { register, offset } = row.cfa() else { return None };
        let cfa = (Register::numbered(register.0)?, *offset);
        let mut plain = PlainRow {
            cfa,
            saved: [(Register::STACK, 0); MOST_SAVED],
            count: 0,
            same: 0,
            interrupts,
            is_outermost: false,
        };
        for register in Register::ALL {
            match row.register(gimli::Register(register.number().into())) {
                None if register.is_preserved() => plain.same |= 1 << register.number(),
                Some(RegisterRule::SameValue) => plain.same |= 1 << register.number(),
                Some(RegisterRule::Undefined) if register == Register::RETURN => plain.is_outermost = true,
                None | Some(RegisterRule::Undefined) => {}
                Some(RegisterRule::Offset(offset)) => {
                    *plain.saved.get_mut(plain.count)? = (register, offset);
                    plain.count += 1;
                }
                Some(_) => return None,
            }
        }
        Some(plain)
    }

    fn apply(&self, registers: &Registers, memory: &mut impl Memory) -> Result<Unwound, Unknown> {
        let (register, offset) = self.cfa;
        let cfa = known(registers, register)?.wrapping_add_signed(offset);
        check_cfa(cfa, self.interrupts, registers)?;
        if self.is_outermost {
            return Ok(Unwound { cfa, interrupts: self.interrupts, caller: None });
        }
        let mut caller = Registers::unknown();
        caller.set(Register::STACK, cfa);
        let same = Register::ALL.into_iter().filter(|register| self.same & 1 << register.number() != 0);
        for (register, value) in same.filter_map(|register| Some((register, registers.get(register)?))) {
            caller.set(register, value);
        }
        for (register, offset) in &self.saved[..self.count] {
            let at = cfa.wrapping_add_signed(*offset);
            caller.set(*register, memory.word(at).ok_or(Unknown::Unreadable(at))?);
        }
        caller.get(Register::RETURN).ok_or(Unknown::NoRow)?;
        Ok(Unwound { cfa, interrupts: self.interrupts, caller: Some(caller) })
    }
}

/// Plain rows that earlier walks found, by the address that they were found for: sleeping threads are mostly in the
/// same place. The rows are valid as long as no rows change: while all other threads are held.
#[derive(Debug)]
pub(crate) struct RowCache {
    rows: Box<[Option<(u64, PlainRow)>]>,
}

/// The number of rows that are kept, a power of two.
const ROOM: usize = 512;

impl RowCache {
    pub(crate) fn new() -> RowCache {
        RowCache { rows: vec![None; ROOM].into() }
    }

    fn place(&mut self, at: u64) -> &mut Option<(u64, PlainRow)> {
        let hash = at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 55;
        let place = usize::try_from(hash).unwrap_or(0) % ROOM;
        &mut self.rows[place]
    }
}

/// The state that a walk needs to find and to apply rows. Nothing in it is allocated.
pub(crate) struct Unwinder<M> {
    context: UnwindContext<usize, InPlace>,
    objects: Objects,
    memory: M,
    /// The row that was applied last, if it is a plain one; kept only if `keeps_last` is set.
    last: Option<PlainRow>,
    keeps_last: bool,
}

impl<M: Memory> Unwinder<M> {
    pub(crate) fn new(memory: M) -> Unwinder<M> {
        Unwinder {
            context: UnwindContext::new_in(),
            objects: Objects::default(),
            memory,
            last: None,
            keeps_last: false,
        }
    }

    /// Works like [`Unwinder::unwind`], by a row that an earlier walk found, if there is one.
    pub(crate) fn unwind_met(
        &mut self,
        met: &mut RowCache,
        at: u64,
        registers: &Registers,
        tables: &Reading,
    ) -> Result<Unwound, Unknown> {
        let place = met.place(at);
        if let Some((of, plain)) = place
            && *of == at
        {
            return plain.apply(registers, &mut self.memory);
        }
        self.keeps_last = true;
        self.last = None;
        let unwound = self.unwind(at, registers, tables)?;
        if let Some(plain) = self.last.take() {
            *place = Some((at, plain));
        }
        Ok(unwound)
    }

    /// Returns the function whose rows cover an address: its start, and the address behind it.
    pub(crate) fn range(&mut self, at: u64, tables: &Reading) -> Option<std::ops::Range<u64>> {
        let (frames, bases, offset) = match tables.find(at) {
            Some(listing) => listing.description(at)?,
            None => self.objects.at(at)?.description(at)?,
        };
        let entry = frames.fde_from_offset(&bases, EhFrameOffset(offset), EhFrame::cie_from_offset).ok()?;
        let range = entry.initial_address()..entry.initial_address().checked_add(entry.len())?;
        range.contains(&at).then_some(range)
    }

    /// Applies the row for `at`, an address in the function whose frame has these registers.
    pub(crate) fn unwind(&mut self, at: u64, registers: &Registers, tables: &Reading) -> Result<Unwound, Unknown> {
        let (frames, bases, offset) = match tables.find(at) {
            Some(listing) => listing.description(at).ok_or(Unknown::NoRow)?,
            None => {
                let object = self.objects.at(at).ok_or(Unknown::NoRow)?;
                object.description(at).ok_or(Unknown::NoRow)?
            }
        };
        self.apply(&frames, &bases, offset, at, registers)
    }

    fn apply(
        &mut self,
        frames: &EhFrame<Reader<'_>>,
        bases: &BaseAddresses,
        offset: usize,
        at: u64,
        registers: &Registers,
    ) -> Result<Unwound, Unknown> {
        let entry = frames.fde_from_offset(bases, EhFrameOffset(offset), EhFrame::cie_from_offset);
        let entry = entry.ok().filter(|entry| entry.contains(at)).ok_or(Unknown::NoRow)?;
        let encoding = entry.cie().encoding();
        if entry.cie().return_address_register().0 != u16::from(Register::RETURN.number()) {
            return Err(Unknown::NoRow);
        }
        let row = entry.unwind_info_for_address(frames, bases, &mut self.context, at).map_err(|_| Unknown::NoRow)?;
        let memory = &mut self.memory;
        let mut value_of = |expression: &gimli::UnwindExpression<usize>, initial| {
            let expression = expression.get(frames).map_err(|_| Unknown::NoRow)?;
            evaluate(expression.0, encoding, initial, registers, memory).map_err(Unknown::from)
        };
        let cfa = match row.cfa() {
            CfaRule::RegisterAndOffset { register, offset } => {
                let register = Register::numbered(register.0).ok_or(Unknown::NoRow)?;
                known(registers, register)?.wrapping_add_signed(*offset)
            }
            CfaRule::Expression(expression) => value_of(expression, None)?,
        };
        let interrupts = entry.is_signal_trampoline();
        if self.keeps_last {
            self.last = PlainRow::of(row, interrupts);
        }
        check_cfa(cfa, interrupts, registers)?;
        let mut caller = Registers::unknown();
        // The psABI defines the CFA as the caller's stack pointer.
        caller.set(Register::STACK, cfa);
        for register in Register::ALL {
            let value = match row.register(gimli::Register(register.number().into())) {
                // No rule is stated: functions preserve the registers that they must preserve, and no other register is
                // known.
                None if register.is_preserved() => registers.get(register),
                None => continue,
                Some(RegisterRule::Undefined) if register == Register::RETURN => {
                    return Ok(Unwound { cfa, interrupts, caller: None });
                }
                Some(RegisterRule::Undefined) => continue,
                Some(RegisterRule::SameValue) => registers.get(register),
                Some(RegisterRule::Offset(offset)) => {
                    let at = cfa.wrapping_add_signed(offset);
                    Some(memory.word(at).ok_or(Unknown::Unreadable(at))?)
                }
                Some(RegisterRule::ValOffset(offset)) => Some(cfa.wrapping_add_signed(offset)),
                Some(RegisterRule::Register(other)) => {
                    registers.get(Register::numbered(other.0).ok_or(Unknown::NoRow)?)
                }
                Some(RegisterRule::Expression(expression)) => {
                    let expression = expression.get(frames).map_err(|_| Unknown::NoRow)?;
                    let at = evaluate(expression.0, encoding, Some(cfa), registers, memory)?;
                    Some(memory.word(at).ok_or(Unknown::Unreadable(at))?)
                }
                Some(RegisterRule::ValExpression(expression)) => {
                    let expression = expression.get(frames).map_err(|_| Unknown::NoRow)?;
                    Some(evaluate(expression.0, encoding, Some(cfa), registers, memory)?)
                }
                Some(RegisterRule::Architectural | RegisterRule::Constant(_)) => return Err(Unknown::NoRow),
            };
            if let Some(value) = value {
                caller.set(register, value);
            }
        }
        // Without a rule for the return address there is no row.
        caller.get(Register::RETURN).ok_or(Unknown::NoRow)?;
        Ok(Unwound { cfa, interrupts, caller: Some(caller) })
    }
}

fn known(registers: &Registers, register: Register) -> Result<u64, Unknown> {
    registers.get(register).ok_or(Unknown::Register(register))
}

/// Checks that a frame lies between its stack pointer and its CFA. A frame holds a return address at least, except that
/// code may have popped the return address into a register (`vfork`), which such code then does not preserve for
/// callees. Only signal frames may be on another stack than the frames that they have interrupted.
fn check_cfa(cfa: u64, interrupts: bool, registers: &Registers) -> Result<(), Unknown> {
    let stack = known(registers, Register::STACK)?;
    if !cfa.is_multiple_of(8) || (cfa < stack && !interrupts) {
        return Err(Unknown::Cfa(cfa));
    }
    Ok(())
}
