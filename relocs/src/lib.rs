//! Relocations of x86-64 modules: the rows of the System V ABI's table, the GOT slots and PLT entries they need, and
//! two pure functions that turn records into edits and back.
//!
//! - [`ROWS`]: one [`Row`] for each number, with what it computes ([`Value`]) and where it goes ([`Field`]). What a
//!   loader of relocatable objects cannot or need not do is a row as well, with the [`Reason`] why it is refused.
//! - [`SlotPlan`]: which symbols need a GOT slot or a PLT entry; counted before any address is known. Once the two
//!   tables have their places it becomes [`Slots`].
//! - [`IndirectPlan`]: the same for the indirect functions that a module defines.
//! - [`apply`] reads the records of one section ([`Target`]) and feeds a [`modload_edit::Sink`]; [`clear`] feeds the
//!   exact inverse. Facts about symbols come from a [`Symbols`].
//! - [`Error`]: which relocation, and by how much, as data. The caller adds the names of section and symbol.
//!
//! ```
//! use modload_abi::{Records, Rela};
//! use modload_edit::{Addr, Window};
//! use modload_relocs::{OnDiscarded, SlotPlan, Symbol, SymbolKind, Target, apply};
//!
//! let file = [0xe8, 0, 0, 0, 0]; // call callee
//! let mut rela = Vec::new(); // R_X86_64_PLT32 callee-4 at +1
//! rela.extend(1_u64.to_le_bytes());
//! rela.extend(4_u32.to_le_bytes());
//! rela.extend(0_u32.to_le_bytes());
//! rela.extend((-4_i64).to_le_bytes());
//! let relas = Records::<Rela>::new(&rela)?;
//!
//! // Lay out: count the slots, then decide where everything goes.
//! let mut plan = SlotPlan::new(1);
//! plan.scan(2, relas, |_symbol| true);
//! assert_eq!((plan.got_size(), plan.plt_size()), (8, 16));
//! let slots = plan.place(Addr::new(0x3000), Addr::new(0x2000));
//!
//! // Relocate: the callee turns out to be in reach, so the call goes straight to it.
//! let callee = [Symbol { addr: Addr::new(0x1800), size: 0, kind: SymbolKind::External }];
//! let target = Target { section: 2, addr: Addr::new(0x1000), bytes: &file, discarded: OnDiscarded::Refuse };
//! let mut text = file;
//! let counts = apply(&target, relas, &callee[..], &slots, &mut Window::new(target.addr, &mut text))?;
//! assert_eq!(text, [0xe8, 0xfb, 0x07, 0, 0]); // call 0x1800
//! assert_eq!(counts.total(), 1);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! This crate never sees a pointer, a file or mapped memory. Relocation numbers are spelt here and nowhere else.

#![forbid(unsafe_code)]

mod apply;
mod counts;
mod error;
mod facts;
mod field;
mod indirect;
mod relax;
mod row;
mod slots;

pub use apply::{apply, clear};
pub use counts::Counts;
pub use error::{Advice, Error, Problem, Site};
pub use facts::{OnDiscarded, Symbol, SymbolKind, Symbols, Target};
pub use field::Field;
pub use indirect::IndirectPlan;
pub use row::{Before, ROWS, Reason, Row, Value, name, row};
pub use slots::{SlotPlan, Slots};
