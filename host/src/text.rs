//! Code memory: how much of it is used, how published text is changed, and how a subscriber changes text that is not published yet.

pub use modload_edit::{
    Addr, Code, Edit, EditOrigin, Engine, PieceKind, PlanError, RecordTable, Rejected, disassembled, formatter,
};
pub use modload_loader::{SectionBytes, TrampolineBranch, TrampolineCall};
pub use modload_text::{Arena, Class, PokeError, StripeUsage, TrapMask};
