//! A test case in a process of its own: the test program starts itself with the case's name.

use std::fs::File;
use std::io::{Read, Seek};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Failed, Trial};

/// Names the case that this process is to run.
const CASE: &str = "MODLOAD_TESTS_CASE";

/// A test that runs in a process of its own.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    name: &'static str,
    run: fn(),
    limit: Duration,
    needs: Option<&'static str>,
}

impl Case {
    /// A case that may take a minute.
    #[must_use]
    pub fn new(name: &'static str, run: fn()) -> Case {
        Case { name, run, limit: Duration::from_secs(60), needs: None }
    }

    /// Gives it another time limit.
    #[must_use]
    pub fn within_seconds(self, seconds: u64) -> Case {
        Case { limit: Duration::from_secs(seconds), ..self }
    }

    /// It needs a program. Where that is missing the case is skipped, and standard error says so.
    #[must_use]
    pub fn needing(self, program: &'static str) -> Case {
        Case { needs: Some(program), ..self }
    }
}

/// The `main` of a test program: runs all cases, or the one that this process was started for.
#[must_use]
pub fn run(cases: &[Case]) -> ExitCode {
    if let Some(wanted) = std::env::var_os(CASE) {
        let case = cases.iter().find(|case| *case.name == *wanted).expect("a case of this program");
        (case.run)();
        return ExitCode::SUCCESS;
    }
    let arguments = Arguments::from_args();
    let trials = cases.iter().map(|&case| {
        let missing = case.needs.filter(|program| !is_there(program));
        if let Some(program) = missing {
            // Past any capture: nobody may take this for a pass.
            eprintln!("SKIPPED {}: {program} is missing or cannot run here", case.name);
        }
        Trial::test(case.name, move || alone(case)).with_ignored_flag(missing.is_some())
    });
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}

fn is_there(program: &str) -> bool {
    let version = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    version.is_ok_and(|status| status.success())
}

/// Starts this program once more for one case, and judges how it ends.
fn alone(case: Case) -> Result<(), Failed> {
    // Files rather than pipes: a forked child that outlives its parent must not keep us waiting.
    let mut output = tempfile::tempfile()?;
    let mut child = Command::new(std::env::current_exe()?)
        .env(CASE, case.name)
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output.try_clone()?)
        .process_group(0)
        .spawn()?;
    let until = Instant::now() + case.limit;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() > until {
            let group = i32::try_from(child.id())?;
            // SAFETY: the group of a child that has not been waited for.
            unsafe { libc::kill(-group, libc::SIGKILL) };
            child.wait()?;
            let limit = case.limit;
            return Err(format!("not done after {limit:?}: a deadlock?\n{}", text(&mut output)?).into());
        }
        thread::sleep(Duration::from_millis(2));
    };
    if status.success() {
        return Ok(());
    }
    let how = status.signal().map_or_else(|| status.to_string(), |signal| format!("killed by signal {signal}"));
    Err(format!("{how}\n{}", text(&mut output)?).into())
}

fn text(output: &mut File) -> std::io::Result<String> {
    let mut bytes = Vec::new();
    output.rewind()?;
    output.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
