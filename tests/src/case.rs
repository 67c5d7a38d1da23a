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

/// The time limit for a case that uses no processor time. Such a case waits for an event that does not come.
const REST: Duration = Duration::from_secs(60);

/// A test that runs in a process of its own. The time limit counts processor time, so a case has as much of that time
/// on a busy machine.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    name: &'static str,
    run: fn(),
    limit: Duration,
    needs: Option<&'static str>,
}

impl Case {
    /// A case that may take a minute of each processor.
    #[must_use]
    pub fn new(name: &'static str, run: fn()) -> Case {
        Case { name, run, limit: Duration::from_secs(60), needs: None }
    }

    /// Sets another time limit.
    #[must_use]
    pub fn within_seconds(self, seconds: u64) -> Case {
        Case { limit: Duration::from_secs(seconds), ..self }
    }

    /// States that the case needs a program. If the program is missing, the case is skipped, and standard error says
    /// so.
    #[must_use]
    pub fn needing(self, program: &'static str) -> Case {
        Case { needs: Some(program), ..self }
    }
}

/// Returns the [`Case`] of a function. The case has the function's name, so that the name is written once.
#[macro_export]
macro_rules! case {
    ($function:path) => {
        $crate::Case::new($crate::last_segment(stringify!($function)), $function)
    };
}

/// Returns the last segment of a path. [`case`] calls it.
#[doc(hidden)]
#[must_use]
pub fn last_segment(path: &'static str) -> &'static str {
    path.rsplit("::").next().unwrap_or(path).trim()
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
            // Written past any capture, so that no reader mistakes this for a pass.
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

/// Starts this program once more for one case, and checks how the process ends.
fn alone(case: Case) -> Result<(), Failed> {
    // Files, not pipes: a forked child that outlives its parent must not block this thread.
    let mut output = tempfile::tempfile()?;
    let mut child = Command::new(std::env::current_exe()?)
        .env(CASE, case.name)
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output.try_clone()?)
        .process_group(0)
        .spawn()?;
    let group = i32::try_from(child.id())?;
    let mut progress = Progress::new(case.limit);
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if let Some(why) = progress.is_over(group) {
            // SAFETY: the group of a child that has not been waited for.
            unsafe { libc::kill(-group, libc::SIGKILL) };
            child.wait()?;
            return Err(format!("not done: {why}\n{}", text(&mut output)?).into());
        }
        thread::sleep(Duration::from_millis(2));
    };
    if status.success() {
        return Ok(());
    }
    let how = status.signal().map_or_else(|| status.to_string(), |signal| format!("killed by signal {signal}"));
    Err(format!("{how}\n{}", text(&mut output)?).into())
}

/// The progress of a case: the processor time that its processes have used.
struct Progress {
    limit: Duration,
    looked: Instant,
    taken: Duration,
    changed: Instant,
}

impl Progress {
    fn new(limit: Duration) -> Progress {
        let now = Instant::now();
        Progress { limit, looked: now, taken: Duration::ZERO, changed: now }
    }

    /// Returns the reason why the case must end, if there is one.
    fn is_over(&mut self, group: i32) -> Option<String> {
        if self.looked.elapsed() < Duration::from_millis(250) {
            return None;
        }
        self.looked = Instant::now();
        // If a process ends and its parent does not wait for it, its processor time is lost.
        let taken = taken_by(group).max(self.taken);
        if taken != self.taken {
            (self.taken, self.changed) = (taken, self.looked);
        }
        let all = self.limit * u32::try_from(thread::available_parallelism().map_or(1, usize::from)).unwrap_or(1);
        if taken > all {
            return Some(format!("it has taken {taken:?} of the processors' time, and may take {all:?}"));
        }
        let rest = self.changed.elapsed();
        (rest > REST).then(|| format!("it has not taken any processor's time for {rest:?}: a deadlock?"))
    }
}

/// Returns the processor time of the processes of a group, and of the children that they have waited for.
fn taken_by(group: i32) -> Duration {
    const TICKS: u64 = 100;
    let of = |entry: std::fs::DirEntry| {
        let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
        // Behind the name, which may hold anything: state, parent, group, ..
        let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
        let is_in_it = fields.get(2)?.parse::<i32>().ok()? == group;
        let times = fields.get(11..15)?.iter().filter_map(|time| time.parse::<u64>().ok());
        is_in_it.then(|| times.sum::<u64>())
    };
    let ticks = std::fs::read_dir("/proc").map(|all| all.flatten().filter_map(of).sum::<u64>()).unwrap_or_default();
    Duration::from_millis(ticks * 1000 / TICKS)
}

fn text(output: &mut File) -> std::io::Result<String> {
    let mut bytes = Vec::new();
    output.rewind()?;
    output.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
