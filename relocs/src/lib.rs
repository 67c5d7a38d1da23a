//! Relocations of x86-64 modules: the rows of the System V ABI's table, the GOT slots and PLT entries that they need,
//! and two pure functions that convert records to edits and to the inverse edits.
//!
//! - [`ROWS`]: one [`RelocRow`] for each relocation number, with the computed [`RelocFormula`] and the [`RelocField`]
//!   that takes it. The table also has a row for each relocation that a loader of relocatable objects does not support,
//!   with the [`Reason`].
//! - [`SlotPlan`]: the symbols that need a GOT slot or a PLT entry, counted before any address is known. Once the two
//!   tables have addresses, the plan becomes [`Slots`].
//! - [`IndirectPlan`]: the entries and slots of the indirect functions that a module defines.
//! - [`TlsBlocks`]: the thread-local storage of the module and of others, with which the plan's pairs and descriptors are
//!   filled.
//! - [`apply`] reads the records of one section ([`RelocatedSection`]) and passes edits to a [`modload_edit::Sink`];
//!   [`clear`] passes the exact inverse. A [`RelocSymbols`] provides the facts about symbols.
//! - [`RelocError`]: which relocation, and by how much a value misses, as data. The caller adds the names of section
//!   and symbol.
//!
//! ```
//! use modload_abi::{Records, Rela};
//! use modload_edit::{Addr, Window};
//! use modload_relocs::{OnDiscarded, SlotPlan, RelocSymbol, RelocSymbolKind, RelocatedSection, apply};
//!
//! let file = [0xe8, 0, 0, 0, 0]; // call callee
//! let mut rela = Vec::new(); // R_X86_64_PLT32 callee-4 at +1
//! rela.extend(1_u64.to_le_bytes());
//! rela.extend(4_u32.to_le_bytes());
//! rela.extend(0_u32.to_le_bytes());
//! rela.extend((-4_i64).to_le_bytes());
//! let relas = Records::<Rela>::new(&rela)?;
//!
//! // Lay out: count the slots, then decide the addresses.
//! let mut plan = SlotPlan::new(1);
//! plan.scan(2, relas, |_symbol| true);
//! assert_eq!((plan.got_size(), plan.plt_size()), (8, 16));
//! let slots = plan.place(Addr::new(0x3000), Addr::new(0x2000));
//!
//! // Relocate: the callee is in reach, so the call goes straight to it.
//! let callee = [RelocSymbol { addr: Addr::new(0x1800), size: 0, kind: RelocSymbolKind::External }];
//! let target = RelocatedSection {
//!     section: 2,
//!     addr: Addr::new(0x1000),
//!     bytes: &file,
//!     discarded: OnDiscarded::Refuse,
//! };
//! let mut text = file;
//! let counts = apply(&target, relas, &callee[..], &slots, &mut Window::new(target.addr, &mut text))?;
//! assert_eq!(text, [0xe8, 0xfb, 0x07, 0, 0]); // call 0x1800
//! assert_eq!(counts.total(), 1);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! This crate never sees a pointer, a file or mapped memory. Relocation numbers are written here and nowhere else.

#![forbid(unsafe_code)]

mod apply;
mod counts;
mod error;
mod facts;
mod field;
mod indirect;
mod row;
mod slots;
mod thread_local;
mod tls;
#[cfg(target_arch = "x86_64")]
mod x86_64;

pub use apply::{apply, clear};
pub use counts::RelocCounts;
pub use error::{RelocAdvice, RelocError, RelocProblem, RelocSite};
pub use facts::{OnDiscarded, RelocSymbol, RelocSymbolKind, RelocSymbols, RelocatedSection};
pub use field::RelocField;
pub use indirect::IndirectPlan;
pub use row::{Before, Reason, RelocFormula, RelocRow};
pub use slots::{SlotPlan, Slots};
pub use tls::{TlsBlock, TlsBlocks, relaxes_local_dynamic};
pub use x86_64::{ROWS, name, row};
