//! The two chains: the order in which subscribers are called, and the handling of a refusal.

use std::any::Any;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;

use modload_notifier::{ChainMember, ChainRefused, MemberId, Order, call_robust};

use crate::modules::coming::Coming;
use crate::modules::error::RegistryError;
use crate::modules::module::{Module, lock};
use crate::modules::recorder::Recorder;
use crate::modules::registry::Registry;
use crate::modules::subscriber::{Accepted, Refusal, Seat, Subscriber};
use crate::modules::timeline::{EventKind, Outcome};
use crate::prepare::memory::Formed;
use crate::vocabulary::rewriting::TrampolineCall;
use crate::vocabulary::state::State;

/// The subscribers outside of all priorities, in coming order. The going order is the reverse.
///
/// | subscriber | coming | going | because |
/// |---|---|---|---|
/// | `ftrace` | first | last | live patching hooks the call sites of `ftrace`: they must exist first and go last |
/// | `livepatch` | second | last but one | ftrace -> klp -> klp -> ftrace |
/// | `static_keys` | third | last but two | a key's sites must be right before the notifier of any other subscriber runs |
pub const BUILTIN: [(&str, Order); 3] =
    [("ftrace", Order::builtin(0)), ("livepatch", Order::builtin(1)), ("static_keys", Order::builtin(2))];

/// Membership in both chains. Dropping a membership leaves both, as [`Membership::leave`] does.
pub struct Membership {
    registry: &'static Registry,
    id: MemberId,
}

impl fmt::Debug for Membership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Membership").field(&self.id).finish()
    }
}

impl Membership {
    pub(crate) fn join(
        registry: &'static Registry,
        name: &str,
        order: Order,
        subscriber: Arc<dyn Subscriber>,
        owner: Option<&Module>,
    ) -> Membership {
        let seat = Arc::new(Seat { name: name.into(), subscriber, owner: owner.map(|module| module.id) });
        Membership { registry, id: registry.lock().chains.join(order, seat) }
    }

    /// Leaves both chains. Returns when no other thread is in a call of the subscriber. From within such a call on this
    /// thread, returns at once.
    ///
    /// Cycles of such waits are not detected: two subscribers that leave each other's membership from within their
    /// calls, on two threads, wait for ever.
    pub fn leave(self) {}

    /// Whether the subscriber is still in the chains. A subscriber that belongs to a module is removed when the module
    /// is unloaded.
    #[must_use]
    pub fn is_member(&self) -> bool {
        !self.registry.lock().chains.going(|member| member.id == self.id).is_empty()
    }

    /// Stays until the host is dropped.
    pub fn forget(self) {
        std::mem::forget(self);
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        leave(self.registry, self.id);
    }
}

fn leave(registry: &Registry, id: MemberId) {
    // Dropped at the end of this function, without the lock: dropping the subscriber may take the lock.
    let _left = registry.lock().chains.leave(id);
    let here = thread::current().id();
    registry.wait_until(|book| !book.chains.is_called_elsewhere(id, here));
}

/// Removes the subscribers that an unloaded module has left in the chains, because their code is about to be freed.
pub(crate) fn evict(recorder: Recorder<'_>, module: &Module) {
    let left = recorder.registry.lock().chains.going(|member| member.subscriber.owner == Some(module.id));
    for member in left {
        leave(recorder.registry, member.id);
        recorder.warn(format!("notifier {} was left registered and has been taken out", member.subscriber.name));
    }
}

/// Calls one member. Returns `None` if the member has left.
fn call<R>(
    registry: &Registry,
    member: &ChainMember<Arc<Seat>>,
    run: impl FnOnce(&dyn Subscriber) -> R,
) -> Option<Result<R, String>> {
    let here = thread::current().id();
    if !registry.lock().chains.enter(member.id, here) {
        return None;
    }
    // A panicking subscriber is responsible for its own state. The registry is not borrowed during the call.
    let result = catch_unwind(AssertUnwindSafe(|| run(&*member.subscriber.subscriber)));
    registry.lock().chains.exit(member.id, here);
    registry.wake();
    Some(result.map_err(|panic| message(&*panic)))
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("a panic without a message").to_owned()
}

fn notified(member: &ChainMember<Arc<Seat>>, state: State, result: Outcome) -> EventKind {
    let (chain, priority) = match state {
        State::Going => ("going", member.order.going()),
        _ => ("coming", member.order.coming()),
    };
    let subscriber = member.subscriber.name.clone();
    EventKind::Notify { chain, state, subscriber, priority, builtin: member.order.is_builtin(), result }
}

/// Calls the coming chain. On a refusal, the members that have accepted are called with GOING, in going order.
pub(crate) fn coming(
    recorder: Recorder<'_>,
    module: &Module,
    memory: &mut Formed,
    calls: &[TrampolineCall],
) -> Result<Accepted, RegistryError> {
    let registry = recorder.registry;
    let members = registry.lock().chains.coming();
    let mut when_published = Vec::new();
    let announce = |member: &ChainMember<Arc<Seat>>| {
        let mut coming = Coming { module, memory: &mut *memory, calls, tell_when_published: false };
        let (outcome, refusal) = match call(registry, member, |subscriber| subscriber.coming(&mut coming)) {
            None => return Ok(false),
            Some(Ok(Ok(()))) => (Outcome::Ok, None),
            Some(Ok(Err(refusal))) => (Outcome::Refused(refusal.reason.clone()), Some(refusal)),
            Some(Err(panic)) => (Outcome::Panicked(panic.clone()), Some(format!("it panicked: {panic}").into())),
        };
        let asked = coming.tell_when_published;
        recorder.record(|| notified(member, State::Coming, outcome));
        let Some(refusal) = refusal else {
            if asked {
                when_published.push(member.clone());
            }
            return Ok(true);
        };
        set_going(recorder, module);
        Err(refusal)
    };
    let undo = |member: &ChainMember<Arc<Seat>>| tell_going(recorder, module, member);
    let accepted = call_robust(members, announce, undo);
    let members = accepted.map_err(|ChainRefused { by, reason }| refused(&by, reason))?;
    Ok(Accepted { members, when_published })
}

fn refused(by: &ChainMember<Arc<Seat>>, reason: Refusal) -> RegistryError {
    RegistryError::Refused { subscriber: by.subscriber.name.to_string(), reason: reason.reason, errno: reason.errno }
}

/// Tells the members that have asked for it that the text is published. Only refusals are recorded in the timeline.
pub(crate) fn published(recorder: Recorder<'_>, module: &Module, accepted: &Accepted) -> Result<(), RegistryError> {
    for member in &accepted.when_published {
        let (outcome, refusal) = match call(recorder.registry, member, |subscriber| subscriber.published(module)) {
            None | Some(Ok(Ok(()))) => continue,
            Some(Ok(Err(refusal))) => (Outcome::Refused(refusal.reason.clone()), refusal),
            Some(Err(panic)) => (Outcome::Panicked(panic.clone()), format!("it panicked: {panic}").into()),
        };
        recorder.record(|| notified(member, State::Coming, outcome));
        return Err(refused(member, refusal));
    }
    Ok(())
}

/// Tells the members that have accepted that the module is LIVE, in coming order.
pub(crate) fn live(recorder: Recorder<'_>, module: &Module) {
    let members = {
        let _book = recorder.registry.lock();
        lock(&module.accepted).members.clone()
    };
    for member in &members {
        tell(recorder, member, State::Live, |subscriber| subscriber.live(module));
    }
}

/// Asks the members that have accepted a LIVE module for code that replaces the module's functions.
pub(crate) fn ask_for_stand_ins(registry: &Registry, module: &Module) {
    if !module.has_stand_ins() {
        return;
    }
    let members = {
        let _book = registry.lock();
        lock(&module.accepted).members.clone()
    };
    let asked = members.iter().filter_map(|member| call(registry, member, |subscriber| subscriber.stand_ins(module)));
    let code = asked.filter_map(Result::ok).flatten().collect();
    module.set_stand_ins(code);
}

/// Tells the members that have accepted that the module is GOING, in going order.
pub(crate) fn going(recorder: Recorder<'_>, module: &Module, accepted: Accepted) {
    let mut members = accepted.members;
    members.sort_by_key(ChainMember::going_rank);
    members.iter().for_each(|member| tell_going(recorder, module, member));
}

fn tell_going(recorder: Recorder<'_>, module: &Module, member: &ChainMember<Arc<Seat>>) {
    tell(recorder, member, State::Going, |subscriber| subscriber.going(module));
}

fn tell(recorder: Recorder<'_>, member: &ChainMember<Arc<Seat>>, state: State, run: impl FnOnce(&dyn Subscriber)) {
    let outcome = match call(recorder.registry, member, run) {
        None => return,
        Some(Ok(())) => Outcome::Ok,
        Some(Err(panic)) => {
            tracing::error!(subscriber = %member.subscriber.name, module = %recorder.module, %state, %panic);
            Outcome::Panicked(panic)
        }
    };
    recorder.record(|| notified(member, state, outcome));
}

/// The module is GOING from here on.
pub(crate) fn set_going(recorder: Recorder<'_>, module: &Module) {
    recorder.registry.lock().set_state(module.id, State::Going);
    recorder.registry.wake();
    recorder.record(|| EventKind::State { state: State::Going });
}
