//! Targets, patches and keys are loaded, unloaded and changed in any order. Every result equals that of a plain model,
//! and the patches' modules have their original bytes whenever no reference is written in them.

use std::time::Duration;

use modload::patch::Transition;
use modload::{Host, Image, Module};
use modload_tests::Chance;

use crate::scene::{WAYS, built, bytes, call, linked_bytes, loaded};

const TARGETS: [&str; 2] = ["left", "right"];

const TARGET: &str = r#"
#include <modload/module.h>
#include <modload/jump_label.h>
#include <modload/static_call.h>
static __attribute__((used)) int count = 40;
static __attribute__((used)) DEFINE_STATIC_KEY_FALSE(feature);
static void add_one(int *sum) { *sum += 1; }
static void add_two(int *sum) { *sum += 2; }
static int same(int n) { return n; }
static int twice(int n) { return 2 * n; }
DEFINE_STATIC_CALL(effect, add_one);
DEFINE_STATIC_CALL(value, same);
static __attribute__((noinline, used)) int answer(int n) { __asm__ volatile(""); return n; }
static __attribute__((noinline, used)) int other(int n) { __asm__ volatile(""); return n + 1; }
#define SHOWN __attribute__((visibility("default")))
SHOWN int ask(int n) { return answer(n); }
SHOWN int ask_other(int n) { return other(n); }
SHOWN int recount(int n) { return count = n; }
SHOWN int switch_feature(int on) { return on ? static_branch_enable(&feature) : static_branch_disable(&feature); }
SHOWN int set_effect(int n) { return static_call_update(effect, n == 0 ? add_one : n == 1 ? add_two : (void (*)(int *))0); }
SHOWN int set_value(int n)
{
	return static_call_update(value, n == 0 ? same : n == 1 ? twice : (int (*)(int))(void *)__static_call_return0);
}
MODULE_LICENSE("GPL");
"#;

/// The functions of a target.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Function {
    Answer,
    Other,
}

use Function::{Answer, Other};

/// The changes of a patch in both targets, and whether the patch replaces all others.
struct Patch {
    name: &'static str,
    changes: [&'static [Function]; 2],
    replaces: bool,
}

const PATCHES: [Patch; 4] = [
    Patch { name: "both", changes: [&[Answer], &[Answer]], replaces: false },
    Patch { name: "one", changes: [&[Answer, Other], &[]], replaces: false },
    Patch { name: "instead", changes: [&[Answer], &[Other]], replaces: true },
    Patch { name: "again", changes: [&[Other], &[Answer, Other]], replaces: true },
];

/// Returns the text of a patch. Each replacement refers to all symbols of its target.
fn text(number: usize) -> String {
    let Patch { changes, replaces, .. } = &PATCHES[number];
    let mut text = String::new();
    let mut objects = String::new();
    for (target, functions) in TARGETS.iter().zip(changes).filter(|(_, functions)| !functions.is_empty()) {
        let mark = |name: &str| format!("KLP_SYMBOL({target}, {name}, 0)");
        text += &format!(
            r#"
extern int {target}_count {count};
static int *volatile {target}_where = &{target}_count;
DECLARE_STATIC_KEY_FALSE({target}_feature) {feature};
void {target}_effect(int *);
int {target}_value(int);
DECLARE_STATIC_CALL({target}_effect_call, {target}_effect) {effect};
DECLARE_STATIC_CALL({target}_value_call, {target}_value) {value};
static int {target}_new_answer(int n)
{{
	int sum = 0;
	static_call_cond({target}_effect_call)(&sum);
	sum += 10 * static_call({target}_value_call)(n);
	if (static_branch_unlikely(&{target}_feature))
		sum += 1000;
	return sum + 10000 * (*{target}_where + {target}_count) + 10000000 * ({number} + 1);
}}
static int {target}_new_other(int n) {{ return static_call({target}_value_call)(n + 100 * ({number} + 1)); }}
__attribute__((visibility("default"))) int {target}_switch(int on)
{{
	return on ? static_branch_enable(&{target}_feature) : static_branch_disable(&{target}_feature);
}}
static struct klp_func {target}_funcs[] = {{"#,
            count = mark("count"),
            feature = mark("feature"),
            effect = mark("__SCT__effect"),
            value = mark("__SCT__value"),
        );
        for function in *functions {
            let name = if *function == Answer { "answer" } else { "other" };
            text += &format!(" {{ .old_name = \"{name}\", .new_func = (void *){target}_new_{name} }},");
        }
        text += " {} };\n";
        if !functions.contains(&Answer) {
            text += &format!("void *{target}_unused_answer = (void *){target}_new_answer;\n");
        }
        if !functions.contains(&Other) {
            text += &format!("void *{target}_unused_other = (void *){target}_new_other;\n");
        }
        objects += &format!("{{ .name = \"{target}\", .funcs = {target}_funcs }}, ");
    }
    format!(
        "{text}static struct klp_object objs[] = {{ {objects}{{}} }};\n\
         static struct klp_patch patch = {{ .mod = THIS_MODULE, .objs = objs, .replace = {replaces} }};\n\
         static int __init start(void) {{ return klp_enable_patch(&patch); }}\nmodule_init(start);\n\
         static void __exit stop(void) {{ }}\nmodule_exit(stop);\n"
    )
}

/// A loaded target, and the state that the model expects.
struct Target {
    module: Module,
    count: u64,
    feature: u64,
    effect: u64,
    value: u64,
}

/// A patch's module that is there.
struct Loaded {
    module: Module,
    /// The bytes of the module without written references, if such bytes have been seen.
    untouched: Option<Vec<(String, Vec<u8>)>>,
}

struct World {
    host: Host,
    files: Vec<Vec<Vec<u8>>>,
    target: Image<'static>,
    broken: Image<'static>,
    targets: [Option<Target>; 2],
    patches: [Option<Loaded>; 4],
    /// The patches that are enabled, the newest last.
    enabled: Vec<usize>,
    done: String,
}

const LIMIT: Duration = modload_tests::LONG;

impl World {
    fn new(transition: Transition) -> World {
        let ways = [WAYS[0], WAYS[1], WAYS[4]];
        World {
            host: Host::builder().process_symbols().transition(transition).build().unwrap(),
            files: ways.iter().map(|way| (0..4).map(|patch| linked_bytes(&text(patch), *way)).collect()).collect(),
            target: built("target", TARGET),
            broken: built("target", &TARGET.replace("count", "number")),
            targets: [None, None],
            patches: [const { None }; 4],
            enabled: Vec::new(),
            done: String::new(),
        }
    }

    fn expected(&self, at: usize, target: &Target, function: Function, n: u64) -> u64 {
        let changes = |patch: &&usize| PATCHES[**patch].changes[at].contains(&function);
        let value = |n: u64| [n, 2 * n, 0][usize::try_from(target.value).unwrap()];
        let effect = [1, 2, 0][usize::try_from(target.effect).unwrap()];
        match (self.enabled.iter().rev().find(changes).map(|patch| u64::try_from(patch + 1).unwrap()), function) {
            (None, Answer) => n,
            (None, Other) => n + 1,
            (Some(patch), Answer) => {
                effect + 10 * value(n) + 1000 * target.feature + 20_000 * target.count + 10_000_000 * patch
            }
            (Some(patch), Other) => value(n + 100 * patch),
        }
    }

    /// Whether something of a patch is written.
    fn is_written(&self, patch: usize) -> bool {
        let is_there = |at: usize| self.targets[at].is_some() && !PATCHES[patch].changes[at].is_empty();
        self.enabled.contains(&patch) && (0..2).any(is_there)
    }

    fn check(&mut self) {
        let mut patience = modload_tests::Patience::new();
        // In the checkpoint mode, this thread and the worker thread complete the transition.
        while self.host.patches().unwrap().iter().any(|patch| patch.transition.is_some() || !patch.enabled) {
            self.host.checkpoint();
            patience.turn(|| self.done.to_string());
        }
        let names: Vec<_> = self.host.patches().unwrap().into_iter().map(|patch| patch.name).collect();
        let expected: Vec<_> = self.enabled.iter().map(|patch| PATCHES[*patch].name).collect();
        assert_eq!(names, expected, "{}", self.done);
        for (at, target) in self.targets.iter().enumerate() {
            let Some(target) = target else { continue };
            for (function, name) in [(Answer, "ask"), (Other, "ask_other")] {
                let (found, expected) = (call(&target.module, name, 3), self.expected(at, target, function, 3));
                assert_eq!(found, expected, "{}{} {function:?}", self.done, TARGETS[at]);
            }
        }
        let written: Vec<_> = (0..PATCHES.len()).map(|patch| self.is_written(patch)).collect();
        for ((patch, is_written), Patch { name, .. }) in self.patches.iter_mut().zip(written).zip(&PATCHES) {
            let Some(patch) = patch else { continue };
            let now = bytes(&patch.module, &["."]);
            match (&patch.untouched, is_written) {
                (Some(untouched), _) => {
                    assert!((now != *untouched) == is_written, "{}{name}", self.done);
                }
                (None, false) => patch.untouched = Some(now),
                (None, true) => {}
            }
        }
    }

    fn toggle_target(&mut self, at: usize) {
        if let Some(target) = self.targets[at].take() {
            drop(target);
            self.host.unload_within(TARGETS[at], LIMIT).unwrap();
            return;
        }
        let module = self.host.load(&self.target.clone().named(TARGETS[at])).unwrap();
        self.targets[at] = Some(Target { module, count: 40, feature: 0, effect: 0, value: 0 });
    }

    /// A target without the symbols that patches need is refused if there are such patches, and nothing has changed.
    fn refuse_target(&mut self, at: usize) {
        if self.targets[at].is_some() {
            return;
        }
        let all = |world: &World| {
            let there = world.patches.iter().flatten();
            there.map(|patch| bytes(&patch.module, &["."])).collect::<Vec<_>>()
        };
        let before = all(self);
        let wants = self.enabled.iter().any(|patch| !PATCHES[*patch].changes[at].is_empty());
        let module = self.host.load(&self.broken.clone().named(TARGETS[at]));
        assert_eq!(module.is_err(), wants, "{}", self.done);
        assert!(all(self) == before, "{}", self.done);
        if module.is_ok() {
            drop(module);
            self.host.unload_within(TARGETS[at], LIMIT).unwrap();
        }
    }

    fn toggle_patch(&mut self, number: usize, way: usize) {
        let name = PATCHES[number].name;
        if self.enabled.contains(&number) {
            self.enabled.retain(|patch| *patch != number);
            return self.host.disable_patch(name).unwrap();
        }
        if self.patches[number].take().is_some() {
            self.host.unload_within(name, LIMIT).unwrap();
        }
        let module = self.host.load(&loaded(name, self.files[way][number].clone())).unwrap();
        self.patches[number] = Some(Loaded { module, untouched: None });
        if PATCHES[number].replaces {
            self.enabled.clear();
        }
        self.enabled.push(number);
    }

    fn switch(&mut self, at: usize, chance: &mut Chance) {
        let (what, to) = (chance.below(4), u64::try_from(chance.below(3)).unwrap());
        let by = (0..4).find(|patch| self.enabled.contains(patch) && !PATCHES[*patch].changes[at].is_empty());
        let Some(target) = &mut self.targets[at] else { return };
        match (what, by.and_then(|patch| self.patches[patch].as_ref())) {
            (0, Some(patch)) if to != 0 => {
                target.feature = to % 2;
                call(&patch.module, &format!("{}_switch", TARGETS[at]), target.feature);
            }
            (0, _) => {
                target.feature = to % 2;
                call(&target.module, "switch_feature", target.feature);
            }
            (1, _) => {
                target.effect = to;
                call(&target.module, "set_effect", to);
            }
            (2, _) => {
                target.value = to;
                call(&target.module, "set_value", to);
            }
            _ => {
                target.count = 40 + to;
                call(&target.module, "recount", target.count);
            }
        }
    }

    fn step(&mut self, chance: &mut Chance) {
        let (what, at) = (chance.below(16), chance.below(2));
        let (patch, way) = (chance.below(4), chance.below(3));
        self.done += &format!("{what} {at} {patch} {way}\n");
        match what {
            0..4 => self.toggle_target(at),
            4 => self.refuse_target(at),
            5..9 => self.toggle_patch(patch, way),
            _ => self.switch(at, chance),
        }
        self.check();
    }
}

fn follows(transition: Transition, seed: u64) {
    const STEPS: usize = 1500;
    let mut world = World::new(transition);
    let mut chance = Chance::new(seed);
    let mut written = 0;
    for _ in 0..STEPS {
        world.step(&mut chance);
        written += (0..4).filter(|patch| world.is_written(*patch)).count();
        // The list of actions stays short enough for a reader.
        if world.enabled.is_empty() && world.targets.iter().all(Option::is_none) {
            world.done.clear();
        }
    }
    assert!(written > STEPS / 2, "{written}");
}

pub(crate) fn all_comes_and_goes_in_any_order() {
    follows(Transition::Anywhere, 0x5eed_0001);
}

pub(crate) fn all_comes_and_goes_at_checkpoints() {
    follows(Transition::CheckpointsOnly, 0x5eed_0002);
}
