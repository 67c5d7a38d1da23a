//! Calls a chain and undoes the calls if a member refuses, like Linux's `notifier_call_chain_robust`. One thing
//! differs: Linux undoes in the order of the coming chain, this crate in the order of the going chain.

use crate::ChainMember;

/// A member has refused. The accepting members before this one have been called again, to undo.
#[derive(Debug)]
pub struct ChainRefused<S, E> {
    /// The member that refused.
    pub by: ChainMember<S>,
    /// The reason that this member gave.
    pub reason: E,
}

/// Calls `up` with each member of the `coming` snapshot in turn. If a member refuses, calls `down` with all members
/// that had accepted, in going order. `down` is not called with the refusing member. Returns the members that accepted,
/// in coming order.
///
/// `up` returns `Ok(false)` for a member that has left the chains meanwhile. Such a member counts as not called.
/// # Errors
/// [`ChainRefused`] holds the refusing member and the reason.
pub fn call_robust<S: Clone, E>(
    coming: Vec<ChainMember<S>>,
    mut up: impl FnMut(&ChainMember<S>) -> Result<bool, E>,
    down: impl FnMut(&ChainMember<S>),
) -> Result<Vec<ChainMember<S>>, ChainRefused<S, E>> {
    let mut accepted = Vec::with_capacity(coming.len());
    for member in coming {
        match up(&member) {
            Ok(true) => accepted.push(member),
            Ok(false) => {}
            Err(reason) => {
                accepted.sort_by_key(ChainMember::going_rank);
                accepted.iter().for_each(down);
                return Err(ChainRefused { by: member, reason });
            }
        }
    }
    Ok(accepted)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::call_robust;
    use crate::{Chains, Order};

    /// Calls a chain in which `refuser` refuses and `gone` has left. Returns all calls as one string.
    fn check(orders: &[(&'static str, Order)], refuser: &str, gone: &str) -> String {
        let mut chains = Chains::default();
        for &(name, order) in orders {
            chains.join(order, name);
        }
        let calls = RefCell::new(Vec::new());
        let result = call_robust(
            chains.coming(),
            |member| {
                if member.subscriber == gone {
                    return Ok(false);
                }
                calls.borrow_mut().push(format!("+{}", member.subscriber));
                if member.subscriber == refuser { Err("no") } else { Ok(true) }
            },
            |member| calls.borrow_mut().push(format!("-{}", member.subscriber)),
        );
        let end = match result {
            Ok(accepted) => format!("accepted by {}", accepted.len()),
            Err(refused) => format!("{}: {}", refused.by.subscriber, refused.reason),
        };
        format!("{} {end}", calls.into_inner().join(" "))
    }

    #[test]
    fn a_refusal_is_undone_in_going_order_without_the_refuser() {
        let mirrored = ["a", "b", "c", "d"].map(|name| (name, Order::mirrored(0)));
        assert_eq!(check(&mirrored, "c", ""), "+a +b +c -b -a c: no");
        assert_eq!(check(&mirrored, "a", ""), "+a a: no");
        assert_eq!(check(&mirrored, "", ""), "+a +b +c +d accepted by 4");
        let same = ["a", "b", "c"].map(|name| (name, Order::same(0)));
        assert_eq!(check(&same, "c", ""), "+a +b +c -a -b c: no");
    }

    #[test]
    fn who_was_passed_over_is_not_undone() {
        let mirrored = ["a", "b", "c"].map(|name| (name, Order::mirrored(0)));
        assert_eq!(check(&mirrored, "c", "a"), "+b +c -b c: no");
        assert_eq!(check(&mirrored, "", "b"), "+a +c accepted by 2");
    }
}
