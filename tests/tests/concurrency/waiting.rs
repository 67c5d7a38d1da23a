//! Loads of one name, and of the symbols that other loads need: which load waits for which, and the results.

use std::sync::{Arc, OnceLock};
use std::thread;

use modload::error::{PrepareError, RegistryError, sentence};
use modload::{Error, LoadError, Module, ModuleInfo, Order, Refusal, Stage, State, Subscriber, WeakHost};
use modload_tests::image;

use crate::scene::{Gate, host, spawn_waiting};

fn errors_of(first: Result<(), Refusal>) -> (Result<Module, LoadError>, LoadError) {
    let host = host();
    let (gate, is_inside, go) = Gate::new("ordtarget");
    let _gate = host.subscribe("gate", Order::mirrored(0), gate);
    thread::scope(|scope| {
        let loading = scope.spawn(|| host.load(&image("ordtarget")));
        is_inside.recv().unwrap();
        let second = spawn_waiting(scope, || host.load(&image("ordtarget")));
        assert!(!second.is_finished(), "it waits");
        assert_eq!(host.modules(), [("ordtarget".to_owned(), State::Coming)]);
        go.send(first).unwrap();
        (loading.join().unwrap(), second.join().unwrap().unwrap_err())
    })
}

pub(crate) fn the_second_load_of_a_name_waits_and_finds_it_there() {
    let (first, second) = errors_of(Ok(()));
    first.unwrap();
    assert_eq!(second.stage, Stage::Reserve);
    assert!(matches!(*second.error, Error::Registry(RegistryError::Exists)), "{second}");
    assert_eq!(second.error.errno(), libc::EEXIST);
}

pub(crate) fn the_second_load_of_a_name_waits_and_is_told_that_it_failed() {
    let (first, second) = errors_of(Err("not today".into()));
    assert!(matches!(*first.unwrap_err().error, Error::Registry(RegistryError::Refused { .. })));
    assert!(matches!(*second.error, Error::Registry(RegistryError::Busy)), "{second}");
    assert_eq!(second.error.errno(), libc::EBUSY);
}

/// Loads, in the going of one module, the module itself. Keeps the result.
struct Reviver {
    host: WeakHost,
    answer: Arc<OnceLock<String>>,
}

impl Subscriber for Reviver {
    fn going(&self, module: &ModuleInfo) {
        let answer = sentence(&self.host.upgrade().unwrap().load(&image(module.name())).unwrap_err());
        self.answer.set(answer).unwrap();
    }
}

pub(crate) fn a_name_that_is_going_is_busy() {
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
        let user = spawn_waiting(scope, || host.load(&image("guest")));
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

pub(crate) fn who_waits_for_a_load_that_fails_unformed_is_woken() {
    let host = host();
    let (gate, is_inside, go) = Gate::new("greet");
    let _gate = host.subscribe("gate", Order::mirrored(0), gate);
    thread::scope(|scope| {
        let provider = scope.spawn(|| host.load(&image("greet")).unwrap_err());
        is_inside.recv().unwrap();
        // UNFORMED, and waiting for its provider; another load waits for this module.
        let user = spawn_waiting(scope, || host.load(&image("guest")).unwrap_err());
        let second = spawn_waiting(scope, || host.load(&image("guest")).unwrap_err());
        go.send(Err("not today".into())).unwrap();
        provider.join().unwrap();
        assert_eq!(user.join().unwrap().stage, Stage::Resolve);
        let second = second.join().unwrap();
        assert!(matches!(*second.error, Error::Registry(RegistryError::Busy)), "{second}");
    });
}

pub(crate) fn a_user_waits_for_its_provider() {
    assert_eq!(user_and_provider(Ok(())).unwrap().name(), "guest");
}

pub(crate) fn a_user_of_a_provider_that_fails_is_refused() {
    let refused = user_and_provider(Err("not today".into())).unwrap_err();
    assert_eq!(refused.stage, Stage::Resolve);
    assert!(matches!(*refused.error, Error::Prepare(PrepareError::Unresolved(_))), "{refused}");
    assert!(sentence(&refused).contains("greet_hello"), "{refused}");
}
