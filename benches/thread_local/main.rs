//! Measures an access to a thread-local variable of a module, by each model of the compiler, compared with the same code
//! in a library that dlopen has loaded: in time, alternating in one run, and in instructions, counted by single steps.
//!
//! `cargo bench` measures and prints. With `--check` it fails if a target is missed. `cargo test` runs each loop once.

use std::error::Error;
use std::hint::black_box;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::ptr;
use std::time::Instant;

use modload::{Host, Image};
use modload_fixtures::{Compiler, Language, object_from_text};

/// A loop with one access per iteration, in a function that the compiler does not know.
const ACCESS: &str = "
#ifdef LARGE
__thread char others[LARGE];
#endif
__thread long variable = 1;
static __attribute__((noinline)) long access(void) { __asm__ volatile(\"\"); return variable; }
long run(long n)
{
    long sum = 0;
    for (long i = 0; i < n; i++)
        sum += access();
    return sum;
}
";

/// The models, and whether a shared library can have them. Small variables get static memory, in a module and, by
/// descriptors and initial exec, in a library; large ones do not.
const MODELS: [(&str, &[&str], bool); 7] = [
    ("dynamic, large", &["-fPIC", "-DLARGE=4000"], true),
    ("descriptor, large", &["-fPIC", "-mtls-dialect=gnu2", "-DLARGE=4000"], true),
    ("general dynamic", &["-fPIC"], true),
    ("the same, no PLT", &["-fPIC", "-fno-plt"], true),
    ("descriptor", &["-fPIC", "-mtls-dialect=gnu2"], true),
    ("initial exec", &["-fPIC", "-ftls-model=initial-exec"], true),
    ("local exec", &["-fPIC", "-ftls-model=local-exec"], false),
];

type Run = extern "C" fn(i64) -> i64;

/// One model in a module and in a library.
struct Model {
    name: &'static str,
    module: Access,
    library: Option<Access>,
}

struct Access {
    run: Run,
    times: Vec<f64>,
    instructions: u64,
}

impl Access {
    fn of(run: Run, counted: i64) -> Result<Access, Box<dyn Error>> {
        // The first call makes the thread's copy.
        run(1);
        let instructions = (steps(run, 2 * counted)? - steps(run, counted)?) / u64::try_from(counted)?;
        Ok(Access { run, times: Vec::new(), instructions })
    }

    fn measure(&mut self, iterations: i64) {
        let begun = Instant::now();
        assert_eq!(black_box((self.run)(black_box(iterations))), iterations);
        self.times.push(begun.elapsed().as_secs_f64());
    }
}

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let asked = |option: &str| std::env::args().any(|argument| argument == option);
    let measured = asked("--bench") || asked("--check");
    let (iterations, rounds, counted) = if measured { (1_000_000, 101, 1000) } else { (1000, 1, 10) };
    let host = Host::builder().process_symbols().build()?;
    let folder = tempfile::tempdir()?;
    let mut models = Vec::new();
    let mut modules = Vec::new();
    for (name, flags, shared) in MODELS {
        let flags = [&["-O2"], flags].concat();
        let object = object_from_text("access", Language::C, ACCESS, Compiler::Cc, &flags)?;
        // SAFETY: the text is ours.
        let module =
            host.load(&unsafe { Image::trusted(std::fs::read(&object)?) }.named(name.replace([' ', ','], "_")))?;
        // SAFETY: `run` is a `long run(long)`, and the module stays loaded.
        let run = *unsafe { module.symbol::<Run>("run")? };
        modules.push(module);
        let library =
            if shared { Some(Access::of(opened(&object, &folder.path().join(name))?, counted)?) } else { None };
        models.push(Model { name, module: Access::of(run, counted)?, library });
    }
    for _ in 0..rounds {
        for model in &mut models {
            model.module.measure(iterations);
            model.library.iter_mut().for_each(|library| library.measure(iterations));
        }
    }
    if !measured {
        return Ok(ExitCode::SUCCESS);
    }
    // Converts i64 to f64 without a cast: the number is a small power of ten.
    let per_access = 1e9 / f64::from(i32::try_from(iterations)?);
    println!("An iteration with one access: instructions, and medians of {rounds} rounds in ns.\n");
    println!("{:<20} {:>20} {:>20}", "", "module", "dlopened library");
    let mut met = true;
    for model in models {
        let shown = |access: Access| format!("{:>10} {:>9.2}", access.instructions, median(access.times) * per_access);
        let (instructions, of_library) =
            (model.module.instructions, model.library.as_ref().map(|one| one.instructions));
        let library = model.library.map_or_else(|| format!("{:>20}", "-"), shown);
        println!("{:<20} {} {library}", model.name, shown(model.module));
        if of_library.is_some_and(|of_library| instructions > of_library) {
            println!("{:<20} MISSED: more instructions than in the library", "");
            met = false;
        }
    }
    Ok(if met || !asked("--check") { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Links an object to a shared library, opens it, and returns its function.
fn opened(object: &Path, library: &Path) -> Result<Run, Box<dyn Error>> {
    let linked = Command::new("cc").arg("-shared").arg("-o").arg(library).arg(object).status()?;
    if !linked.success() {
        return Err(format!("cc -shared: {linked}").into());
    }
    let path = std::ffi::CString::new(library.to_str().ok_or("the path is no text")?)?;
    // SAFETY: the library is the text above and has no constructors.
    let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW) };
    if handle.is_null() {
        return Err("dlopen has failed".into());
    }
    // SAFETY: the handle is that of the library, which stays open.
    let run = unsafe { libc::dlsym(handle, c"run".as_ptr()) };
    if run.is_null() {
        return Err("the library has no function".into());
    }
    // SAFETY: `run` is a `long run(long)`.
    Ok(unsafe { std::mem::transmute::<*mut libc::c_void, Run>(run) })
}

/// Returns the number of instructions of a call, and of a few more that are the same for each call: a child process makes
/// the call and is single-stepped.
fn steps(run: Run, iterations: i64) -> Result<u64, Box<dyn Error>> {
    // SAFETY: the child calls functions that need no lock, and ends by _exit.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: numbers only.
        unsafe { libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) };
        // SAFETY: numbers only; the parent lets this process continue.
        unsafe { libc::raise(libc::SIGSTOP) };
        black_box(run(black_box(iterations)));
        // SAFETY: as above.
        unsafe { libc::raise(libc::SIGSTOP) };
        // SAFETY: the process ends here.
        unsafe { libc::_exit(0) };
    }
    let stopped_by = || -> Result<Option<i32>, Box<dyn Error>> {
        let mut status = 0;
        // SAFETY: the call writes the status.
        let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
        if waited != child {
            return Err("the child is gone".into());
        }
        Ok(libc::WIFSTOPPED(status).then(|| libc::WSTOPSIG(status)))
    };
    let go_on = |how| {
        // SAFETY: the child is stopped; no signal is delivered.
        unsafe { libc::ptrace(how, child, ptr::null_mut::<libc::c_void>(), ptr::null_mut::<libc::c_void>()) }
    };
    if stopped_by()? != Some(libc::SIGSTOP) {
        return Err("the child cannot be traced".into());
    }
    let mut steps = 0;
    loop {
        go_on(libc::PTRACE_SINGLESTEP);
        match stopped_by()? {
            Some(libc::SIGTRAP) => steps += 1,
            Some(libc::SIGSTOP) => break,
            other => return Err(format!("the child has stopped by {other:?}").into()),
        }
    }
    go_on(libc::PTRACE_CONT);
    stopped_by()?;
    Ok(steps)
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}
