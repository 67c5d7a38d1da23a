//! The place of a member in each of the two chains.

use std::cmp::Reverse;

/// The priorities with which a member joins the coming and the going chain. The higher priority is called first.
///
/// | | coming | going |
/// |---|---|---|
/// | `mirrored(p)` | `p` | `!p`, that is -1 - p |
/// | `same(p)` | `p` | `p` |
/// | `builtin(n)` | above every `i32`, the n-th | below every `i32`, the n-th from the end |
///
/// Members of equal priority are called in order of joining in the coming chain. In the going chain mirrored members
/// are called first, in reverse order of joining, and then the `same` members in order of joining.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Order {
    kind: OrderKind,
    coming: i32,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum OrderKind {
    Mirrored,
    Same,
    Builtin,
}

impl Order {
    /// Uses `priority` in the coming chain and its mirror image in the going chain: the member that is called first
    /// when a module comes is called last when the module goes.
    #[must_use]
    pub const fn mirrored(priority: i32) -> Order {
        Order { kind: OrderKind::Mirrored, coming: priority }
    }

    /// Uses the same priority in both chains, as Linux's module notifier chain does.
    #[must_use]
    pub const fn same(priority: i32) -> Order {
        Order { kind: OrderKind::Same, coming: priority }
    }

    /// Places a member before all others in the coming chain and after all others in the going chain. `place` 0 is
    /// called first in the coming chain and last in the going chain.
    #[must_use]
    pub const fn builtin(place: u8) -> Order {
        // Widening in const context; From is not const.
        let place = i32::from_le_bytes([place, 0, 0, 0]);
        Order { kind: OrderKind::Builtin, coming: i32::MAX - place }
    }

    /// Returns whether this order was made by [`Order::builtin`].
    #[must_use]
    pub const fn is_builtin(self) -> bool {
        matches!(self.kind, OrderKind::Builtin)
    }

    /// Returns the priority in the coming chain, as shown to users.
    #[must_use]
    pub const fn coming(self) -> i32 {
        self.coming
    }

    /// Returns the priority in the going chain, as shown to users.
    #[must_use]
    pub const fn going(self) -> i32 {
        match self.kind {
            OrderKind::Mirrored | OrderKind::Builtin => !self.coming,
            OrderKind::Same => self.coming,
        }
    }

    /// Returns the place in the coming chain of the `joined`-th member to join.
    #[must_use]
    pub fn coming_rank(self, joined: u64) -> Rank {
        let tier = if self.is_builtin() { Tier::Above } else { Tier::Between };
        Rank { tier: Reverse(tier), priority: Reverse(self.coming()), tie: Tie::Forward(joined) }
    }

    /// Returns the place in the going chain of the `joined`-th member to join.
    #[must_use]
    pub fn going_rank(self, joined: u64) -> Rank {
        let tier = if self.is_builtin() { Tier::Below } else { Tier::Between };
        let tie = match self.kind {
            OrderKind::Mirrored | OrderKind::Builtin => Tie::Backward(Reverse(joined)),
            OrderKind::Same => Tie::Forward(joined),
        };
        Rank { tier: Reverse(tier), priority: Reverse(self.going()), tie }
    }
}

impl Default for Order {
    fn default() -> Order {
        Order::mirrored(0)
    }
}

/// The place of a member in a chain. The smaller rank is called first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Rank {
    tier: Reverse<Tier>,
    priority: Reverse<i32>,
    tie: Tie,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Tier {
    Below,
    Between,
    Above,
}

/// The order among members of equal priority. In the going chain mirrored members (`Backward`) sort before `same`
/// members (`Forward`), by the order of these variants.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Tie {
    Backward(Reverse<u64>),
    Forward(u64),
}

#[cfg(test)]
mod tests {
    use super::Order;

    /// Checks the order in which each chain calls these members, which join in the order given.
    fn check(orders: &[(&str, Order)], coming: &str, going: &str) {
        let sorted = |rank: fn(Order, u64) -> super::Rank| {
            let mut members: Vec<_> =
                orders.iter().zip(0..).map(|((name, order), joined)| (rank(*order, joined), *name)).collect();
            members.sort();
            members.into_iter().map(|(_, name)| name).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(sorted(Order::coming_rank), coming, "coming");
        assert_eq!(sorted(Order::going_rank), going, "going");
    }

    #[test]
    fn mirrored_orders_mirror() {
        let m = Order::mirrored;
        check(&[("low", m(-5)), ("high", m(7)), ("mid", m(0))], "high mid low", "low mid high");
        check(&[("a", m(0)), ("b", m(0)), ("c", m(0))], "a b c", "c b a");
        check(&[("min", m(i32::MIN)), ("max", m(i32::MAX))], "max min", "min max");
    }

    #[test]
    fn same_orders_keep_theirs() {
        let s = Order::same;
        check(&[("low", s(-5)), ("high", s(7)), ("mid", s(0))], "high mid low", "high mid low");
        check(&[("a", s(0)), ("b", s(0)), ("c", s(0))], "a b c", "a b c");
    }

    #[test]
    fn among_equals_on_going_mirrored_ones_come_first() {
        // On going mirrored(-1) has priority 0, like same(0).
        let orders =
            [("s1", Order::same(0)), ("m1", Order::mirrored(-1)), ("s2", Order::same(0)), ("m2", Order::mirrored(-1))];
        check(&orders, "s1 s2 m1 m2", "m2 m1 s1 s2");
    }

    #[test]
    fn builtins_stand_outside_every_priority() {
        let orders = [
            ("max", Order::mirrored(i32::MAX)),
            ("klp", Order::builtin(1)),
            ("max-same", Order::same(i32::MAX)),
            ("ftrace", Order::builtin(0)),
            ("min-same", Order::same(i32::MIN)),
        ];
        check(&orders, "ftrace klp max max-same min-same", "max-same max min-same klp ftrace");
    }

    #[test]
    fn shown_priorities() {
        assert_eq!((Order::builtin(0).coming(), Order::builtin(0).going()), (i32::MAX, i32::MIN));
        assert_eq!((Order::builtin(2).coming(), Order::builtin(2).going()), (i32::MAX - 2, i32::MIN + 2));
        assert_eq!(Order::mirrored(0).going(), -1);
        assert_eq!(Order::mirrored(i32::MIN).going(), i32::MAX);
    }
}
