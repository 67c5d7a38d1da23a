//! The members of the two chains, and the calls that are under way.

use std::thread::ThreadId;

use crate::{Order, Rank};

/// The id of a member, unique for as long as the chains exist. An id is never used again.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct MemberId(u64);

/// A subscriber that has joined the chains.
#[derive(Clone, Debug)]
pub struct ChainMember<S> {
    /// The id of this member.
    pub id: MemberId,
    /// The order given to [`Chains::join`].
    pub order: Order,
    /// The subscriber to call.
    pub subscriber: S,
}

impl<S> ChainMember<S> {
    /// Returns the place of this member in the going chain.
    #[must_use]
    pub fn going_rank(&self) -> Rank {
        self.order.going_rank(self.id.0)
    }

    fn coming_rank(&self) -> Rank {
        self.order.coming_rank(self.id.0)
    }
}

/// The coming and the going chain. `S` should be cheap to clone, for example an `Arc`.
///
/// Between [`Chains::enter`] and [`Chains::exit`] a member counts as being called by that thread. To remove a member,
/// call [`Chains::leave`] and then wait until [`Chains::is_called_elsewhere`] returns `false`.
#[derive(Debug)]
pub struct Chains<S> {
    /// Sorted by rank.
    coming: Vec<ChainMember<S>>,
    /// Sorted by rank.
    going: Vec<ChainMember<S>>,
    calls: Vec<(MemberId, ThreadId)>,
    joined: u64,
}

impl<S> Default for Chains<S> {
    fn default() -> Self {
        Chains { coming: Vec::new(), going: Vec::new(), calls: Vec::new(), joined: 0 }
    }
}

impl<S: Clone> Chains<S> {
    /// Adds a member to both chains.
    pub fn join(&mut self, order: Order, subscriber: S) -> MemberId {
        let id = MemberId(self.joined);
        self.joined += 1;
        let member = ChainMember { id, order, subscriber };
        let at = self.going.partition_point(|other| other.going_rank() < member.going_rank());
        self.going.insert(at, member.clone());
        let at = self.coming.partition_point(|other| other.coming_rank() < member.coming_rank());
        self.coming.insert(at, member);
        id
    }

    /// Removes a member from both chains, so that no further call can begin. A call that has begun may still be
    /// running.
    ///
    /// Returns the member. The caller drops this value after releasing the lock of the chains: the destructor of the
    /// subscriber may take that lock.
    #[must_use = "to be dropped without the lock of the chains"]
    pub fn leave(&mut self, id: MemberId) -> Option<ChainMember<S>> {
        self.going.retain(|member| member.id != id);
        let at = self.coming.iter().position(|member| member.id == id)?;
        Some(self.coming.remove(at))
    }

    /// Removes and returns all members, as [`Chains::leave`] does for one. Ids are not used again.
    #[must_use = "to be dropped without the lock of the chains"]
    pub fn clear(&mut self) -> Vec<ChainMember<S>> {
        let empty = Chains { joined: self.joined, ..Chains::default() };
        std::mem::replace(self, empty).coming
    }

    /// Returns a snapshot of the coming chain, in order.
    #[must_use]
    pub fn coming(&self) -> Vec<ChainMember<S>> {
        self.coming.clone()
    }

    /// Returns the members of the going chain for which `choose` returns `true`, in order.
    #[must_use]
    pub fn going(&self, choose: impl Fn(&ChainMember<S>) -> bool) -> Vec<ChainMember<S>> {
        self.going.iter().filter(|member| choose(member)).cloned().collect()
    }

    /// Records that `thread` is about to call a member. Returns `false` if this member has left and must not be called.
    pub fn enter(&mut self, id: MemberId, thread: ThreadId) -> bool {
        let there = self.coming.iter().any(|member| member.id == id);
        if there {
            self.calls.push((id, thread));
        }
        there
    }

    /// Records that the call which [`Chains::enter`] announced has returned.
    pub fn exit(&mut self, id: MemberId, thread: ThreadId) {
        if let Some(at) = self.calls.iter().rposition(|call| *call == (id, thread)) {
            self.calls.swap_remove(at);
        }
    }

    /// Returns whether a thread other than `thread` is calling this member.
    #[must_use]
    pub fn is_called_elsewhere(&self, id: MemberId, thread: ThreadId) -> bool {
        self.calls.iter().any(|&(called, by)| called == id && by != thread)
    }

    /// Forgets the calls of all threads but `thread`. Needed in the child after fork, where the other threads do not
    /// exist.
    pub fn forget_other_threads(&mut self, thread: ThreadId) {
        self.calls.retain(|&(_, by)| by == thread);
    }
}

#[cfg(test)]
mod tests {
    use super::Chains;
    use crate::Order;

    #[test]
    fn a_snapshot_is_sorted_and_leaving_takes_effect_in_both_chains() {
        let mut chains = Chains::default();
        let low = chains.join(Order::mirrored(-1), "low");
        chains.join(Order::mirrored(5), "high");
        chains.join(Order::mirrored(-1), "low too");
        let names = |members: Vec<super::ChainMember<&str>>| {
            members.iter().map(|m| m.subscriber).collect::<Vec<_>>().join(", ")
        };
        assert_eq!(names(chains.coming()), "high, low, low too");
        assert_eq!(names(chains.going(|_| true)), "low too, low, high");
        assert_eq!(chains.leave(low).map(|member| member.subscriber), Some("low"));
        assert!(chains.leave(low).is_none());
        assert_eq!(names(chains.coming()), "high, low too");
        assert_eq!(names(chains.going(|_| true)), "low too, high");
    }

    #[test]
    fn who_has_left_is_not_entered_but_may_still_be_in_a_call() {
        let mut chains = Chains::default();
        let (here, there) =
            (std::thread::current().id(), std::thread::spawn(|| std::thread::current().id()).join().unwrap());
        let id = chains.join(Order::default(), ());
        assert!(chains.enter(id, there));
        assert!(chains.enter(id, here));
        assert!(chains.leave(id).is_some());
        assert!(!chains.enter(id, here));
        assert!(chains.is_called_elsewhere(id, here));
        chains.exit(id, there);
        assert!(!chains.is_called_elsewhere(id, here));
        assert!(chains.is_called_elsewhere(id, there));
        chains.forget_other_threads(there);
        assert!(!chains.is_called_elsewhere(id, there));
    }
}
