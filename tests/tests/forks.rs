//! Fork: actions of a child stay in the child, and actions of the parent do not block the child.

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Barrier, Mutex};
use std::thread;

use modload::text::Arena;
use modload::{Coming, Host, Module, Order, Refusal, State, Subscriber};
use modload_edit::index;
use modload_tests::{case, image, image_from_text, in_fork, peek};

fn main() -> ExitCode {
    modload_tests::run(&[
        case!(what_a_child_unloads_and_loads_stays_in_the_child),
        case!(a_child_forked_in_the_middle_of_a_load_goes_on),
        case!(forks_do_not_disturb_loads_in_other_threads),
        case!(a_child_of_a_child_loads),
        case!(a_load_that_forks_is_finished_by_both),
        case!(a_childs_modules_register_notifiers).within_seconds(20),
        case!(children_of_several_threads_load),
        case!(a_child_sees_the_modules_that_others_were_looking_at),
        case!(a_child_forked_while_the_arena_is_created_has_an_arena),
    ])
}

fn call(module: &Module, name: &str, arguments: &[u64]) -> u64 {
    // SAFETY: the tests call functions that take and return integers.
    unsafe { module.call(name, arguments) }.unwrap()
}

/// The bytes of a module's function.
fn bytes(module: &Module, name: &str) -> Vec<u8> {
    let symbol = module.symbol_info(name).unwrap();
    assert_ne!(symbol.size, 0);
    peek(symbol.addr, index(symbol.size))
}

fn answers(name: &str, answer: u32) -> modload::Image<'static> {
    image_from_text(
        name,
        &format!("static int calls; int answer(void); int answer(void) {{ calls++; return {answer}; }}\n"),
    )
}

fn what_a_child_unloads_and_loads_stays_in_the_child() {
    let host = Host::builder().build().unwrap();
    let parents = host.load(&answers("parents", 1)).unwrap();
    let (place, before) = (parents.symbol_info("answer").unwrap().addr, bytes(&parents, "answer"));
    let mut module = Some(parents);
    let usage = Arena::get().unwrap().usage();
    let ended = in_fork(|| {
        let parents = module.take().unwrap();
        assert_eq!(call(&parents, "answer", &[]), 1);
        parents.unload().unwrap();
        let childs = host.load(&answers("childs", 2)).unwrap();
        assert_eq!(childs.symbol_info("answer").unwrap().addr, place, "the same place");
        assert_eq!(call(&childs, "answer", &[]), 2);
        assert_ne!(bytes(&childs, "answer"), before);
        assert_eq!(host.modules(), [("childs".to_owned(), State::Live)]);
    });
    ended.well();
    let parents = module.unwrap();
    assert_eq!(bytes(&parents, "answer"), before);
    assert_eq!(call(&parents, "answer", &[]), 1);
    assert_eq!(host.modules(), [("parents".to_owned(), State::Live)]);
    assert_eq!(Arena::get().unwrap().usage(), usage);
    parents.unload().unwrap();
}

/// This process has no arena. Each first child creates the arena in one thread, and forks in another.
fn a_child_forked_while_the_arena_is_created_has_an_arena() {
    for pause in 0..300_u32 {
        let ended = in_fork(|| {
            let begin = Barrier::new(2);
            thread::scope(|scope| {
                scope.spawn(|| {
                    begin.wait();
                    Arena::get().unwrap();
                });
                begin.wait();
                (0..pause * 100).for_each(|_| std::hint::spin_loop());
                in_fork(|| assert!(Arena::get().is_ok())).well();
            });
        });
        ended.well();
    }
}

/// Blocks in the coming of one module, in the process that made the subscriber, until the test releases it.
struct Blocker {
    process: u32,
    module: &'static str,
    inside: Sender<()>,
    go_on: Mutex<Receiver<()>>,
    childs_calls: AtomicU32,
}

impl Subscriber for Blocker {
    fn coming(&self, coming: &mut Coming<'_>) -> Result<(), Refusal> {
        if coming.module().name() == self.module {
            if std::process::id() == self.process {
                self.inside.send(()).unwrap();
                self.go_on.lock().unwrap().recv().unwrap();
            } else {
                self.childs_calls.fetch_add(1, Ordering::Relaxed);
            }
        }
        Ok(())
    }
}

fn a_child_forked_in_the_middle_of_a_load_goes_on() {
    let host = Host::builder().build().unwrap();
    let company = host.load(&image("greet")).unwrap();
    let (inside, is_inside) = channel();
    let (go, go_on) = channel();
    let blocker = Arc::new(Blocker {
        process: std::process::id(),
        module: "ordtarget",
        inside,
        go_on: Mutex::new(go_on),
        childs_calls: AtomicU32::new(0),
    });
    let shared = Shared(blocker.clone());
    let member = host.subscribe("blocker", Order::mirrored(0), shared);
    thread::scope(|scope| {
        let loading = scope.spawn(|| host.load(&image("ordtarget")));
        is_inside.recv().unwrap();
        assert_eq!(host.modules().last().unwrap(), &("ordtarget".to_owned(), State::Coming));
        let image_again = image("ordtarget");
        let mut member = Some(member);
        let ended = in_fork(|| {
            // The load of a thread that does not exist in this process is gone, and the name is free.
            assert_eq!(host.modules(), [("greet".to_owned(), State::Live)]);
            let module = host.load(&image_again).unwrap();
            assert_eq!(blocker.childs_calls.load(Ordering::Relaxed), 1);
            assert_eq!(call(&module, "ordtarget_ran", &[]), 1);
            module.unload().unwrap();
            // No thread waits for that thread's call of the subscriber either.
            member.take().unwrap().leave();
            assert_eq!(call(&company, "greet_hello", &[]), 1);
            host.load(&answers("another", 5)).unwrap().unload().unwrap();
        });
        ended.well();
        go.send(()).unwrap();
        let module = loading.join().unwrap().unwrap();
        assert_eq!(call(&module, "ordtarget_ran", &[]), 1);
        module.unload().unwrap();
        member.unwrap().leave();
    });
    assert_eq!(blocker.childs_calls.load(Ordering::Relaxed), 0);
}

struct Shared(Arc<Blocker>);

impl Subscriber for Shared {
    fn coming(&self, coming: &mut Coming<'_>) -> Result<(), Refusal> {
        self.0.coming(coming)
    }
}

fn forks_do_not_disturb_loads_in_other_threads() {
    let host = Host::builder().build().unwrap();
    let (stop, loads) = (AtomicBool::new(false), AtomicU32::new(0));
    let usage = Arena::get().unwrap().usage();
    thread::scope(|scope| {
        for thread in 0..2_u32 {
            let (host, stop, loads) = (&host, &stop, &loads);
            scope.spawn(move || {
                let image = answers(&format!("of_thread_{thread}"), thread + 10);
                while !stop.load(Ordering::Relaxed) {
                    let module = host.load(&image).unwrap();
                    assert_eq!(call(&module, "answer", &[]), u64::from(thread + 10));
                    module.unload().unwrap();
                    loads.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let image = answers("of_the_child", 3);
        for _ in 0..50 {
            let ended = in_fork(|| {
                let module = host.load(&image).unwrap();
                assert_eq!(call(&module, "answer", &[]), 3);
                module.unload().unwrap();
            });
            if ended.status != Some(0) {
                stop.store(true, Ordering::Relaxed);
            }
            ended.well();
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(loads.into_inner() > 50);
    assert!(host.modules().is_empty());
    let used = |usage: &[modload::text::StripeUsage; 4]| usage.each_ref().map(|stripe| stripe.used);
    assert_eq!(used(&Arena::get().unwrap().usage()), used(&usage));
}

fn children_of_several_threads_load() {
    let host = Host::builder().build().unwrap();
    thread::scope(|scope| {
        for thread in 0..4_u32 {
            let host = &host;
            scope.spawn(move || {
                let image = answers(&format!("of_child_{thread}"), thread);
                for _ in 0..100 {
                    in_fork(|| host.load(&image).unwrap().unload().unwrap()).well();
                }
            });
        }
    });
}

fn a_child_sees_the_modules_that_others_were_looking_at() {
    let host = Host::builder().process_symbols().build().unwrap();
    let module = host.load(&image("params_all")).unwrap();
    let stop = AtomicBool::new(false);
    let look =
        || module.params().iter().filter_map(|param| module.param(&param.name)).count() + module.sections().count();
    let seen = look();
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    assert_eq!(look(), seen);
                }
            });
        }
        for _ in 0..200 {
            let ended = in_fork(|| assert_eq!(look(), seen));
            stop.fetch_or(ended.status != Some(0), Ordering::Relaxed);
            ended.well();
        }
        stop.store(true, Ordering::Relaxed);
    });
}

fn a_childs_modules_register_notifiers() {
    let host = Host::builder().build().unwrap();
    let image = |name: &str| {
        let text = "
#include <modload/module.h>
static int hear(struct notifier_block *block, unsigned long action, void *data) { return NOTIFY_OK; }
static struct notifier_block block = { .notifier_call = hear };
static int __init hearing_init(void)
{
	for (int i = 0; i < 2000; i++)
		if (register_module_notifier(&block) || unregister_module_notifier(&block))
			return -EINVAL;
	return 0;
}
module_init(hearing_init);
";
        image_from_text(name, text)
    };
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                host.load(&image("parents")).unwrap().unload().unwrap();
            }
        });
        let childs = image("childs");
        for _ in 0..100 {
            let ended = in_fork(|| host.load(&childs).unwrap().unload().unwrap());
            stop.fetch_or(ended.status != Some(0), Ordering::Relaxed);
            ended.well();
        }
        stop.store(true, Ordering::Relaxed);
    });
}

fn a_child_of_a_child_loads() {
    let host = Host::builder().build().unwrap();
    let module = host.load(&answers("first", 1)).unwrap();
    in_fork(|| {
        let second = host.load(&answers("second", 2)).unwrap();
        in_fork(|| {
            let third = host.load(&answers("third", 3)).unwrap();
            assert_eq!([&module, &second, &third].map(|module| call(module, "answer", &[])), [1, 2, 3]);
            second.clone().unload().unwrap_err();
        })
        .well();
        assert_eq!(call(&second, "answer", &[]), 2);
        assert!(host.module("third").is_none());
    })
    .well();
    assert_eq!(host.modules().len(), 1);
    assert_eq!(call(&module, "answer", &[]), 1);
}

/// Forks in the middle of a load. Stores 0 in the child, where the load continues as in the parent.
struct Forker(Arc<AtomicI32>);

impl Subscriber for Forker {
    fn coming(&self, _: &mut Coming<'_>) -> Result<(), Refusal> {
        // SAFETY: the child continues with this thread alone, which modload and the C library support.
        let pid = unsafe { libc::fork() };
        assert!(pid >= 0, "fork");
        self.0.store(pid, Ordering::Relaxed);
        Ok(())
    }
}

fn a_load_that_forks_is_finished_by_both() {
    let host = Host::builder().build().unwrap();
    let before = host.load(&answers("before", 4)).unwrap();
    let forked = Arc::new(AtomicI32::new(-1));
    let member = host.subscribe("forker", Order::mirrored(0), Forker(forked.clone()));
    let module = host.load(&answers("forked", 5)).unwrap();
    let pid = forked.load(Ordering::Relaxed);
    let add = if pid == 0 { 1 } else { 0 };
    member.leave();
    let other = host.load(&answers("other", 6 + add)).unwrap();
    let all = [&before, &module, &other].map(|module| call(module, "answer", &[]));
    assert_eq!(all, [4, 5, u64::from(6 + add)]);
    other.unload().unwrap();
    module.unload().unwrap();
    if pid == 0 {
        return;
    }
    let mut status = 0;
    // SAFETY: waits for our own child.
    let waited = unsafe { libc::waitpid(pid, &raw mut status, 0) };
    assert_eq!((waited, status), (pid, 0));
    assert_eq!(host.modules().len(), 1);
}
