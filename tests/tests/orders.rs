//! The order of events on every path: as in Linux with `Order::same`, mirrored, and with the built-in ranks; and the
//! bug of 2016, when one chain with fixed priorities had to serve ftrace and live patching.

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};

use modload::timeline::{EventKind, Outcome, Timeline};
use modload::{BUILTIN, Coming, Host, Image, Membership, ModuleInfo, Order, Refusal, Subscriber};
use modload_notifier::Chains;
use modload_tests::{Log, Watcher, case, image};

fn main() -> ExitCode {
    modload_tests::run(&[
        case!(same_orders_are_those_of_linux_6_1),
        case!(mirrored_orders_mirror),
        case!(a_refusal_in_the_middle_is_undone_in_going_order),
        case!(an_init_that_fails_is_undone_like_an_unload),
        case!(same_and_mirrored_orders_side_by_side),
        case!(builtins_stand_around_every_priority),
        case!(builtins_hear_of_a_refusal_last),
        case!(bug_of_2016_one_chain_cannot_serve_ftrace_and_klp),
        case!(two_chains_serve_ftrace_and_klp_with_real_modules),
    ])
}

/// The priorities of Linux's recording, in the order of joining.
const PRIORITIES: [i32; 6] = [i32::MIN, 0, 10, i32::MAX, i32::MIN + 1, -10];

/// The lines of one section of the recording.
fn recorded(section: &str) -> Vec<&'static str> {
    let text = include_str!("../reference/linux-6.1-order.txt");
    let heading = format!("## {section}");
    let lines: Vec<_> =
        text.lines().skip_while(|line| *line != heading).skip(1).take_while(|line| !line.starts_with("## ")).collect();
    let lines: Vec<_> = lines.into_iter().filter(|line| !line.is_empty()).collect();
    assert!(!lines.is_empty(), "{section} is recorded");
    lines
}

/// Returns our timeline in the words of the recording, if the recording has such words.
fn in_linux_words(timeline: &Timeline) -> Vec<String> {
    let mut lines = Vec::new();
    for event in &timeline.events {
        match &event.kind {
            // Linux switches keys by a notifier of its own, which is not in the recording.
            EventKind::Notify { state, priority, result, builtin: false, .. } => {
                lines.push(format!("{state} prio={priority}"));
                if *result != Outcome::Ok {
                    lines.push(format!("refuse prio={priority}"));
                }
            }
            EventKind::Init { result } => lines.push(format!("init fail={result}")),
            EventKind::Exit => lines.push("exit".into()),
            EventKind::Warning { message } => lines.push(format!("{}: {}", event.module, message.replace('"', "'"))),
            EventKind::Failed { error, .. } if error.contains("parameter \"fail\"") && error.contains("abc") => {
                lines.push(format!("{}: `abc' invalid for parameter `fail'", event.module));
            }
            _ => {}
        }
    }
    lines
}

/// The module and the refusing subscriber of one section.
struct Path {
    section: &'static str,
    param: Option<&'static str>,
    refuser: Option<i32>,
}

fn same_orders_are_those_of_linux_6_1() {
    let path = |section, param, refuser| Path { section, param, refuser };
    let paths = [
        path("load-ok", None, None),
        path("unload", None, None),
        path("init-fails", Some("fail=-19"), None),
        path("notifier-refuses", None, Some(0)),
        path("notifier-refuses-first", None, Some(i32::MAX)),
        path("bad-param", Some("fail=abc"), None),
        path("unknown-param", Some("nope=1"), None),
    ];
    for Path { section, param, refuser } in paths {
        let host = Host::builder().build().unwrap();
        let log = Log::default();
        let watch = |priority: i32| {
            let watcher = Watcher::new(format!("prio={priority}"), &log);
            let watcher = if refuser == Some(priority) { watcher.refusing("ordtarget") } else { watcher };
            host.subscribe(&format!("prio {priority}"), Order::same(priority), watcher)
        };
        let _members = PRIORITIES.map(watch);
        let image = param.into_iter().fold(image("ordtarget"), Image::param);
        let mut recording = host.record();
        let loaded = host.load(&image);
        let mut lines = match loaded {
            Ok(module) => {
                if section == "unload" {
                    drop(recording.finish());
                    drop(log.take());
                    recording = host.record();
                }
                if section != "load-ok" {
                    module.unload().unwrap();
                }
                in_linux_words(&recording.finish())
            }
            Err(failed) => {
                let errno = format!("insmod: errno {}", failed.error.errno());
                [in_linux_words(&recording.finish()), vec![errno]].concat()
            }
        };
        assert_eq!(lines, recorded(section), "{section}");
        // The notifications of the subscribers are exactly those of the timeline.
        lines.retain(|line| ["COMING", "LIVE", "GOING"].iter().any(|state| line.starts_with(state)));
        let heard: Vec<_> = log.take().iter().map(|line| line.replace(" ordtarget", "")).collect();
        assert_eq!(heard, lines, "{section}");
    }
}

/// Returns whether this is one of the subscribers that every host has, and that do not log.
fn is_builtin(subscriber: &str) -> bool {
    BUILTIN.iter().any(|(name, _)| *name == subscriber)
}

/// Loads `ordtarget` with these subscribers, unloads the module if the load succeeded, and returns the order of events.
fn order_of(subscribers: &[(&str, Order)], refuser: &str, params: &[&str]) -> String {
    let host = Host::builder().build().unwrap();
    let log = Log::default();
    let join = |&(name, order): &(&str, Order)| {
        let watcher = Watcher::new(name, &log);
        host.subscribe(name, order, if name == refuser { watcher.refusing("ordtarget") } else { watcher })
    };
    let members: Vec<Membership> = subscribers.iter().map(join).collect();
    let recording = host.record();
    match host.load(&params.iter().copied().fold(image("ordtarget"), Image::param)) {
        Ok(module) => module.unload().unwrap(),
        Err(_) => assert!(!refuser.is_empty() || !params.is_empty()),
    }
    let timeline = recording.finish();
    let notified = timeline.events.iter().filter_map(|event| match &event.kind {
        EventKind::Notify { state, subscriber, .. } if !is_builtin(subscriber) => {
            Some(format!("{state} {subscriber} ordtarget"))
        }
        _ => None,
    });
    assert_eq!(log.take(), notified.collect::<Vec<_>>(), "the timeline tells what was called");
    assert!(host.modules().is_empty());
    drop(members);
    timeline.order().to_string()
}

const MIRRORED: [(&str, Order); 8] = [
    ("min", Order::mirrored(i32::MIN)),
    ("zero a", Order::mirrored(0)),
    ("ten", Order::mirrored(10)),
    ("zero b", Order::mirrored(0)),
    ("max", Order::mirrored(i32::MAX)),
    ("min + 1", Order::mirrored(i32::MIN + 1)),
    ("zero c", Order::mirrored(0)),
    ("minus ten", Order::mirrored(-10)),
];

fn mirrored_orders_mirror() {
    insta::assert_snapshot!("mirrored_load_and_unload", order_of(&MIRRORED, "", &[]));
}

fn a_refusal_in_the_middle_is_undone_in_going_order() {
    insta::assert_snapshot!("mirrored_refusal_in_the_middle", order_of(&MIRRORED, "zero b", &[]));
}

fn an_init_that_fails_is_undone_like_an_unload() {
    insta::assert_snapshot!("mirrored_init_fails", order_of(&MIRRORED, "", &["fail=-19"]));
}

fn same_and_mirrored_orders_side_by_side() {
    let subscribers = [
        ("same a", Order::same(0)),
        ("mirrored a", Order::mirrored(0)),
        ("same b", Order::same(0)),
        ("mirrored b", Order::mirrored(0)),
        ("same -1", Order::same(-1)),
        ("mirrored c", Order::default()),
    ];
    insta::assert_snapshot!("same_and_mirrored", order_of(&subscribers, "", &[]));
}

/// The built-in subscribers, joining last, around ordinary ones at both ends of the priorities.
fn with_builtins() -> Vec<(&'static str, Order)> {
    let ordinary = [
        ("max", Order::mirrored(i32::MAX)),
        ("min", Order::mirrored(i32::MIN)),
        ("same max", Order::same(i32::MAX)),
        ("same min", Order::same(i32::MIN)),
    ];
    let [(_, ftrace), (_, livepatch), _] = BUILTIN;
    ordinary.into_iter().chain([("beside livepatch", livepatch), ("beside ftrace", ftrace)]).collect()
}

fn builtins_stand_around_every_priority() {
    insta::assert_snapshot!("builtins_load_and_unload", order_of(&with_builtins(), "", &[]));
}

fn builtins_hear_of_a_refusal_last() {
    insta::assert_snapshot!("builtins_refusal", order_of(&with_builtins(), "min", &[]));
}

/// Stand-ins for ftrace and live patching, as they were in 2016. ftrace registers the call sites of a module that is
/// loaded. klp hooks the sites of a target that is loaded, and of targets that are loaded when a patch is enabled.
#[derive(Default)]
struct World {
    sites: BTreeSet<String>,
    loaded: BTreeSet<String>,
    patch_enabled: bool,
    said: Vec<String>,
}

impl World {
    fn hook_target(&mut self) {
        let how =
            if self.sites.contains("target") { "new function called" } else { "no call sites: OLD FUNCTION RUNS" };
        self.said.push(format!("  klp: patches target: {how}"));
    }

    fn ftrace_coming(&mut self, module: &str) {
        self.said.push(format!("  ftrace: registers the sites of {module}"));
        self.sites.insert(module.to_owned());
    }

    fn ftrace_going(&mut self, module: &str) {
        self.said.push(format!("  ftrace: forgets the sites of {module}"));
        self.sites.remove(module);
    }

    fn klp_coming(&mut self, module: &str) {
        if module == "target" && self.patch_enabled {
            self.hook_target();
        }
        self.loaded.insert(module.to_owned());
    }

    fn klp_going(&mut self, module: &str) {
        self.loaded.remove(module);
        if module == "target" && self.patch_enabled {
            let how = if self.sites.contains("target") { "hooks taken out" } else { "HOOKS LEFT IN FREED SITES" };
            self.said.push(format!("  klp: unpatches target: {how}"));
        }
    }

    /// The effect of the patch's init.
    fn klp_enable_patch(&mut self) {
        self.patch_enabled = true;
        if self.loaded.contains("target") {
            self.hook_target();
        }
    }
}

#[derive(Clone, Copy)]
enum Part {
    Ftrace,
    Klp,
}

/// Loads target and patch in this order, and unloads the target, with the chains alone.
fn scene(ftrace: Order, klp: Order, modules: [&str; 2]) -> String {
    let mut chains = Chains::default();
    // As Linux's initcalls had it: the priorities count, not the order of joining.
    chains.join(klp, Part::Klp);
    chains.join(ftrace, Part::Ftrace);
    let mut world = World::default();
    for module in modules {
        world.said.push(format!("{module} comes"));
        for member in chains.coming() {
            match member.subscriber {
                Part::Ftrace => world.ftrace_coming(module),
                Part::Klp => world.klp_coming(module),
            }
        }
        if module == "patch" {
            world.klp_enable_patch();
        }
    }
    world.said.push("target goes".into());
    for member in chains.going(|_| true) {
        match member.subscriber {
            Part::Ftrace => world.ftrace_going("target"),
            Part::Klp => world.klp_going("target"),
        }
    }
    world.said.join("\n")
}

const FIRST: [&str; 2] = ["target", "patch"];
const LAST: [&str; 2] = ["patch", "target"];

fn bug_of_2016_one_chain_cannot_serve_ftrace_and_klp() {
    let one_chain = |modules| scene(Order::same(i32::MIN), Order::same(i32::MIN + 1), modules);
    let two_chains = |modules| scene(BUILTIN[0].1, BUILTIN[1].1, modules);
    let right = |story: &str| !story.contains("OLD FUNCTION RUNS") && !story.contains("HOOKS LEFT");
    assert!(right(&one_chain(FIRST)), "one chain serves a target that is there first");
    assert!(!right(&one_chain(LAST)), "one chain fails a target that comes last: the bug itself");
    assert!(right(&two_chains(FIRST)));
    assert!(right(&two_chains(LAST)));
    // Turning the two priorities round only moves the bug to the unload.
    let turned = scene(Order::same(i32::MIN + 1), Order::same(i32::MIN), LAST);
    assert!(turned.contains("HOOKS LEFT") && !turned.contains("OLD FUNCTION"), "{turned}");
    let stories = format!(
        "# one chain, target first\n{}\n\n# one chain, target last\n{}\n\n# two chains, target first\n{}\n\n\
         # two chains, target last\n{}\n\n# one chain with the priorities turned round, target last\n{turned}\n",
        one_chain(FIRST),
        one_chain(LAST),
        two_chains(FIRST),
        two_chains(LAST),
    );
    insta::assert_snapshot!("bug_of_2016", stories);
}

/// The stand-ins as subscribers of a host.
struct StandIn {
    part: Part,
    world: Arc<Mutex<World>>,
}

/// The scene's name of a real module.
fn role(module: &ModuleInfo) -> &'static str {
    if module.name() == "ordtarget" { "target" } else { "patch" }
}

impl Subscriber for StandIn {
    fn coming(&self, coming: &mut Coming<'_>) -> Result<(), Refusal> {
        let mut world = self.world.lock().unwrap();
        match self.part {
            Part::Ftrace => world.ftrace_coming(role(coming.module())),
            Part::Klp => world.klp_coming(role(coming.module())),
        }
        Ok(())
    }

    fn going(&self, module: &ModuleInfo) {
        let mut world = self.world.lock().unwrap();
        match self.part {
            Part::Ftrace => world.ftrace_going(role(module)),
            Part::Klp => world.klp_going(role(module)),
        }
    }
}

fn two_chains_serve_ftrace_and_klp_with_real_modules() {
    for modules in [FIRST, LAST] {
        let host = Host::builder().build().unwrap();
        let world = Arc::new(Mutex::new(World::default()));
        let [(ftrace, first), (klp, second), _] = BUILTIN;
        let _klp = host.subscribe(klp, second, StandIn { part: Part::Klp, world: world.clone() });
        let _ftrace = host.subscribe(ftrace, first, StandIn { part: Part::Ftrace, world: world.clone() });
        for module in modules {
            world.lock().unwrap().said.push(format!("{module} comes"));
            let fixture = if module == "target" { "ordtarget" } else { "init_positive" };
            host.load(&image(fixture)).unwrap();
            if module == "patch" {
                world.lock().unwrap().klp_enable_patch();
            }
        }
        world.lock().unwrap().said.push("target goes".into());
        host.unload("ordtarget").unwrap();
        assert_eq!(world.lock().unwrap().said.join("\n"), scene(BUILTIN[0].1, BUILTIN[1].1, modules));
    }
}
