//! The members of the two chains, and which of them are being called.

use std::thread::ThreadId;

use crate::{Order, Rank};

/// Names one member for as long as its chains exist; never used again.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct MemberId(u64);

/// One who joined.
#[derive(Clone, Debug)]
pub struct Member<S> {
    /// Its name among the members.
    pub id: MemberId,
    /// The order it joined with.
    pub order: Order,
    /// Whom to call.
    pub subscriber: S,
}

impl<S> Member<S> {
    /// Its place in the going chain.
    #[must_use]
    pub fn going_rank(&self) -> Rank {
        self.order.going_rank(self.id.0)
    }

    fn coming_rank(&self) -> Rank {
        self.order.coming_rank(self.id.0)
    }
}

/// The coming and the going chain. `S` is cheap to clone: an `Arc`, say.
///
/// Between [`Chains::enter`] and [`Chains::exit`] a member counts as being called by that thread. Who wants to leave
/// calls [`Chains::leave`] and then waits until [`Chains::is_called_elsewhere`] says no.
#[derive(Debug)]
pub struct Chains<S> {
    /// Sorted by rank.
    coming: Vec<Member<S>>,
    /// Sorted by rank.
    going: Vec<Member<S>>,
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
        let member = Member { id, order, subscriber };
        let at = self.going.partition_point(|other| other.going_rank() < member.going_rank());
        self.going.insert(at, member.clone());
        let at = self.coming.partition_point(|other| other.coming_rank() < member.coming_rank());
        self.coming.insert(at, member);
        id
    }

    /// Takes a member out of both chains, so that it cannot be entered any more. It may still be in a call.
    ///
    /// It is handed back, to be dropped when the lock of these chains is free: what a subscriber owns may want it.
    #[must_use = "to be dropped without the lock of the chains"]
    pub fn leave(&mut self, id: MemberId) -> Option<Member<S>> {
        self.going.retain(|member| member.id != id);
        let at = self.coming.iter().position(|member| member.id == id)?;
        Some(self.coming.remove(at))
    }

    /// Takes all members out, and hands them back as [`Chains::leave`] does. Ids that were given are not given again.
    #[must_use = "to be dropped without the lock of the chains"]
    pub fn clear(&mut self) -> Vec<Member<S>> {
        let empty = Chains { joined: self.joined, ..Chains::default() };
        std::mem::replace(self, empty).coming
    }

    /// The coming chain as it is now, in order.
    #[must_use]
    pub fn coming(&self) -> Vec<Member<S>> {
        self.coming.clone()
    }

    /// Those members of the going chain that `choose` wants, in order.
    #[must_use]
    pub fn going(&self, choose: impl Fn(&Member<S>) -> bool) -> Vec<Member<S>> {
        self.going.iter().filter(|member| choose(member)).cloned().collect()
    }

    /// Notes that `thread` is about to call a member. `false`: it has left and must not be called.
    pub fn enter(&mut self, id: MemberId, thread: ThreadId) -> bool {
        let there = self.coming.iter().any(|member| member.id == id);
        if there {
            self.calls.push((id, thread));
        }
        there
    }

    /// Notes that the call of [`Chains::enter`] has returned.
    pub fn exit(&mut self, id: MemberId, thread: ThreadId) {
        if let Some(at) = self.calls.iter().rposition(|call| *call == (id, thread)) {
            self.calls.swap_remove(at);
        }
    }

    /// Whether a thread other than `thread` is calling this member.
    #[must_use]
    pub fn is_called_elsewhere(&self, id: MemberId, thread: ThreadId) -> bool {
        self.calls.iter().any(|&(called, by)| called == id && by != thread)
    }

    /// Forgets the calls of all threads but `thread`: after fork, the others do not exist.
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
        let names =
            |members: Vec<super::Member<&str>>| members.iter().map(|m| m.subscriber).collect::<Vec<_>>().join(", ");
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
