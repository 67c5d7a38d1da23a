//! Operations of a host on LIVE modules: waiting until a module is not in use, unloading a module by force, setting its
//! parameters, recording the events of one thread.

use std::process::ExitCode;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use modload::error::sentence;
use modload::text::Arena;
use modload::{Host, State, UnloadError};
use modload_tests::{LONG, Log, case, image, image_from_text};

fn main() -> ExitCode {
    modload_tests::run(&[
        case!(a_waiting_unload_goes_on_when_the_last_user_is_gone),
        case!(a_waiting_unload_gives_up_and_others_wait_on),
        case!(many_wait_and_one_unloads),
        case!(force_is_for_those_who_allow_it_and_never_for_modules),
        case!(what_is_unloaded_by_force_keeps_its_memory_until_it_is_let_go),
        case!(parameters_are_set_where_their_permission_says),
        case!(a_listener_hears_its_own_thread_alone),
        case!(a_host_says_what_stays),
    ])
}

fn host() -> Host {
    Host::builder().build().unwrap()
}

fn a_waiting_unload_goes_on_when_the_last_user_is_gone() {
    let host = host();
    let greet = host.load(&image("greet")).unwrap();
    let guest = host.load(&image("guest")).unwrap();
    let (clone, done) = (greet.clone(), mpsc::channel());
    thread::scope(|scope| {
        scope.spawn(|| done.0.send(host.unload_within("greet", Duration::MAX).map_err(|error| error.to_string())));
        // Each is a change that wakes the waiter, and only the last one is enough.
        drop(clone);
        guest.unload().unwrap();
        assert!(host.module("greet").is_some(), "it gives references meanwhile");
        drop(greet);
        assert_eq!(done.1.recv_timeout(LONG), Ok(Ok(())));
    });
    assert!(host.modules().is_empty());
}

fn a_waiting_unload_gives_up_and_others_wait_on() {
    let host = host();
    let greet = host.load(&image("greet")).unwrap();
    thread::scope(|scope| {
        let long = scope.spawn(|| host.unload_within("greet", LONG).map_err(|error| error.to_string()));
        let short = host.unload_within("greet", Duration::from_millis(20)).unwrap_err();
        assert!(matches!(short, UnloadError::InUse { references: 1, .. }), "{short}");
        drop(greet);
        assert_eq!(long.join().unwrap(), Ok(()));
    });
    let refused = host.unload_within("greet", Duration::MAX).unwrap_err();
    assert!(matches!(refused, UnloadError::NotFound(_)), "{refused}");
}

fn many_wait_and_one_unloads() {
    let host = host();
    for _ in 0..50 {
        let greet = host.load(&image("greet")).unwrap();
        let unloaded = thread::scope(|scope| {
            let wait = || scope.spawn(|| host.unload_within("greet", LONG).is_ok());
            let waiting = [wait(), wait(), wait()];
            drop(greet);
            waiting.map(|waiting| waiting.join().unwrap()).into_iter().filter(|unloaded| *unloaded).count()
        });
        assert_eq!(unloaded, 1);
    }
}

fn force_is_for_those_who_allow_it_and_never_for_modules() {
    let strict = host();
    let held = strict.load(&image("greet")).unwrap();
    let refused = strict.unload_by_force("greet").unwrap_err();
    assert_eq!(refused.to_string(), "greet: this host does not unload by force: wait until it is no longer used");
    assert_eq!((held.references(), strict.taint()), (1, String::new()));
    let host = Host::builder().allow_forced_unload().build().unwrap();
    let greet = host.load(&image("greet")).unwrap();
    let _guest = host.load(&image("guest")).unwrap();
    let refused = host.unload_by_force("greet").unwrap_err();
    assert_eq!(refused.to_string(), "greet: in use by guest (1 reference is held)");
    assert_eq!(greet.state(), Some(State::Live));
    let refused = host.unload_by_force("nobody").unwrap_err();
    assert!(matches!(refused, UnloadError::NotFound(_)), "{refused}");
}

fn what_is_unloaded_by_force_keeps_its_memory_until_it_is_let_go() {
    let host = Host::builder().allow_forced_unload().build().unwrap();
    let used = || Arena::get().unwrap().usage().map(|stripe| stripe.used);
    let before = used();
    let greet = host.load(&image("greet").param("times=4")).unwrap();
    // SAFETY: the type of greet_hello.
    let hello = *unsafe { greet.symbol::<extern "C" fn() -> i32>("greet_hello") }.unwrap();
    let recording = host.record();
    host.unload_by_force("greet").unwrap();
    assert_eq!((host.modules(), host.taint().as_str(), greet.state()), (vec![], "R", None));
    assert_eq!(
        recording.finish().to_string(),
        "greet        state     GOING\n\
         greet        warning   unloaded by force (1 reference is held): its memory stays until they are dropped\n\
         greet        exit\n\
         greet        notify    going GOING -> static_keys (-2147483646, builtin): ok\n\
         greet        notify    going GOING -> livepatch (-2147483647, builtin): ok\n\
         greet        notify    going GOING -> ftrace (-2147483648, builtin): ok\n"
    );
    // The module's name is free; its code and its data still exist.
    let again = host.load(&image("greet")).unwrap();
    assert_eq!(hello(), 4);
    assert!(greet.set_param("times", Some("5")).is_err());
    again.unload().unwrap();
    greet.unload().unwrap_err();
    assert_eq!(used(), before);
    // The module has no reference, so nothing was forced.
    let calm = Host::builder().allow_forced_unload().build().unwrap();
    drop(calm.load(&image("greet")).unwrap());
    calm.unload_by_force("greet").unwrap();
    assert_eq!((calm.taint().as_str(), used()), ("", before));
}

fn parameters_are_set_where_their_permission_says() {
    let host = host();
    let text = "
#include <modload/module.h>
static int late __ro_after_init = 1;
module_param(late, int, 0644);
static int early __initdata = 1;
module_param(early, int, 0200);
static int hidden = 1;
module_param(hidden, int, 0);
static bool flag;
module_param(flag, bool, 0600);
static char *text = \"first\";
module_param(text, charp, 0644);
static int list[3];
static unsigned int given;
module_param_array(list, int, &given, 0644);
const char *get_text(void);
const char *get_text(void) { return text; }
";
    let module = host.load(&image_from_text("settable", text)).unwrap();
    let set = |param: &str, value: Option<&str>| module.set_param(param, value).map_err(|error| sentence(&error));
    for (param, value, shown) in [
        ("flag", None, "Y"),
        ("flag", Some("n"), "N"),
        ("text", Some("second"), "second"),
        ("text", Some("third"), "third"),
        ("list", Some("1,0x10"), "1,16"),
    ] {
        assert_eq!(set(param, value), Ok(()), "{param}");
        assert_eq!(module.param(param).as_deref(), Some(shown), "{param}");
    }
    for (param, value, why) in [
        ("nobody", Some("1"), "settable has no parameter \"nobody\""),
        ("hidden", Some("1"), "parameter \"hidden\" of settable has the permission 0000: it can be set only when"),
        ("late", Some("1"), "parameter \"late\" of settable cannot be set: its variable is ro_after_init"),
        ("early", Some("1"), "parameter \"early\" of settable cannot be set: its variable was for init only"),
        ("flag", Some("perhaps"), "parameter \"flag\" of settable: \"perhaps\" is not a bool"),
        ("list", Some("1,2,3,4"), "parameter \"list\" of settable: it takes at most 3 values"),
        ("text", None, "it needs a value"),
    ] {
        let refused = set(param, value).unwrap_err();
        assert!(refused.contains(why), "{param}: {refused}");
    }
    assert_eq!(module.param("text").as_deref(), Some("third"));
    // SAFETY: the type of get_text.
    let get = *unsafe { module.symbol::<extern "C" fn() -> *const std::ffi::c_char>("get_text") }.unwrap();
    let seen = get();
    set("text", Some("fourth")).unwrap();
    // SAFETY: the module's string, which keeps its address for earlier readers.
    assert_eq!(unsafe { std::ffi::CStr::from_ptr(seen) }.to_str(), Ok("third"));
}

fn a_listener_hears_its_own_thread_alone() {
    let host = host();
    let log = Log::default();
    let heard = log.clone();
    let listening = host.listen(move |event| heard.push(format!("{} {}", event.seq, event.module)));
    thread::scope(|scope| {
        scope.spawn(|| host.load(&image("guest")).unwrap_err());
    });
    assert_eq!(log.take(), [""; 0]);
    let greet = host.load(&image("greet")).unwrap();
    let lines = log.take();
    assert!(lines.len() > 10 && lines[0] == "1 greet" && lines[1] == "2 greet", "{lines:?}");
    drop(listening);
    greet.unload().unwrap();
    assert_eq!(log.take(), [""; 0]);
}

fn a_host_says_what_stays() {
    let host = host();
    let greet = host.load(&image("greet")).unwrap();
    let guest = host.load(&image("guest")).unwrap();
    let stays = |host: &Host| host.unload_all().iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(stays(&host), ["guest: in use (1 reference is held)", "greet: in use by guest (1 reference is held)"]);
    drop((greet, guest));
    assert_eq!(stays(&host), [""; 0]);
    assert!(host.modules().is_empty());
}
