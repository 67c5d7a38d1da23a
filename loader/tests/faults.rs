//! Each stage is made to fail, and nothing is left; then ten thousand loads, half of which fail somewhere.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};

use modload_loader::{
    Coming, Error, Faults, Image, Injected, Loader, Module, Order, Refusal, Stage, State, Subscriber, sentence,
};
use modload_tests::{Chance, case, descriptors, image, image_from_text, loader, mappings};
use modload_text::Arena;

fn main() -> ExitCode {
    modload_tests::run(&[
        case!(each_stage_that_fails_leaves_nothing),
        case!(natural_failures_leave_nothing),
        case!(who_is_told_going_finds_the_memory_in_place),
        case!(ten_thousand_loads_leave_nothing).within_seconds(240),
    ])
}

struct FailAt(Stage);

impl Faults for FailAt {
    fn before(&self, stage: Stage) -> Result<(), Injected> {
        if stage == self.0 { Err(Injected) } else { Ok(()) }
    }
}

/// The number of comings and goings of a module, counted by one subscriber.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
struct Count {
    coming: u32,
    live: u32,
    going: u32,
}

/// Counts the modules that it accepts. Refuses a module by name, and counts nothing before the refusal.
#[derive(Clone, Default)]
struct Counter {
    counts: Arc<Mutex<BTreeMap<String, Count>>>,
    refuses: Option<&'static str>,
}

impl Counter {
    fn count(&self, module: &str, count: impl FnOnce(&mut Count)) {
        count(self.counts.lock().unwrap().entry(module.into()).or_default());
    }

    fn of(&self, module: &str) -> Count {
        self.counts.lock().unwrap().get(module).copied().unwrap_or_default()
    }

    /// Every GOING has a COMING. Every COMING of a module that does not exist any more has a GOING.
    fn balanced(&self, loader: &Loader) {
        let there: Vec<String> = loader.modules().into_iter().map(|(name, _)| name).collect();
        for (module, count) in &*self.counts.lock().unwrap() {
            let open = u32::from(there.contains(module));
            assert_eq!(count.coming, count.going + open, "{module}: {count:?}");
            assert!(count.live <= count.coming, "{module}: {count:?}");
        }
    }
}

impl Subscriber for Counter {
    fn coming(&self, coming: &mut Coming<'_>) -> Result<(), Refusal> {
        let name = coming.module().name();
        if self.refuses == Some(name) {
            return Err("counted out".into());
        }
        self.count(name, |count| count.coming += 1);
        Ok(())
    }

    fn live(&self, module: &Module) {
        self.count(module.name(), |count| count.live += 1);
    }

    fn going(&self, module: &Module) {
        self.count(module.name(), |count| count.going += 1);
    }
}

fn names(loader: &Loader) -> Vec<(String, State)> {
    loader.modules()
}

/// Loads the modules that are live during the test: `guest` uses `greet`, and `recorder` has exports.
fn company(loader: &Loader) {
    for fixture in ["greet", "guest", "recorder"] {
        drop(loader.load_module(&image(fixture)).unwrap());
    }
}

/// Modules that go through every stage in a way of their own: parameters, ro_after_init, init sections, constructors
/// and a symbol of another module, indirect functions, exports.
fn victims() -> Vec<Image<'static>> {
    let text = "#include <modload/module.h>\nMODULE_LICENSE(\"GPL\");\nint exported(void);\n\
                int exported(void) { return 3; }\nEXPORT_SYMBOL(exported);\n";
    vec![
        image("ordtarget"),
        image("ro_after_init").param("limit=40"),
        image("init_sections"),
        image("ctors_c"),
        image("ifunc"),
        image_from_text("exporter", text),
    ]
}

fn name_of(loader: &Loader, victim: &Image<'_>) -> String {
    let module = loader.load_module(victim).unwrap();
    let name = module.name().to_owned();
    module.unload().unwrap();
    name
}

fn each_stage_that_fails_leaves_nothing() {
    let loader = loader();
    company(&loader);
    let (first, last) = (Counter::default(), Counter::default());
    let _first = loader.subscribe("first", Order::mirrored(i32::MAX), Arc::new(first.clone()));
    let _last = loader.subscribe("last", Order::mirrored(i32::MIN), Arc::new(last.clone()));
    let arena = Arena::get().unwrap();
    for victim in victims() {
        let name = name_of(&loader, &victim);
        let (usage, there) = (arena.usage(), names(&loader));
        for stage in Stage::ALL {
            if stage == Stage::DropInit {
                // The module is LIVE at this stage and can be neither refused nor undone: dropping its init sections
                // cannot fail, and the loader does not ask.
                loader.load_module_with(&victim, &FailAt(stage)).unwrap().unload().unwrap();
                continue;
            }
            let recording = loader.record();
            let failed = loader.load_module_with(&victim, &FailAt(stage)).unwrap_err();
            assert_eq!(failed.stage, stage);
            assert!(matches!(*failed.error, Error::Injected), "{failed}");
            assert_eq!(names(&loader), there, "{name} at {stage}: the registry");
            assert_eq!(arena.usage(), usage, "{name} at {stage}: the arena");
            first.balanced(&loader);
            last.balanced(&loader);
            assert!(loader.module(&name).is_none());
            let timeline = recording.finish();
            let freed = timeline.events.last().map(|event| event.kind.to_string());
            let reserved = stage > Stage::Reserve;
            assert_eq!(freed.as_deref() == Some("freed"), reserved, "{name} at {stage}:\n{timeline}");
            // The name is free again, and so are the exports.
            loader.load_module(&victim).unwrap().unload().unwrap();
            assert_eq!((names(&loader), arena.usage()), (there.clone(), usage.clone()), "{name} after {stage}");
        }
        assert_eq!(first.of(&name), last.of(&name));
        assert_ne!(first.of(&name), Count::default());
    }
    for fixture in ["recorder", "guest", "greet"] {
        loader.unload_module(fixture).unwrap();
    }
    assert!(names(&loader).is_empty());
}

fn natural_failures_leave_nothing() {
    let loader = loader();
    company(&loader);
    let counter = Counter::default();
    let _counter = loader.subscribe("counter", Order::mirrored(1), Arc::new(counter.clone()));
    let refuser = Counter { refuses: Some("init_positive"), ..Counter::default() };
    let _refuser = loader.subscribe("refuser", Order::mirrored(0), Arc::new(refuser));
    let duplicate = "#include <modload/module.h>\nMODULE_LICENSE(\"GPL\");\nint before_it(void);\nint greet_count(void);\n\
                     int before_it(void) { return 1; }\nEXPORT_SYMBOL(before_it);\n\
                     int greet_count(void) { return 2; }\nEXPORT_SYMBOL(greet_count);\n";
    let cases = [
        (image("missing"), Stage::Resolve, "no_such_table"),
        (image("gpl_user"), Stage::Resolve, "gpl_answer"),
        (image("ordtarget").param("fail=abc"), Stage::Params, "abc"),
        (image("ordtarget").param("fail=-19"), Stage::Init, "ENODEV"),
        (image("init_positive"), Stage::Coming, "refused by refuser: counted out"),
        (image_from_text("duplicate", duplicate), Stage::Form, "greet_count"),
        (image("greet"), Stage::Reserve, "already loaded"),
        (image("exec_stack"), Stage::Admit, "executable stack"),
        (image_from_text("huge", "char huge[1u << 29];\n"), Stage::Allocate, "no room for 536870912 bytes of data"),
        (image_from_text("too_huge", "char huge[1u << 31];\n"), Stage::Layout, "the limit is 1073741824"),
    ];
    // Two of the victims need these modules.
    drop(loader.load_module(&image("gpl_only")).unwrap());
    let arena = Arena::get().unwrap();
    for round in 0..2 {
        for (image, stage, says) in &cases {
            let (usage, there, maps) = (arena.usage(), names(&loader), mappings().len());
            let failed = loader.load_module(image).unwrap_err();
            assert!(sentence(&failed).contains(says), "{failed}");
            assert!(failed.stage == *stage || *stage == Stage::Admit, "{failed}");
            assert_eq!((names(&loader), arena.usage()), (there, usage), "{failed}");
            // In the first round staging buffers are still to be made.
            assert!(round == 0 || mappings().len() == maps, "{failed}");
            counter.balanced(&loader);
        }
    }
    // The symbols that the failed module exported before its duplicate do not exist.
    let user = "int before_it(void); int use_it(void); int use_it(void) { return before_it(); }\n";
    let failed = loader.load_module(&image_from_text("user", user)).unwrap_err();
    assert!(sentence(&failed).contains("before_it"), "{failed}");
    assert_eq!(counter.of("init_positive").live, 0);
}

/// Requires that the module's memory is still allocated when the subscriber gets GOING.
struct Looker {
    empty: u64,
}

impl Looker {
    fn used() -> u64 {
        Arena::get().unwrap().usage().iter().map(|stripe| stripe.used).sum()
    }
}

impl Subscriber for Looker {
    fn going(&self, module: &Module) {
        assert!(Looker::used() > self.empty, "{} is told GOING when its memory is gone", module.name());
    }
}

fn who_is_told_going_finds_the_memory_in_place() {
    let loader = loader();
    let stages = [Stage::Publish, Stage::Params, Stage::Constructors, Stage::Init, Stage::Protect, Stage::DropInit];
    for stage in stages {
        let recording = loader.record();
        let _looker = loader.subscribe("looker", Order::mirrored(0), Arc::new(Looker { empty: Looker::used() }));
        match loader.load_module_with(&image("init_sections"), &FailAt(stage)) {
            Ok(module) => module.unload().unwrap(),
            Err(failed) => assert_eq!(failed.stage, stage),
        }
        let timeline = recording.finish().to_string();
        assert!(timeline.contains("GOING -> looker"), "{timeline}");
        assert!(!timeline.contains("panicked"), "{stage}: {timeline}");
    }
}

fn ten_thousand_loads_leave_nothing() {
    const LOADS: usize = 10_000;
    let loader = loader();
    company(&loader);
    let counter = Counter::default();
    let _counter = loader.subscribe("counter", Order::mirrored(0), Arc::new(counter.clone()));
    let victims = victims();
    for victim in &victims {
        name_of(&loader, victim);
    }
    let mut chance = Chance::new(20_161_128);
    let arena = Arena::get().unwrap();
    let start = (names(&loader), arena.usage(), mappings().len(), descriptors());
    let (mut failed, mut live) = (0, Vec::new());
    for load in 0..LOADS {
        // As many modules live at a time as there are victims; the victims take turns.
        let victim = &victims[load % victims.len()];
        if load % victims.len() == 0 {
            while let Some(module) = live.pop() {
                unload(module);
            }
        }
        // Half of the loads fail, at a random stage; the last stage cannot fail.
        if load % 2 == 0 {
            let stage = Stage::ALL[chance.below(Stage::ALL.len() - 1)];
            let error = loader.load_module_with(victim, &FailAt(stage)).unwrap_err();
            assert_eq!(error.stage, stage);
            failed += 1;
        } else {
            let module = loader.load_module(victim).unwrap();
            let at = chance.below(live.len() + 1);
            live.insert(at, module);
        }
    }
    while let Some(module) = live.pop() {
        unload(module);
    }
    assert_eq!(failed, LOADS / 2);
    counter.balanced(&loader);
    assert_eq!((names(&loader), arena.usage(), mappings().len(), descriptors()), start);
    // The modules that were live during the test are unchanged.
    for fixture in ["recorder", "guest", "greet"] {
        loader.unload_module(fixture).unwrap();
    }
}

fn unload(module: modload_loader::Reference) {
    module.unload().unwrap();
}
