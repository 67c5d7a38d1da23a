//! Every fixture, with each set of options and each compiler that it names, through the `modload` command. The first
//! lines of a fixture state the expected results. Each combination is a test.

use std::path::Path;
use std::process::{Command, ExitCode, Output};

use libtest_mimic::{Arguments, Failed, Trial};
use modload_fixtures::{Case, Compiler, Fixture, FixtureLoad, Language};

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let mut trials = Vec::new();
    for fixture in Fixture::all().expect("the fixtures can be listed") {
        let language = fixture.language().expect("a fixture has a language");
        for case in fixture.cases().unwrap_or_else(|error| panic!("{}: {error}", fixture.name())) {
            for &compiler in &case.compilers {
                let name = format!("{}::{}::{}", fixture.name(), case.way, compiler.name());
                if compiler.find_for(language).is_none() {
                    // Written past the test harness's capture, so that the skipped test is visible.
                    eprintln!("SKIPPED {name}: {} is not installed", compiler.name());
                    continue;
                }
                let (fixture, case) = (fixture.clone(), case.clone());
                trials.push(Trial::test(name, move || run(&fixture, &case, compiler)));
            }
        }
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// Returns the object of another fixture that this one needs, compiled as it expects.
fn companion(load: &FixtureLoad, compiler: Compiler) -> Result<Vec<String>, Failed> {
    let fixture = Fixture::new(&load.fixture);
    let case = fixture.cases()?.into_iter().next().ok_or("a fixture without cases")?;
    let compiler = if fixture.language()? == Language::Rust { Compiler::Rustc } else { compiler };
    Ok(file_and_params(&fixture.object_of(&case, compiler)?, &load.params))
}

fn file_and_params(object: &Path, params: &[String]) -> Vec<String> {
    std::iter::once(object.display().to_string()).chain(params.iter().cloned()).collect()
}

fn run(fixture: &Fixture, case: &Case, compiler: Compiler) -> Result<(), Failed> {
    let expect = &case.expect;
    let mut groups = Vec::new();
    for load in &expect.after {
        groups.push(companion(load, compiler)?);
    }
    groups.push(file_and_params(&fixture.object_of(case, compiler)?, &expect.params));
    for load in &expect.then {
        groups.push(companion(load, compiler)?);
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_modload"));
    for call in &expect.calls {
        command.args(["--call", &call.argument()]);
    }
    for (at, group) in groups.iter().enumerate() {
        if at != 0 {
            command.arg("--");
        }
        command.args(group);
    }
    let output = command.output()?;
    // Symbols that only a special host provides are missing here, and the refusal must name all of them.
    if expect.host.is_empty() {
        judge(&output, expect.calls.iter().map(|call| call.line()), &expect.errors)?;
    } else {
        let mut errors = expect.host.clone();
        errors.push("unresolved symbol".into());
        judge(&output, std::iter::empty(), &errors)?;
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    let texts = if expect.host.is_empty() { [&expect.warnings[..], &expect.stderr].concat() } else { vec![] };
    contains(&stderr, &texts, &output)
}

fn judge(output: &Output, lines: impl Iterator<Item = String>, errors: &[String]) -> Result<(), Failed> {
    let (status, expected) = (output.status.code(), if errors.is_empty() { 0 } else { 1 });
    if status != Some(expected) {
        return Err(format!("exit status {:?} instead of {expected}\n{}", output.status, show(output)).into());
    }
    if !errors.is_empty() {
        return contains(&String::from_utf8_lossy(&output.stderr), errors, output);
    }
    let expected: String = lines.map(|line| line + "\n").collect();
    if expected.as_bytes() != output.stdout {
        return Err(format!("expected\n{expected}\n{}", show(output)).into());
    }
    Ok(())
}

fn contains(text: &str, expected: &[String], output: &Output) -> Result<(), Failed> {
    match expected.iter().find(|expected| !text.contains(*expected)) {
        Some(missing) => Err(format!("nothing says {missing:?}\n{}", show(output)).into()),
        None => Ok(()),
    }
}

fn show(output: &Output) -> String {
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    format!("stdout:\n{}\nstderr:\n{}", text(&output.stdout), text(&output.stderr))
}
