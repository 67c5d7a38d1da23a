//! Other tracers on the same function, in processes of their own. A missing tracer is reported and has no result.

use std::path::Path;
use std::process::{Command, Stdio};

/// A tracer, and its result.
pub(crate) struct Other {
    pub(crate) what: &'static str,
    /// Nanoseconds per call, or the reason why there is no result.
    pub(crate) measured: Result<f64, String>,
}

/// How the program is compiled and run.
struct Way {
    what: &'static str,
    compiler: &'static str,
    flags: &'static [&'static str],
    /// The command that runs the program, if any. `DIR` stands for a new directory.
    runner: &'static [&'static str],
    environment: &'static [(&'static str, &'static str)],
    /// Arguments after the number of calls.
    arguments: &'static [&'static str],
}

const XRAY: &[&str] = &["-O2", "-DXRAY", "-fxray-instrument", "-fxray-instruction-threshold=1"];

const WAYS: [Way; 4] = [
    Way {
        what: "uftrace, recorded",
        compiler: "cc",
        flags: &["-O2", "-pg"],
        runner: &["uftrace", "record", "--no-libcall", "-d", "DIR"],
        environment: &[],
        arguments: &[],
    },
    Way {
        what: "XRay, off",
        compiler: "clang-19",
        flags: XRAY,
        runner: &[],
        environment: &[("XRAY_OPTIONS", "patch_premain=false")],
        arguments: &[],
    },
    Way {
        what: "XRay, empty handler",
        compiler: "clang-19",
        flags: XRAY,
        runner: &[],
        environment: &[("XRAY_OPTIONS", "patch_premain=true")],
        arguments: &["handler"],
    },
    Way {
        what: "XRay, flight data recorder",
        compiler: "clang-19",
        flags: XRAY,
        runner: &[],
        // XRay logs to the working directory.
        environment: &[("XRAY_OPTIONS", "patch_premain=true xray_mode=xray-fdr verbosity=0")],
        arguments: &[],
    },
];

/// Measures all tracers, with this number of calls per round.
pub(crate) fn all(calls: u32) -> Vec<Other> {
    WAYS.iter().map(|way| Other { what: way.what, measured: way.measure(calls) }).collect()
}

impl Way {
    fn measure(&self, calls: u32) -> Result<f64, String> {
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
        let program = folder.path().join("other");
        let mut compile = Command::new(self.compiler);
        compile.args(self.flags).arg("-o").arg(&program).arg(concat!(env!("CARGO_MANIFEST_DIR"), "/trace/other.c"));
        finished(&mut compile)?;
        let data = folder.path().join("data");
        let runner = self.runner.iter().map(|word| if *word == "DIR" { data.as_os_str() } else { word.as_ref() });
        let words: Vec<_> = runner.chain([program.as_os_str()]).collect();
        let mut run = Command::new(words[0]);
        run.args(&words[1..]).arg(calls.to_string()).args(self.arguments);
        run.envs(self.environment.iter().copied()).current_dir(Path::new(folder.path()));
        let printed = finished(&mut run)?;
        printed.trim().parse().map_err(|_| format!("it printed {printed:?}"))
    }
}

/// Returns the output of a program that ended successfully.
fn finished(command: &mut Command) -> Result<String, String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output().map_err(|error| format!("{name}: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let said = said.lines().find(|line| line.contains("error") || line.contains("cannot")).unwrap_or_default();
    Err(format!("{name}: {}: {said}", output.status))
}
