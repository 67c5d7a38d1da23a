//! Loads, unloads and subscribers in several threads, and inside each other. A deadlock is a case that takes too long.

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Barrier, Mutex, OnceLock};
use std::thread;
use std::time::Duration;

use modload::{
    Arena, Coming, Error, Host, Image, LoadError, Membership, Module, ModuleInfo, Order, Refusal, Stage, State,
    Subscriber, WeakHost,
};
use modload_tests::{Case, Chance, Log, Watcher, image, image_from_text};

fn main() -> ExitCode {
    modload_tests::run(&[
        Case::new("the_second_load_of_a_name_waits_and_finds_it_there", second_load_finds_it),
        Case::new("the_second_load_of_a_name_waits_and_is_told_that_it_failed", second_load_is_busy),
        Case::new("who_waits_for_a_load_that_fails_unformed_is_woken", woken_by_unformed),
        Case::new("a_name_that_is_going_is_busy", going_is_busy),
        Case::new("a_user_waits_for_its_provider", user_waits),
        Case::new("a_user_of_a_provider_that_fails_is_refused", user_of_failed_provider),
        Case::new("init_that_loads_what_waits_for_it_is_a_cycle", cycle_in_one_thread),
        Case::new("init_that_loads_another_user_of_it_is_a_cycle", cycle_through_a_symbol),
        Case::new("two_inits_that_load_each_other_are_a_cycle", cycle_of_two_threads),
        Case::new("a_subscriber_loads_unloads_joins_and_leaves", busy_subscriber),
        Case::new("an_exit_loads_and_unloads", busy_exit),
        Case::new("an_init_cannot_unload_its_own_module", init_unloads_itself),
        Case::new("a_provider_stays_while_its_user_is_coming", provider_of_a_coming_user),
        Case::new("leave_waits_for_calls_in_other_threads", leave_waits),
        Case::new("leave_from_within_its_own_call_returns", leave_from_within),
        Case::new("a_subscriber_that_owns_another_takes_it_along", owner_of_memberships),
        Case::new("panics_are_refusals_on_coming_and_logged_otherwise", panics),
        Case::new("who_joins_late_hears_nothing", late_joiners),
        Case::new("who_has_left_hears_nothing_more", leavers),
        Case::new("the_last_of_several_handles_unloads_while_the_host_is_there", last_handle),
        Case::new("eight_threads_load_and_unload", eight_threads).within_seconds(240),
        Case::new("eight_threads_fight_for_one_name", one_name).within_seconds(120),
    ])
}

fn host() -> Host {
    Host::builder().build().unwrap()
}

/// Blocks in the coming of one module until it is told to go on, and then accepts or refuses it.
struct Gate {
    module: &'static str,
    inside: Sender<()>,
    go_on: Mutex<Receiver<Result<(), Refusal>>>,
}

impl Gate {
    /// The gate, who is told that somebody is inside, and who lets him go on.
    fn new(module: &'static str) -> (Gate, Receiver<()>, Sender<Result<(), Refusal>>) {
        let (inside, is_inside) = channel();
        let (go, go_on) = channel();
        (Gate { module, inside, go_on: Mutex::new(go_on) }, is_inside, go)
    }
}

impl Subscriber for Gate {
    fn coming(&self, coming: &mut Coming<'_>) -> Result<(), Refusal> {
        if coming.module().name() != self.module {
            return Ok(());
        }
        self.inside.send(()).unwrap();
        self.go_on.lock().unwrap().recv().unwrap()
    }
}

/// Owns the membership of another subscriber.
struct Owner {
    _owned: Membership,
}

impl Subscriber for Owner {}

fn owner_of_memberships() {
    let (log, outer) = (Log::default(), host());
    let owner = |name: &str| Owner { _owned: outer.subscribe(name, Order::mirrored(0), Watcher::new(name, &log)) };
    let leaves = outer.subscribe("leaves", Order::mirrored(0), owner("left"));
    outer.subscribe("stays", Order::mirrored(0), owner("stayed")).forget();
    leaves.leave();
    outer.load(&image("ordtarget")).unwrap().unload().unwrap();
    assert_eq!(log.take(), ["COMING stayed ordtarget", "LIVE stayed ordtarget", "GOING stayed ordtarget"]);
    drop(outer);
}

/// Long enough for a thread that does not wait to have come through.
fn a_while() {
    thread::sleep(Duration::from_millis(50));
}

fn errors_of(first: Result<(), Refusal>) -> (Result<Module, LoadError>, LoadError) {
    let host = host();
    let (gate, is_inside, go) = Gate::new("ordtarget");
    let _gate = host.subscribe("gate", Order::mirrored(0), gate);
    thread::scope(|scope| {
        let loading = scope.spawn(|| host.load(&image("ordtarget")));
        is_inside.recv().unwrap();
        let second = scope.spawn(|| host.load(&image("ordtarget")));
        a_while();
        assert!(!second.is_finished(), "it waits");
        assert_eq!(host.modules(), [("ordtarget".to_owned(), State::Coming)]);
        go.send(first).unwrap();
        (loading.join().unwrap(), second.join().unwrap().unwrap_err())
    })
}

fn second_load_finds_it() {
    let (first, second) = errors_of(Ok(()));
    first.unwrap();
    assert_eq!(second.stage, Stage::Reserve);
    assert!(matches!(*second.error, Error::Exists), "{second}");
    assert_eq!(second.error.errno(), libc::EEXIST);
}

fn second_load_is_busy() {
    let (first, second) = errors_of(Err("not today".into()));
    assert!(matches!(*first.unwrap_err().error, Error::Refused { .. }));
    assert!(matches!(*second.error, Error::Busy), "{second}");
    assert_eq!(second.error.errno(), libc::EBUSY);
}

/// Loads, in the going of one module, the module itself; keeps the answer.
struct Reviver {
    host: WeakHost,
    answer: Arc<OnceLock<String>>,
}

impl Subscriber for Reviver {
    fn going(&self, module: &ModuleInfo) {
        let answer = self.host.upgrade().unwrap().load(&image(module.name())).unwrap_err().to_string();
        self.answer.set(answer).unwrap();
    }
}

fn going_is_busy() {
    let host = host();
    let answer = Arc::new(OnceLock::new());
    let reviver = Reviver { host: host.downgrade(), answer: answer.clone() };
    let member = host.subscribe("reviver", Order::mirrored(0), reviver);
    host.load(&image("ordtarget")).unwrap().unload().unwrap();
    assert!(answer.get().unwrap().contains("being unloaded"), "{answer:?}");
    member.leave();
    host.load(&image("ordtarget")).unwrap().unload().unwrap();
}

fn user_and_provider(provider: Result<(), Refusal>) -> Result<Module, LoadError> {
    let host = host();
    let (gate, is_inside, go) = Gate::new("greet");
    let _gate = host.subscribe("gate", Order::mirrored(0), gate);
    thread::scope(|scope| {
        let loading = scope.spawn(|| drop(host.load(&image("greet"))));
        is_inside.recv().unwrap();
        let user = scope.spawn(|| host.load(&image("guest")));
        a_while();
        assert!(!user.is_finished(), "it waits");
        go.send(provider).unwrap();
        loading.join().unwrap();
        let user = user.join().unwrap();
        if let Ok(user) = &user {
            assert_eq!(user.uses(), ["greet"]);
            // SAFETY: `int guest_heard(void)`.
            assert_eq!(unsafe { user.call("guest_heard", &[]) }.unwrap(), 2);
        }
        user
    })
}

fn woken_by_unformed() {
    let host = host();
    let (gate, is_inside, go) = Gate::new("greet");
    let _gate = host.subscribe("gate", Order::mirrored(0), gate);
    thread::scope(|scope| {
        let provider = scope.spawn(|| host.load(&image("greet")).unwrap_err());
        is_inside.recv().unwrap();
        // UNFORMED, and waiting for its provider; and one more that waits for this one.
        let user = scope.spawn(|| host.load(&image("guest")).unwrap_err());
        a_while();
        let second = scope.spawn(|| host.load(&image("guest")).unwrap_err());
        a_while();
        go.send(Err("not today".into())).unwrap();
        provider.join().unwrap();
        assert_eq!(user.join().unwrap().stage, Stage::Resolve);
        let second = second.join().unwrap();
        assert!(matches!(*second.error, Error::Busy), "{second}");
    });
}

fn user_waits() {
    assert_eq!(user_and_provider(Ok(())).unwrap().name(), "guest");
}

fn user_of_failed_provider() {
    let refused = user_and_provider(Err("not today".into())).unwrap_err();
    assert_eq!(refused.stage, Stage::Resolve);
    assert!(matches!(*refused.error, Error::Unresolved(_)), "{refused}");
    assert!(refused.to_string().contains("greet_hello"), "{refused}");
}

/// What `host_load_again` does, in this process.
static AGAIN: Mutex<Option<Box<dyn Fn() -> i32 + Send>>> = Mutex::new(None);
static SAID: Mutex<Vec<String>> = Mutex::new(Vec::new());

extern "C" fn host_load_again() -> i32 {
    let again = AGAIN.lock().unwrap().take().expect("somebody has said what to do");
    again()
}

fn host_with_load_again() -> Host {
    #[expect(clippy::as_conversions, reason = "the only way from a function pointer to its address")]
    let address = host_load_again as extern "C" fn() -> i32 as *const ();
    Host::builder().export("host_load_again", address).build().unwrap()
}

/// Loads an image again from within an init, and keeps what is said.
fn again(host: &Host, image: Image<'static>) {
    let host = host.downgrade();
    let load = move || match host.upgrade().unwrap().load(&image) {
        Ok(_) => 0,
        Err(failed) => {
            let errno = failed.error.errno();
            SAID.lock().unwrap().push(failed.to_string());
            -errno
        }
    };
    *AGAIN.lock().unwrap() = Some(Box::new(load));
}

fn cycle_in_one_thread() {
    let host = host_with_load_again();
    again(&host, image("nested"));
    let outer = host.load(&image("nested")).unwrap_err();
    assert!(matches!(*outer.error, Error::Init(-35)), "{outer}");
    let said = "nested: reserve: waiting would never end: \"nested\", which waits for \"nested\"";
    assert_eq!(*SAID.lock().unwrap(), [said]);
    assert!(host.modules().is_empty());
    // With something else it works: no lock is held while init runs.
    again(&host, image("greet"));
    let nested = host.load(&image("nested")).unwrap();
    assert_eq!(host.modules().iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["nested", "greet"]);
    // SAFETY: `int nested_answer(void)`.
    assert_eq!(unsafe { nested.call("nested_answer", &[]) }.unwrap(), 0);
}

const PROVIDER: &str = "#include <modload/module.h>\nMODULE_LICENSE(\"GPL\");\nint host_load_again(void);\n\
    int provided(void);\nint provided(void) { return 7; }\nEXPORT_SYMBOL(provided);\n\
    static int __init start(void) { return host_load_again(); }\nmodule_init(start);\n";
const USER: &str = "#include <modload/module.h>\nMODULE_LICENSE(\"GPL\");\nint provided(void);\nint used(void);\n\
    int used(void) { return provided(); }\n";

fn cycle_through_a_symbol() {
    let host = host_with_load_again();
    again(&host, image_from_text("user", USER));
    let outer = host.load(&image_from_text("provider", PROVIDER)).unwrap_err();
    assert!(matches!(*outer.error, Error::Init(-35)), "{outer}");
    // The user waits for the provider, whose init waits for the user.
    let said = "user: resolve: waiting would never end: \"user\", which waits for \"provider\"";
    assert_eq!(*SAID.lock().unwrap(), [said]);
    assert!(host.modules().is_empty());
}

/// In the coming of each of two modules, loads the other one, when both are there.
struct Crossing {
    host: WeakHost,
    both: Arc<Barrier>,
    said: Log,
    depth: AtomicU32,
}

impl Subscriber for Crossing {
    fn coming(&self, coming: &mut Coming<'_>) -> Result<(), Refusal> {
        let other = if coming.module().name() == "greet" { "ordtarget" } else { "greet" };
        if self.depth.fetch_add(1, Ordering::SeqCst) < 2 {
            self.both.wait();
            match self.host.upgrade().unwrap().load(&image(other)) {
                Ok(_) => self.said.push("loaded"),
                Err(failed) => self.said.push(failed.to_string()),
            }
        }
        Ok(())
    }
}

fn cycle_of_two_threads() {
    let host = host();
    let said = Log::default();
    let both = Arc::new(Barrier::new(2));
    let crossing = Crossing { host: host.downgrade(), both, said: said.clone(), depth: AtomicU32::new(0) };
    let _crossing = host.subscribe("crossing", Order::mirrored(0), crossing);
    thread::scope(|scope| {
        for name in ["greet", "ordtarget"] {
            let host = &host;
            scope.spawn(move || host.load(&image(name)).unwrap());
        }
    });
    let mut said = said.take();
    said.sort_by_key(|line| line.contains("already loaded"));
    let [cycle, exists] = &said[..] else { panic!("{said:?}") };
    assert!(
        cycle.contains("waiting would never end: \"greet\", which waits for \"ordtarget\", which waits for \"greet\"")
            || cycle.contains(
                "waiting would never end: \"ordtarget\", which waits for \"greet\", which waits for \"ordtarget\""
            ),
        "{cycle}"
    );
    assert!(exists.contains("already loaded"), "{exists}");
    assert_eq!(host.modules().len(), 2);
}

/// What `host_load_again` is to do next, and what is to be said of it.
fn next(host: &Host, act: impl Fn(&Host) -> String + Send + 'static) {
    let host = host.downgrade();
    *AGAIN.lock().unwrap() = Some(Box::new(move || {
        let said = act(&host.upgrade().unwrap());
        SAID.lock().unwrap().push(said);
        0
    }));
}

fn busy_exit() {
    let text = "#include <modload/module.h>\nMODULE_LICENSE(\"GPL\");\nint host_load_again(void);\n\
                static int __init start(void) { return 0; }\nmodule_init(start);\n\
                static void __exit stop(void) { host_load_again(); }\nmodule_exit(stop);\n";
    let host = host_with_load_again();
    let module = host.load(&image_from_text("leaving", text)).unwrap();
    drop(host.load(&image("ordtarget")).unwrap());
    next(&host, |host| {
        host.unload("ordtarget").unwrap();
        drop(host.load(&image("greet")).unwrap());
        let log = Log::default();
        host.subscribe("visitor", Order::mirrored(0), Watcher::new("visitor", &log)).leave();
        let itself = host.unload("leaving").unwrap_err().to_string();
        format!("{itself}; {:?}", host.modules())
    });
    module.unload().unwrap();
    let said = "leaving: it is GOING, and only a LIVE module can be unloaded; \
                [(\"leaving\", Going), (\"greet\", Live)]";
    assert_eq!(*SAID.lock().unwrap(), [said]);
    assert_eq!(host.modules(), [("greet".to_owned(), State::Live)]);
}

fn init_unloads_itself() {
    let host = host_with_load_again();
    next(&host, |host| {
        assert!(host.module("nested").is_none(), "references are given to LIVE modules only");
        host.unload("nested").unwrap_err().to_string()
    });
    host.load(&image("nested")).unwrap().unload().unwrap();
    assert_eq!(*SAID.lock().unwrap(), ["nested: it is COMING, and only a LIVE module can be unloaded"]);
}

fn provider_of_a_coming_user() {
    let host = host();
    drop(host.load(&image("greet")).unwrap());
    let (gate, is_inside, go) = Gate::new("guest");
    let _gate = host.subscribe("gate", Order::mirrored(0), gate);
    for answer in [Err("not today".into()), Ok(())] {
        let refused = answer.is_err();
        thread::scope(|scope| {
            let loading = scope.spawn(|| host.load(&image("guest")));
            is_inside.recv().unwrap();
            assert_eq!(host.unload("greet").unwrap_err().to_string(), "greet: in use by guest");
            go.send(answer).unwrap();
            assert_eq!(loading.join().unwrap().is_err(), refused);
        });
        // Who was refused uses nothing.
        let users = host.module("greet").unwrap().users();
        assert_eq!(users.is_empty(), refused, "{users:?}");
    }
    host.unload("guest").unwrap();
    host.unload("greet").unwrap();
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
        host.load(&image("greet")).map_err(|failed| failed.to_string())?;
        host.load(&image("guest"))
            .map_err(|failed| failed.to_string())?
            .unload()
            .map_err(|failed| failed.to_string())?;
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

fn busy_subscriber() {
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
        // Who joined in the middle of a coming has heard of what came afterwards, and nothing of that module.
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

fn leave_waits() {
    let host = host();
    let (gate, is_inside, go) = Gate::new("ordtarget");
    let member = host.subscribe("gate", Order::mirrored(0), gate);
    thread::scope(|scope| {
        let loading = scope.spawn(|| host.load(&image("ordtarget")));
        is_inside.recv().unwrap();
        let leaving = scope.spawn(|| member.leave());
        a_while();
        assert!(!leaving.is_finished(), "its call is running");
        // It has left all the same: another module passes it by, and it can join again.
        host.load(&image("greet")).unwrap().unload().unwrap();
        go.send(Ok(())).unwrap();
        leaving.join().unwrap();
        loading.join().unwrap().unwrap();
    });
}

/// Leaves when it is first called.
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

fn leave_from_within() {
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

fn panics() {
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
                matches!(&*refused.error, Error::Refused { subscriber, .. } if subscriber == "panicker"),
                "{refused}"
            );
            assert!(refused.to_string().contains("a subscriber's own trouble"), "{refused}");
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
        // And it is called the next time as if nothing had been.
        assert_eq!(host.load(&image("ordtarget")).is_err(), on == State::Coming);
    }
}

fn late_joiners() {
    let host = host();
    let log = Log::default();
    let module = host.load(&image("ordtarget")).unwrap();
    let _late = host.subscribe("late", Order::mirrored(0), Watcher::new("late", &log));
    module.unload().unwrap();
    assert_eq!(log.take(), [""; 0], "not of the GOING of what it has not seen come");
    // Nor of LIVE, if it joins while the module is COMING.
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

fn leavers() {
    let host = host();
    let log = Log::default();
    let leaver = host.subscribe("leaver", Order::mirrored(0), Watcher::new("leaver", &log));
    let module = host.load(&image("ordtarget")).unwrap();
    leaver.leave();
    module.unload().unwrap();
    assert_eq!(log.take(), ["COMING leaver ordtarget", "LIVE leaver ordtarget"]);
}

/// Counts, and demands that GOING never comes without COMING.
#[derive(Default)]
struct Balance {
    open: Mutex<Vec<String>>,
}

impl Subscriber for Balance {
    fn coming(&self, coming: &mut Coming<'_>) -> Result<(), Refusal> {
        self.open.lock().unwrap().push(coming.module().name().to_owned());
        Ok(())
    }

    fn going(&self, module: &ModuleInfo) {
        let mut open = self.open.lock().unwrap();
        let at = open.iter().position(|name| name == module.name()).expect("a COMING before the GOING");
        open.swap_remove(at);
    }
}

struct SharedBalance(Arc<Balance>);

impl Subscriber for SharedBalance {
    fn coming(&self, coming: &mut Coming<'_>) -> Result<(), Refusal> {
        self.0.coming(coming)
    }

    fn going(&self, module: &ModuleInfo) {
        self.0.going(module);
    }
}

fn used() -> [u64; 4] {
    Arena::get().unwrap().usage().each_ref().map(|stripe| stripe.used)
}

/// The worst that `unregister_module_notifier` has returned.
static UNREGISTERED: std::sync::atomic::AtomicI32 = std::sync::atomic::AtomicI32::new(0);

extern "C" fn unregistered(result: i32) {
    UNREGISTERED.fetch_min(result, Ordering::Relaxed);
}

fn last_handle() {
    const TEXT: &str = "
#include <modload/module.h>
void unregistered(int result);
static int hear(struct notifier_block *block, unsigned long action, void *data) { return NOTIFY_OK; }
static struct notifier_block block = { .notifier_call = hear };
static int __init tidy_init(void) { return register_module_notifier(&block); }
module_init(tidy_init);
static void __exit tidy_exit(void) { unregistered(unregister_module_notifier(&block)); }
module_exit(tidy_exit);
";
    #[expect(clippy::as_conversions, reason = "the only way from a function to its address")]
    let report = unregistered as *const ();
    let image = image_from_text("tidy", TEXT);
    for _ in 0..5000 {
        let first = Host::builder().export("unregistered", report).build().unwrap();
        first.load(&image).unwrap();
        let second = first.downgrade().upgrade().unwrap();
        let start = Barrier::new(2);
        thread::scope(|scope| {
            for handle in [first, second] {
                let start = &start;
                scope.spawn(move || {
                    start.wait();
                    drop(handle);
                });
            }
        });
    }
    assert_eq!(UNREGISTERED.load(Ordering::Relaxed), 0);
}

fn eight_threads() {
    // Each unload waits until every one of these busy threads has had a processor.
    const LOADS: usize = 50;
    let host = host();
    // One whose symbols all of them use, so that the graph of uses is busy, too.
    let provider = "#include <modload/module.h>\nMODULE_LICENSE(\"GPL\");\nint provided(void);\n\
                    int provided(void) { return 7; }\nEXPORT_SYMBOL(provided);\n";
    let provider = host.load(&image_from_text("provider", provider)).unwrap();
    let user = image_from_text("user", USER);
    let table = image("ro_after_init");
    let balance = Arc::new(Balance::default());
    let _balance = host.subscribe("balance", Order::mirrored(5), SharedBalance(balance.clone()));
    let before = used();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let loaders: Vec<_> = (0..8_u64)
            .map(|thread| {
                let (host, user, table) = (&host, &user, &table);
                scope.spawn(move || {
                    let mut chance = Chance::new(thread + 1);
                    let mut live: Vec<Module> = Vec::new();
                    for load in 0..LOADS {
                        let image = if chance.below(2) == 0 { user } else { table };
                        let module = host.load(&image.clone().named(format!("t{thread}_{load}"))).unwrap();
                        if module.uses().is_empty() {
                            // SAFETY: `int ro_limit(void)`.
                            assert_eq!(unsafe { module.call("ro_limit", &[]) }.unwrap(), 3);
                        } else {
                            // SAFETY: `int used(void)`.
                            assert_eq!(unsafe { module.call("used", &[]) }.unwrap(), 7);
                        }
                        live.push(module);
                        while live.len() > chance.below(6) {
                            live.swap_remove(chance.below(live.len())).unload().unwrap();
                        }
                    }
                    for module in live {
                        module.unload().unwrap();
                    }
                })
            })
            .collect();
        for priority in [-1, 1] {
            let (host, stop) = (&host, &stop);
            scope.spawn(move || {
                let balance = Arc::new(Balance::default());
                while !stop.load(Ordering::Relaxed) {
                    host.subscribe("visitor", Order::mirrored(priority), SharedBalance(balance.clone())).leave();
                    let stays = host.subscribe("visitor", Order::same(priority), SharedBalance(balance.clone()));
                    thread::yield_now();
                    drop(stays);
                    // What it has seen come while it was there and not go: forgotten.
                    balance.open.lock().unwrap().clear();
                }
            });
        }
        for loader in loaders {
            loader.join().unwrap();
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(balance.open.lock().unwrap().is_empty());
    assert_eq!(provider.users(), [""; 0]);
    assert_eq!(used(), before);
    provider.unload().unwrap();
    assert!(host.modules().is_empty());
}

fn one_name() {
    let host = host();
    let (there, loaded) = (AtomicU32::new(0), AtomicU32::new(0));
    let image = image("ordtarget");
    let before = used();
    thread::scope(|scope| {
        for _ in 0..8 {
            let (host, image, there, loaded) = (&host, &image, &there, &loaded);
            scope.spawn(move || {
                for _ in 0..200 {
                    match host.load(image) {
                        Ok(module) => {
                            assert_eq!(there.fetch_add(1, Ordering::SeqCst), 0, "there is one at a time");
                            loaded.fetch_add(1, Ordering::SeqCst);
                            there.fetch_sub(1, Ordering::SeqCst);
                            module.unload().unwrap();
                        }
                        Err(failed) => {
                            assert!(matches!(*failed.error, Error::Exists | Error::Busy), "{failed}");
                        }
                    }
                }
            });
        }
    });
    assert!(loaded.into_inner() >= 1);
    assert!(host.modules().is_empty());
    assert_eq!(used(), before);
}
