//! Code memory: how much of it is used, how published text is changed, and how a subscriber changes text that is not published yet.
//!
//! A subscriber replaces `mov eax, 1` (`b8 01 00 00 00`) in the text of each module that comes:
//!
//! ```
//! use modload::text::{Edit, EditOrigin, Engine, Sink};
//! use modload::{Coming, Host, Image, Order, Refusal, Subscriber};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! struct Change;
//!
//! impl Subscriber for Change {
//!     fn coming(&self, module: &mut Coming<'_>) -> Result<(), Refusal> {
//!         let one = module.module().symbol_info("one").ok_or("there is no function \"one\"")?;
//!         let (start, text) = module.text(one.addr).ok_or("the function has no text")?;
//!         let old = [0xb8, 1, 0, 0, 0];
//!         let at = text.windows(5).position(|bytes| bytes == old).ok_or("the instruction is not there")?;
//!         let why = EditOrigin { engine: Engine::Subscriber, section: 0, record: 0 };
//!         // An edit whose old bytes are not there is refused.
//!         let edit = Edit { at: start + at as u64, old: &old, new: &[0xb8, 2, 0, 0, 0], why };
//!         module.edit(edit).map_err(|rejected| Refusal::from(rejected.to_string()))
//!     }
//! }
//!
//! // `object` is the compiled form of: int one(void) { return 1; }
//! # let object = modload_fixtures::c_object("int one(void) { return 1; }")?;
//! let host = Host::builder().build()?;
//! let _membership = host.subscribe("change", Order::mirrored(0), Change);
//! // SAFETY: the object is the code above.
//! let module = host.load(&unsafe { Image::trusted(object) }.named("one"))?;
//! // SAFETY: `one` takes no arguments.
//! assert_eq!(unsafe { module.call("one", &[])? }, 2);
//! # Ok(())
//! # }
//! ```

pub use modload_edit::{
    Addr, Code, Edit, EditOrigin, EditSet, Edits, Engine, PieceKind, PlanError, RecordTable, Rejected, Sink,
    disassembled, formatter,
};
pub use modload_loader::{SectionBytes, TrampolineBranch, TrampolineCall};
pub use modload_text::{
    Arena, Class, Describe, ModuleData, NewData, PokeError, ProtectedData, Published, Staged, StripeUsage, TextLock,
    TrapMask, TrapObstacle,
};
