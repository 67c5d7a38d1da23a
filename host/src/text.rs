//! Code memory: how much of it is used, how published text is changed, and how a subscriber changes text that is not published yet.

pub use modload_edit::{
    Addr, Code, Edit, Engine, PieceKind, PlanError, Rejected, Space, Table, Why, disassembled, formatter,
};
pub use modload_loader::{Branch, SectionBytes, TrampolineCall};
pub use modload_text::{Arena, Class, PokeError, StripeUsage, TrapMask};
