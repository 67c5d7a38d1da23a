//! Many threads at once, and handles of one host in several.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::thread;

use modload::error::RegistryError;
use modload::text::Arena;
use modload::{Coming, Error, Host, Module, ModuleInfo, Order, Refusal, Subscriber};
use modload_tests::{Chance, image, image_from_text};

use crate::inside::USER;
use crate::scene::host;

/// Counts, and requires a COMING before each GOING.
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

pub(crate) fn the_last_of_several_handles_unloads_while_the_host_is_there() {
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

pub(crate) fn eight_threads_load_and_unload() {
    // Each unload waits until every one of these busy threads has had a processor.
    const LOADS: usize = 50;
    let host = host();
    // A provider whose symbols all of the modules use, so that the graph of uses changes too.
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
                    // Forgets modules whose coming the visitor has seen and whose going the visitor has not seen.
                    balance.open.lock().unwrap().clear();
                }
            });
        }
        let joined: Vec<_> = loaders.into_iter().map(thread::ScopedJoinHandle::join).collect();
        // The visitors end even if a loader has failed.
        stop.store(true, Ordering::Relaxed);
        joined.into_iter().for_each(|joined| joined.unwrap());
    });
    assert!(balance.open.lock().unwrap().is_empty());
    assert_eq!(provider.users(), [""; 0]);
    assert_eq!(used(), before);
    provider.unload().unwrap();
    assert!(host.modules().is_empty());
}

pub(crate) fn eight_threads_fight_for_one_name() {
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
                            assert!(
                                matches!(*failed.error, Error::Registry(RegistryError::Exists | RegistryError::Busy)),
                                "{failed}"
                            );
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
