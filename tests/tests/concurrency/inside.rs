//! Loads and unloads from within init and exit.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::thread;

use modload::error::sentence;
use modload::{Coming, Error, Host, Image, Order, Refusal, State, Subscriber, WeakHost};
use modload_tests::{Log, Watcher, image, image_from_text};

use crate::scene::{Gate, host};

/// The effect of `host_load_again` in this process.
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

/// Loads an image again from within an init, and keeps the result.
fn again(host: &Host, image: Image<'static>) {
    let host = host.downgrade();
    let load = move || match host.upgrade().unwrap().load(&image) {
        Ok(_) => 0,
        Err(failed) => {
            let errno = failed.error.errno();
            SAID.lock().unwrap().push(sentence(&failed));
            -errno
        }
    };
    *AGAIN.lock().unwrap() = Some(Box::new(load));
}

pub(crate) fn init_that_loads_what_waits_for_it_is_a_cycle() {
    let host = host_with_load_again();
    again(&host, image("nested"));
    let outer = host.load(&image("nested")).unwrap_err();
    assert!(matches!(*outer.error, Error::Init(-35)), "{outer}");
    let said = "nested: reserve: waiting would never end: \"nested\", which waits for \"nested\"";
    assert_eq!(*SAID.lock().unwrap(), [said]);
    assert!(host.modules().is_empty());
    // With another module the load succeeds: no lock is held while init runs.
    again(&host, image("greet"));
    let nested = host.load(&image("nested")).unwrap();
    assert_eq!(host.modules().iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["nested", "greet"]);
    // SAFETY: `int nested_answer(void)`.
    assert_eq!(unsafe { nested.call("nested_answer", &[]) }.unwrap(), 0);
}

const PROVIDER: &str = "#include <modload/module.h>\nMODULE_LICENSE(\"GPL\");\nint host_load_again(void);\n\
    int provided(void);\nint provided(void) { return 7; }\nEXPORT_SYMBOL(provided);\n\
    static int __init start(void) { return host_load_again(); }\nmodule_init(start);\n";
pub(crate) const USER: &str = "#include <modload/module.h>\nMODULE_LICENSE(\"GPL\");\nint provided(void);\nint used(void);\n\
    int used(void) { return provided(); }\n";

pub(crate) fn init_that_loads_another_user_of_it_is_a_cycle() {
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
                Err(failed) => self.said.push(sentence(&failed)),
            }
        }
        Ok(())
    }
}

pub(crate) fn two_inits_that_load_each_other_are_a_cycle() {
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

/// Sets the next effect of `host_load_again`, which returns the text to be kept.
fn next(host: &Host, act: impl Fn(&Host) -> String + Send + 'static) {
    let host = host.downgrade();
    *AGAIN.lock().unwrap() = Some(Box::new(move || {
        let said = act(&host.upgrade().unwrap());
        SAID.lock().unwrap().push(said);
        0
    }));
}

pub(crate) fn an_exit_loads_and_unloads() {
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

pub(crate) fn an_init_cannot_unload_its_own_module() {
    let host = host_with_load_again();
    next(&host, |host| {
        assert!(host.module("nested").is_none(), "references are given to LIVE modules only");
        host.unload("nested").unwrap_err().to_string()
    });
    host.load(&image("nested")).unwrap().unload().unwrap();
    assert_eq!(*SAID.lock().unwrap(), ["nested: it is COMING, and only a LIVE module can be unloaded"]);
}

pub(crate) fn a_provider_stays_while_its_user_is_coming() {
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
        // A module that was refused uses nothing.
        let users = host.module("greet").unwrap().users();
        assert_eq!(users.is_empty(), refused, "{users:?}");
    }
    host.unload("guest").unwrap();
    host.unload("greet").unwrap();
}
