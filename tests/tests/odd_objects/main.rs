//! Valid but unusual objects, compared with GNU ld: sets of objects are loaded as link units and called, and linked
//! into a program that calls the same functions. Both results are the same.
//!
//! `MODLOAD_ODD` is the number of objects, `MODLOAD_SEED` the seed of the first set. A set depends only on its seed, so
//! it can be made again: `cargo xtask odd seed=N count=1`.

mod elf;
mod make;

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};

use elf::Relocations;
use make::{Set, set};
use modload::{Host, Image, Input, Module};
use modload_tests::{case, image_from_text};

fn main() -> ExitCode {
    // A hundred thousand take minutes.
    let case = case!(odd_objects_compute_what_ld_and_exec_make_of_them).within_seconds(7200);
    modload_tests::run(&[case.needing("gcc"), case!(who_refers_to_the_definition_of_another_module_holds_it)])
}

fn who_refers_to_the_definition_of_another_module_holds_it() {
    let text = "__attribute__((weak)) int which(void); __attribute__((weak)) int which(void) { return NUMBER; }";
    let host = Host::builder().export_globals().build().unwrap();
    let load = |name: &str, number: &str| host.load(&image_from_text(name, &text.replace("NUMBER", number))).unwrap();
    let (first, second) = (load("first", "1"), load("second", "2"));
    let refused = first.unload().unwrap_err();
    assert_eq!(refused.to_string(), "first: in use by second");
    second.unload().unwrap();
    host.unload("first").unwrap();
    // A definition of an unloaded module does not count any more.
    let second = load("second", "2");
    // SAFETY: the symbol has that type.
    let which = unsafe { second.symbol::<extern "C" fn() -> i32>("which") }.unwrap();
    assert_eq!(which(), 2);
}

/// The number of sets that are linked into one program.
const BATCH: u64 = 200;

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{variable} is no number")))
}

fn odd_objects_compute_what_ld_and_exec_make_of_them() {
    let (wanted, first) = (number("MODLOAD_ODD", 1500), number("MODLOAD_SEED", 1));
    let host = Host::builder().build().unwrap();
    let (mut objects, mut sets, mut seed) = (0, 0, first);
    let mut wrong = Vec::new();
    while objects < wanted && wrong.len() < 10 {
        let mut batch = Vec::new();
        while objects < wanted && batch.len() < usize::try_from(BATCH).unwrap() {
            let made = set(seed);
            objects += u64::try_from(made.objects.len()).unwrap();
            batch.push((seed, made));
            seed += 1;
        }
        sets += batch.len();
        let expected = linked(&batch);
        for ((seed, set), expected) in batch.iter().zip(expected) {
            let ours = loaded(&host, *seed, set);
            if ours.as_ref() != Ok(&expected) {
                wrong.push(format!("set {seed}, made of {:?}: {ours:?}, and ld's is {expected}", set.made_of));
            }
        }
    }
    assert!(wrong.is_empty(), "cargo xtask odd seed=N count=1 makes set N again:\n{}", wrong.join("\n"));
    println!("{objects} objects in {sets} sets compute what ld and exec make of them");
}

/// Returns the results of the sets in a program that GNU ld has linked.
fn linked(batch: &[(u64, Set)]) -> Vec<u32> {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let mut files = String::from("main.c\n");
    let (mut declared, mut called) = (String::new(), String::new());
    for (seed, set) in batch {
        for (at, object) in set.objects.iter().enumerate() {
            let name = format!("{seed}_{at}.o");
            fs::write(path(&name), object.write(Relocations::Plain)).unwrap();
            writeln!(files, "{name}").unwrap();
        }
        writeln!(declared, "unsigned {}(void);", set.run).unwrap();
        writeln!(called, "printf(\"%u\\n\", {}());", set.run).unwrap();
    }
    fs::write(path("files"), files).unwrap();
    fs::write(path("main.c"), format!("#include <stdio.h>\n{declared}int main(void) {{\n{called}return 0;\n}}\n"))
        .unwrap();
    run(
        Command::new("gcc").args(["-O0", "-no-pie", "-z", "noexecstack", "-w", "-o", "program", "@files"]),
        folder.path(),
    );
    let said = run(&mut Command::new("./program"), folder.path());
    let numbers: Vec<u32> = said.lines().map(|line| line.parse().unwrap()).collect();
    assert_eq!(numbers.len(), batch.len(), "the program went through all sets");
    numbers
}

fn run(command: &mut Command, folder: &Path) -> String {
    let output = command.current_dir(folder).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?} in {}: {}\n{said}", folder.display(), output.status);
    String::from_utf8(output.stdout).unwrap()
}

/// Returns the result of a set as a module, or the reason why the set is refused.
fn loaded(host: &Host, seed: u64, set: &Set) -> Result<u32, String> {
    let bytes = set.objects.iter().enumerate().map(|(at, object)| {
        // The present GNU ld does not read compact relocations; objects for ld always have plain ones.
        let compact = (seed + u64::try_from(at).unwrap()).is_multiple_of(3);
        object.write(if compact { Relocations::Compact } else { Relocations::Plain })
    });
    let inputs = bytes.enumerate().map(|(at, bytes)| Input { name: format!("{seed}_{at}.o"), bytes: bytes.into() });
    // SAFETY: the objects are made here, and touch nothing but their own variables.
    let image = unsafe { Image::trusted_unit(inputs.collect()) }.named("odd");
    let module = host.load(&image).map_err(|error| modload_loader::sentence(&error))?;
    let result = call(&module, &set.run);
    module.unload().map_err(|error| error.to_string())?;
    Ok(result)
}

fn call(module: &Module, function: &str) -> u32 {
    // SAFETY: that is the type of every set's function.
    let function = unsafe { module.symbol::<extern "C" fn() -> u32>(function) }.unwrap();
    function()
}
