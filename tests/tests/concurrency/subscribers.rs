//! Subscribers that load and unload, join and leave, own one another, and panic.

use std::sync::{Arc, Mutex};
use std::thread;

use modload::error::{RegistryError, sentence};
use modload::text::Arena;
use modload::{Coming, Error, Membership, ModuleInfo, Order, Refusal, State, Subscriber, WeakHost};
use modload_tests::{Log, Watcher, image};

use crate::scene::{Gate, host, spawn_waiting};

/// Owns the membership of another subscriber.
struct Owner {
    _owned: Membership,
}

impl Subscriber for Owner {}

pub(crate) fn a_subscriber_that_owns_another_takes_it_along() {
    let (log, outer) = (Log::default(), host());
    let owner = |name: &str| Owner { _owned: outer.subscribe(name, Order::mirrored(0), Watcher::new(name, &log)) };
    let leaves = outer.subscribe("leaves", Order::mirrored(0), owner("left"));
    outer.subscribe("stays", Order::mirrored(0), owner("stayed")).forget();
    leaves.leave();
    outer.load(&image("ordtarget")).unwrap().unload().unwrap();
    assert_eq!(log.take(), ["COMING stayed ordtarget", "LIVE stayed ordtarget", "GOING stayed ordtarget"]);
    drop(outer);
}

/// Does all that a subscriber may do.
struct Busy {
    host: WeakHost,
    log: Log,
    inner: Mutex<Option<Membership>>,
}

impl Subscriber for Busy {
    fn coming(&self, coming: &mut Coming<'_>) -> Result<(), Refusal> {
        if coming.module().name() != "ordtarget" {
            return Ok(());
        }
        let host = self.host.upgrade().ok_or("no host")?;
        host.load(&image("greet")).map_err(|failed| sentence(&failed))?;
        host.load(&image("guest")).map_err(|failed| sentence(&failed))?.unload().map_err(|failed| sentence(&failed))?;
        let joined = host.subscribe("joined", Order::mirrored(100), Watcher::new("joined", &self.log));
        let replaced = self.inner.lock().unwrap().replace(joined);
        drop(replaced);
        Ok(())
    }

    fn live(&self, module: &ModuleInfo) {
        if module.name() == "ordtarget" {
            let host = self.host.upgrade().unwrap();
            host.load(&image("recorder")).unwrap();
            host.unload("ordtarget").unwrap_err();
        }
    }

    fn going(&self, module: &ModuleInfo) {
        if module.name() == "ordtarget" {
            let host = self.host.upgrade().unwrap();
            self.log.push(format!("unload from going: {}", host.unload("ordtarget").unwrap_err()));
            host.unload("recorder").unwrap();
            host.unload("greet").unwrap();
            let joined = self.inner.lock().unwrap().take();
            joined.unwrap().leave();
        }
    }
}

pub(crate) fn a_subscriber_loads_unloads_joins_and_leaves() {
    let host = host();
    let log = Log::default();
    let busy = Busy { host: host.downgrade(), log: log.clone(), inner: Mutex::new(None) };
    let _busy = host.subscribe("busy", Order::mirrored(0), busy);
    for _ in 0..3 {
        let module = host.load(&image("ordtarget")).unwrap();
        let there: Vec<_> = host.modules().into_iter().map(|(name, _)| name).collect();
        assert_eq!(there, ["ordtarget", "greet", "recorder"]);
        module.unload().unwrap();
        assert!(host.modules().is_empty());
        // A subscriber that joined in the middle of a coming got the later notifications, and none of that module.
        assert_eq!(
            log.take(),
            [
                "COMING joined recorder",
                "LIVE joined recorder",
                "unload from going: ordtarget: it is GOING, and only a LIVE module can be unloaded",
                "GOING joined recorder",
            ]
        );
    }
}

pub(crate) fn leave_waits_for_calls_in_other_threads() {
    let host = host();
    let (gate, is_inside, go) = Gate::new("ordtarget");
    let member = host.subscribe("gate", Order::mirrored(0), gate);
    thread::scope(|scope| {
        let loading = scope.spawn(|| host.load(&image("ordtarget")));
        is_inside.recv().unwrap();
        let leaving = spawn_waiting(scope, || member.leave());
        assert!(!leaving.is_finished(), "its call is running");
        // The subscriber has left nevertheless: another module is loaded without calling the subscriber, and the
        // subscriber can join again.
        host.load(&image("greet")).unwrap().unload().unwrap();
        go.send(Ok(())).unwrap();
        leaving.join().unwrap();
        loading.join().unwrap().unwrap();
    });
}

/// Leaves at its first call.
struct Leaver {
    member: Arc<Mutex<Option<Membership>>>,
    log: Log,
}

impl Subscriber for Leaver {
    fn coming(&self, coming: &mut Coming<'_>) -> Result<(), Refusal> {
        self.log.push(coming.module().name());
        let member = self.member.lock().unwrap().take();
        member.unwrap().leave();
        Ok(())
    }

    fn live(&self, _: &ModuleInfo) {
        self.log.push("live");
    }

    fn going(&self, _: &ModuleInfo) {
        self.log.push("going");
    }
}

pub(crate) fn leave_from_within_its_own_call_returns() {
    let host = host();
    let (member, log) = (Arc::new(Mutex::new(None)), Log::default());
    let leaver = Leaver { member: member.clone(), log: log.clone() };
    *member.lock().unwrap() = Some(host.subscribe("leaver", Order::mirrored(0), leaver));
    host.load(&image("ordtarget")).unwrap().unload().unwrap();
    host.load(&image("ordtarget")).unwrap().unload().unwrap();
    assert_eq!(log.take(), ["ordtarget"]);
}

struct Panicker {
    on: State,
}

impl Panicker {
    fn at(&self, state: State) {
        assert_ne!(self.on, state, "a subscriber's own trouble");
    }
}

impl Subscriber for Panicker {
    fn coming(&self, _: &mut Coming<'_>) -> Result<(), Refusal> {
        self.at(State::Coming);
        Ok(())
    }

    fn live(&self, _: &ModuleInfo) {
        self.at(State::Live);
    }

    fn going(&self, _: &ModuleInfo) {
        self.at(State::Going);
    }
}

pub(crate) fn panics_are_refusals_on_coming_and_logged_otherwise() {
    let usage = {
        let host = host();
        host.load(&image("ordtarget")).unwrap().unload().unwrap();
        Arena::get().unwrap().usage()
    };
    for on in [State::Coming, State::Live, State::Going] {
        let host = host();
        let log = Log::default();
        let _before = host.subscribe("before", Order::mirrored(1), Watcher::new("before", &log));
        let _panicker = host.subscribe("panicker", Order::mirrored(0), Panicker { on });
        let _after = host.subscribe("after", Order::mirrored(-1), Watcher::new("after", &log));
        let recording = host.record();
        let loaded = host.load(&image("ordtarget"));
        if on == State::Coming {
            let refused = loaded.unwrap_err();
            assert!(
                matches!(&*refused.error, Error::Registry(RegistryError::Refused { subscriber, .. }) if subscriber == "panicker"),
                "{refused}"
            );
            assert!(sentence(&refused).contains("a subscriber's own trouble"), "{refused}");
            assert_eq!(log.take(), ["COMING before ordtarget", "GOING before ordtarget"]);
        } else {
            loaded.unwrap().unload().unwrap();
            let heard = log.take();
            let expected =
                ["COMING before", "COMING after", "LIVE before", "LIVE after", "GOING after", "GOING before"];
            assert_eq!(heard, expected.map(|line| format!("{line} ordtarget")));
        }
        let timeline = recording.finish().to_string();
        let line = format!("{on} -> panicker");
        let panicked = timeline.lines().find(|found| found.contains(&line)).unwrap();
        assert!(panicked.contains("panicked: ") && panicked.contains("a subscriber's own trouble"), "{panicked}");
        assert!(host.modules().is_empty());
        assert_eq!(Arena::get().unwrap().usage(), usage);
        // And the next time the subscriber is called as usual.
        assert_eq!(host.load(&image("ordtarget")).is_err(), on == State::Coming);
    }
}

pub(crate) fn who_joins_late_hears_nothing() {
    let host = host();
    let log = Log::default();
    let module = host.load(&image("ordtarget")).unwrap();
    let _late = host.subscribe("late", Order::mirrored(0), Watcher::new("late", &log));
    module.unload().unwrap();
    assert_eq!(log.take(), [""; 0], "not of the GOING of what it has not seen come");
    // The subscriber gets no LIVE either, if the subscriber joins while the module is COMING.
    let (gate, is_inside, go) = Gate::new("ordtarget");
    let _gate = host.subscribe("gate", Order::mirrored(10), gate);
    thread::scope(|scope| {
        let loading = scope.spawn(|| host.load(&image("ordtarget")));
        is_inside.recv().unwrap();
        let _later = host.subscribe("later", Order::mirrored(-10), Watcher::new("later", &log));
        go.send(Ok(())).unwrap();
        loading.join().unwrap().unwrap().unload().unwrap();
    });
    assert_eq!(log.take(), ["COMING late ordtarget", "LIVE late ordtarget", "GOING late ordtarget"]);
}

pub(crate) fn who_has_left_hears_nothing_more() {
    let host = host();
    let log = Log::default();
    let leaver = host.subscribe("leaver", Order::mirrored(0), Watcher::new("leaver", &log));
    let module = host.load(&image("ordtarget")).unwrap();
    leaver.leave();
    module.unload().unwrap();
    assert_eq!(log.take(), ["COMING leaver ordtarget", "LIVE leaver ordtarget"]);
}
