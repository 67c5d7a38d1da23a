//! Code outside of the arena that this crate may write: registered text of the host, and annexes.

use modload_edit::Addr;

use crate::writing::ranges::RangeList;

/// The ranges of [`crate::HostText`].
pub(crate) static HOST_TEXTS: RangeList = RangeList::new();

/// The ranges of [`crate::Annex`].
pub(crate) static ANNEXES: RangeList = RangeList::new();

/// Returns the registered text of the host that holds an address. Allocates nothing and takes no lock.
pub(crate) fn host_text_containing(at: Addr) -> Option<(Addr, Addr)> {
    HOST_TEXTS.containing(at)
}

/// Returns the annex that holds an address. Allocates nothing and takes no lock.
pub(crate) fn annex_containing(at: Addr) -> Option<(Addr, Addr)> {
    ANNEXES.containing(at)
}
