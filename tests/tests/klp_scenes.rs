//! The scenes of Linux 6.1's own live patching selftests, and more, with modules of ours: a snapshot of the log for
//! each. `cargo xtask oracle-klp` runs the same scenes on Linux itself.

use std::arch::naked_asm;
use std::collections::BTreeSet;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::fs;
use std::process::ExitCode;
use std::sync::atomic::AtomicI32;
use std::thread;
use std::time::Duration;

use modload::patch::{PatchStatus, link as klp_link};
use modload::text::Addr;
use modload::timeline::{EventKind, Recording};
use modload::trace::{Call, Filter, HostFunction, Redirect, Redirecting, TraceError, Tracing};
use modload::{Host, Image};
use modload_fixtures::{Compiler, Language, object_from_text};
use modload_tests::{Case, LONG, Patience, case, klp_folder, klp_scenes};

/// The scenes by the names that their titles make, in the order of `scenes.txt`.
const NAMES: [&str; 24] = [
    "test_livepatch_basic_function_patching",
    "test_livepatch_multiple_livepatches",
    "test_livepatch_atomic_replace_livepatch",
    "test_callbacks_target_module_before_livepatch",
    "test_callbacks_module_coming_notifier",
    "test_callbacks_module_going_notifier",
    "test_callbacks_module_coming_and_module_going_notifiers",
    "test_callbacks_target_module_not_present",
    "test_callbacks_pre_patch_callback_enodev",
    "test_callbacks_module_coming_pre_patch_callback_enodev",
    "test_callbacks_multiple_target_modules",
    "test_callbacks_busy_target_module",
    "test_callbacks_multiple_livepatches",
    "test_callbacks_atomic_replace",
    "test_shadow_vars_basic_shadow_variable_api",
    "test_state_system_state_modification",
    "test_state_taking_over_system_state_modification",
    "test_state_compatible_cumulative_livepatches",
    "test_state_incompatible_cumulative_livepatches",
    "test_ftrace_livepatch_interaction_with_ftrace_enabled_sysctl",
    "test_sysfs_sysfs_test",
    "test_sysfs_sysfs_test_object_patched",
    "klp_link_target_module_before_livepatch",
    "klp_link_livepatch_before_target_module",
];

fn main() -> ExitCode {
    let mut cases: Vec<Case> = NAMES.iter().zip(RUNS).map(|(name, run)| Case::new(name, run)).collect();
    cases.push(case!(each_scene_of_the_file_is_run));
    modload_tests::run(&cases)
}

/// A case has no arguments: one function for each number.
const RUNS: [fn(); 24] = [
    run::<0>, run::<1>, run::<2>, run::<3>, run::<4>, run::<5>, run::<6>, run::<7>, run::<8>, run::<9>, run::<10>,
    run::<11>, run::<12>, run::<13>, run::<14>, run::<15>, run::<16>, run::<17>, run::<18>, run::<19>, run::<20>,
    run::<21>, run::<22>, run::<23>,
];

fn each_scene_of_the_file_is_run() {
    let titled: Vec<String> = klp_scenes().iter().map(|scene| scene.name()).collect();
    assert_eq!(titled, NAMES);
    let snapshots: BTreeSet<_> = klp_scenes().iter().map(|scene| scene.snapshot()).collect();
    let folder = fs::read_dir(klp_folder().join("../tests/snapshots")).unwrap();
    let there = folder.map(|entry| entry.unwrap().path().canonicalize().unwrap());
    let there: BTreeSet<_> =
        there.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("klp_scenes__")).collect();
    assert_eq!(there, snapshots, "snapshots of scenes that are gone, or that were never accepted");
}

fn run<const NUMBER: usize>() {
    let scene = &klp_scenes()[NUMBER];
    let mut stage = Stage::new();
    for step in &scene.steps {
        let words: Vec<&str> = step.iter().map(String::as_str).collect();
        stage.log.push(format!("% {}", words.join(" ")));
        stage.step(&words);
        stage.note_lines();
    }
    assert!(
        stage.host.modules().is_empty() && stage.host.patches().unwrap().is_empty(),
        "a scene leaves nothing behind"
    );
    let log = stage.log.join("\n");
    insta::assert_snapshot!(scene.name(), log);
}

/// The host's variable for Linux's levels of the console.
static CONSOLE_PRINTK: [AtomicI32; 4] = [AtomicI32::new(4), AtomicI32::new(4), AtomicI32::new(1), AtomicI32::new(7)];

/// The result of a read: `struct seq_file` of the scenes.
type SeqFile = String;

unsafe extern "C" fn seq_puts(file: *mut SeqFile, text: *const c_char) {
    // SAFETY: a string of a module, passed to its function together with the file.
    let text = unsafe { CStr::from_ptr(text) }.to_str().unwrap();
    // SAFETY: `Stage::read` has lent the file to the function for the time of its call.
    unsafe { (*file).push_str(text) };
}

/// `int cmdline_proc_show(struct seq_file *, void *)`, a function of the host with room for a jump. Its name is a
/// symbol of the program that a patch may refer to.
#[unsafe(no_mangle)]
#[unsafe(naked)]
extern "C" fn cmdline_proc_show(file: *mut SeqFile, unused: *mut c_void) -> c_int {
    naked_asm!(
        ".cfi_startproc",
        ".byte 0x0f, 0x1f, 0x44, 0x00, 0x00", // nopl 0x0(%rax,%rax,1)
        "jmp {}",
        ".cfi_endproc",
        sym show_plain
    )
}

/// The same, another one.
#[unsafe(no_mangle)]
#[unsafe(naked)]
extern "C" fn meminfo_proc_show(file: *mut SeqFile, unused: *mut c_void) -> c_int {
    naked_asm!(
        ".cfi_startproc",
        ".byte 0x0f, 0x1f, 0x44, 0x00, 0x00", // nopl 0x0(%rax,%rax,1)
        "jmp {}",
        ".cfi_endproc",
        sym show_plain
    )
}

extern "C" fn show_plain(file: *mut SeqFile, _: *mut c_void) -> c_int {
    // SAFETY: as in `seq_puts`.
    unsafe { (*file).push_str("nothing special\n") };
    0
}

type Show = extern "C" fn(*mut SeqFile, *mut c_void) -> c_int;

/// Takes over functions, and sends each call to its usual target.
struct Taken;

impl Redirect for Taken {
    fn redirect(&self, _: &Call<'_>) -> Option<Addr> {
        None
    }
}

struct Stage {
    host: Host,
    recording: Recording,
    /// The number of events of the recording that have been read.
    seen: usize,
    log: Vec<String>,
    taken: Option<Tracing>,
}

impl Stage {
    fn new() -> Stage {
        #[expect(clippy::as_conversions, reason = "the only way from a function pointer to its address")]
        let (puts, shows) = (
            seq_puts as unsafe extern "C" fn(*mut SeqFile, *const c_char) as *const (),
            [cmdline_proc_show as Show as *const (), meminfo_proc_show as Show as *const ()],
        );
        let host = Host::builder().process_symbols().export("seq_puts", puts);
        let host = host.export("console_printk", CONSOLE_PRINTK.as_ptr()).build().unwrap();
        let functions = ["cmdline_proc_show", "meminfo_proc_show"].into_iter().zip(shows);
        // SAFETY: both begin with a NOP of five bytes, and this program stays.
        let functions = functions.map(|(name, at)| unsafe { HostFunction::new(name, at) }).collect();
        host.register_host_functions(functions).unwrap();
        let recording = host.record();
        Stage { host, recording, seen: 0, log: Vec::new(), taken: None }
    }

    /// Adds the lines that live patching and modules have logged since the last call.
    fn note_lines(&mut self) {
        let events = self.recording.so_far().events;
        for event in &events[self.seen..] {
            if let EventKind::Log { message } = &event.kind {
                self.log.push(message.clone());
            }
        }
        self.seen = events.len();
    }

    fn step(&mut self, words: &[&str]) {
        match words {
            ["load", module, params @ ..] => {
                self.host.load(&image(module, params)).unwrap_or_else(|error| panic!("{error}"));
                self.wait(|stage| stage.patch(module).is_none_or(|patch| patch.transition.is_none()));
            }
            ["stuck", module] => {
                self.host.load(&image(module, &[])).unwrap();
                thread::sleep(Duration::from_millis(100));
                assert!(self.patch(module).unwrap().transition.is_some(), "somebody is in a function that changes");
            }
            ["refused", module, params @ ..] => {
                let error = self.host.load(&image(module, params)).expect_err("it is to be refused").error;
                self.note_lines();
                self.log.push(format!("% errno {}", error.errno()));
            }
            ["unload", module] => self.host.unload_within(module, LONG).unwrap(),
            ["disable", patch] => {
                self.host.disable_patch(patch).unwrap();
                self.wait(|stage| stage.patch(patch).is_none());
            }
            ["set", module, name, value] => self.host.module(module).unwrap().set_param(name, Some(value)).unwrap(),
            ["read", file] => self.read(file),
            ["show", patch, attribute] => {
                let value = attribute_of(&self.patch(patch).unwrap(), attribute);
                self.log.push(format!("{}", u8::from(value)));
            }
            ["ftrace", "off"] => {
                let filter = "vmlinux:*_proc_show".parse::<Filter>().unwrap();
                // SAFETY: the redirection changes no call's target.
                let taken = self.host.redirect(filter, unsafe { Redirecting::new(Taken) });
                let errno = match &taken {
                    Ok(_) => 0,
                    Err(TraceError::Redirected { .. }) => 16,
                    Err(error) => panic!("{error}"),
                };
                self.log.push(format!("% errno {errno}"));
                self.taken = taken.ok();
            }
            ["ftrace", "on"] => self.taken = None,
            _ => panic!("{words:?}: what is that?"),
        }
    }

    fn read(&mut self, file: &str) {
        let mut shown = SeqFile::new();
        let show: Show = if file == "cmdline" { cmdline_proc_show } else { meminfo_proc_show };
        // The function is read anew each time: the compiler has no knowledge of the code at that address.
        assert_eq!(std::hint::black_box(show)(&raw mut shown, std::ptr::null_mut()), 0);
        self.log.extend(shown.lines().filter(|line| line.contains("live patched")).map(str::to_owned));
    }

    fn patch(&self, name: &str) -> Option<PatchStatus> {
        self.host.patches().unwrap().into_iter().find(|patch| patch.name == name)
    }

    fn wait(&self, until: impl Fn(&Stage) -> bool) {
        let mut patience = Patience::new();
        while !until(self) {
            patience.turn(|| format!("{:#?}", self.host.patches()));
        }
    }
}

fn attribute_of(patch: &PatchStatus, attribute: &str) -> bool {
    match attribute {
        "enabled" => patch.enabled,
        "transition" => patch.transition.is_some(),
        _ => {
            let object = attribute.strip_suffix("/patched").expect("there are three attributes");
            patch.objects.iter().find(|one| one.name == object).expect("an object of the patch").patched
        }
    }
}

/// Returns the module of this name. The scenes' own headers are put into the module's text, because objects are cached
/// by their text.
fn image(module: &str, params: &[&str]) -> Image<'static> {
    let text = expanded(&format!("{module}.c"));
    let name = format!("-DKBUILD_MODNAME=\"{module}\"");
    let flags =
        ["-O2", "-fPIC", "-fvisibility=hidden", "-fpatchable-function-entry=5", "-Wall", "-Wextra", "-Werror", &name];
    let object =
        object_from_text(module, Language::C, &text, Compiler::Cc, &flags).unwrap_or_else(|error| panic!("{error}"));
    let object = fs::read(object).unwrap();
    let object = match klp_link::link(&object) {
        Ok(linked) => linked.bytes,
        Err(klp_link::PatchLinkError::NothingMarked) => object,
        Err(refused) => panic!("{module}: {refused}"),
    };
    // SAFETY: the scenes' modules are ours.
    let image = unsafe { Image::trusted(object) }.named(module);
    params.iter().fold(image, |image, param| image.param(*param))
}

fn expanded(file: &str) -> String {
    let folder = klp_folder();
    let path = [folder.join(file), folder.join("sdk").join(file)].into_iter().find(|path| path.exists());
    let text = fs::read_to_string(path.unwrap_or_else(|| panic!("there is no {file}"))).unwrap();
    let line = |line: &str| match line.strip_prefix("#include \"").and_then(|rest| rest.strip_suffix('"')) {
        Some(included) => expanded(included),
        None => format!("{line}\n"),
    };
    text.lines().map(line).collect()
}
