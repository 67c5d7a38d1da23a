//! `modload --demo`: shows the whole life of two modules that are built into this program.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use modload::text::disassembled;
use modload::trace::render::{Form, TracedProcess};
use modload::trace::{Mode, TraceOptions};
use modload::{Coming, Host, Module, ModuleInfo, Order, Refusal, Subscriber};

use crate::args::PrintEvents;
use crate::call::CallOption;
use crate::failure::CommandFailure;
use crate::output::CommandOutput;
use crate::run::{Session, make, own};

const GREET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/greet.o"));
const GUEST: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/guest.o"));

const GREET_FIX: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/greet_fix.o"));
const GREET_REFIX: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/greet_refix.o"));

/// A subscriber that accepts every module. The timeline shows its calls.
struct Watcher;

impl Subscriber for Watcher {
    fn coming(&self, _: &mut Coming<'_>) -> Result<(), Refusal> {
        Ok(())
    }

    fn going(&self, _: &ModuleInfo) {}
}

pub(crate) fn run(output: &mut CommandOutput) -> Result<(), CommandFailure> {
    output.heading("Before: no arena, no module")?;
    show_mappings(output, None)?;

    let host = Host::builder().build()?;
    let _inventory = host.subscribe("inventory", Order::mirrored(10), Watcher);
    let _metrics = host.subscribe("metrics", Order::mirrored(0), Watcher);
    let mut session = Session { recording: host.record(), printed: 0, warned: 0, trace: PrintEvents::On };

    let load =
        |file: &str, image| host.load(&image).map_err(|source| CommandFailure::Load { file: file.into(), source });
    output.heading("Loading greet (times=2), then guest, which uses what greet exports")?;
    let greet = load("greet.o", own(GREET).named("greet").param("times=2").param("who=reader"))?;
    let guest = load("guest.o", own(GUEST).named("guest"))?;
    session.print(output)?;

    output.heading("Calling into them")?;
    let modules = [greet, guest];
    for call in ["greet_hello", "guest_again", "greet_count"] {
        let call: CallOption = call.parse().map_err(io::Error::other)?;
        make(&modules, &call, output)?;
    }

    output.heading("Tracing: the same calls while every function of both modules is traced")?;
    trace(&host, &modules, output)?;

    output.heading("Patching: a patch is loaded before its target, and another patch replaces it")?;
    let modules = patch(&host, modules, &mut session, output)?;

    output.heading("While loaded: one mapping per stripe, none of them both writable and executable")?;
    show_mappings(output, Some(&host))?;

    output.heading("Unloading: guest first, because it uses greet")?;
    let refused = host.unload("greet").map_or_else(|refused| refused.to_string(), |()| "it was unloaded".into());
    output.say(&format!("unload greet -> {refused}"))?;
    for module in modules.into_iter().rev() {
        module.unload()?;
    }
    session.print(output)?;

    output.heading("After: the same mappings, for the next module; the bytes still in use belong to the host")?;
    show_mappings(output, Some(&host))?;
    Ok(output.flush()?)
}

/// Calls into the modules while their functions are traced. Shows the instruction at the entry of one function before,
/// during and after tracing.
fn trace(host: &Host, modules: &[Module], output: &mut CommandOutput) -> Result<(), CommandFailure> {
    show_entry(modules, "before   ", output)?;
    let options = TraceOptions::new(Mode::Graph).pattern("gre*:*")?.pattern("guest:*")?;
    let trace = match host.trace_functions(&options) {
        Ok(trace) => trace,
        // Tracing is refused on a machine without a clock that runs evenly on all processors, and in a process
        // with shadow stacks. The rest of the demo works there too.
        Err(refused) => return Ok(output.say(&format!("cannot trace on this machine: {refused}"))?),
    };
    show_entry(modules, "meanwhile", output)?;
    for call in ["greet_hello", "guest_again"] {
        make(modules, &call.parse().map_err(io::Error::other)?, output)?;
    }
    let recorded = trace.finish();
    show_entry(modules, "after    ", output)?;
    let process = TracedProcess { pid: std::process::id(), name: "modload".into() };
    Form::Graph.whole(&process, [recorded.clone()]).lines().try_for_each(|line| output.say(line))?;
    Ok(output.value(&recorded)?)
}

/// Patches greet, which is loaded again after its patch: a patch may be loaded before its target.
fn patch(
    host: &Host,
    modules: [Module; 2],
    session: &mut Session,
    output: &mut CommandOutput,
) -> Result<[Module; 2], CommandFailure> {
    let load =
        |file: &str, image| host.load(&image).map_err(|source| CommandFailure::Load { file: file.into(), source });
    let count: CallOption = "greet_count".parse().map_err(io::Error::other)?;
    modules.into_iter().rev().try_for_each(Module::unload)?;
    session.skip();
    drop(load("greet_fix.o", own(GREET_FIX).named("greet_fix"))?);
    let greet = load("greet.o", own(GREET).named("greet").param("times=2"))?;
    session.print_order(output)?;
    make(std::slice::from_ref(&greet), &count, output)?;
    drop(load("greet_refix.o", own(GREET_REFIX).named("greet_refix"))?);
    session.print_order(output)?;
    make(std::slice::from_ref(&greet), &count, output)?;
    host.unload("greet_fix")?;
    greet.unload()?;
    session.print_order(output)?;
    host.disable_patch("greet_refix")?;
    host.unload("greet_refix")?;
    session.skip();
    let greet = load("greet.o", own(GREET).named("greet").param("times=2").param("who=reader"))?;
    let guest = load("guest.o", own(GUEST).named("guest"))?;
    session.skip();
    Ok([greet, guest])
}

/// Shows the first instruction of greet_hello, read from memory.
fn show_entry(modules: &[Module], when: &str, output: &mut CommandOutput) -> Result<(), CommandFailure> {
    let found = modules.iter().find_map(|module| module.symbol_info("greet_hello"));
    let at = found.ok_or_else(|| CommandFailure::NoSymbol("greet_hello".into()))?.addr;
    let mut bytes = [0; 5];
    File::open("/proc/self/mem")?.read_exact_at(&mut bytes, at.get())?;
    Ok(output.say(&format!("{when}  greet_hello: {}", disassembled(at, &bytes)))?)
}

/// Shows the lines of /proc/self/maps for the arena, and the number of all mappings.
fn show_mappings(output: &mut CommandOutput, host: Option<&Host>) -> Result<(), CommandFailure> {
    let maps = std::fs::read_to_string("/proc/self/maps")?;
    if let Some(host) = host {
        for stripe in host.memory() {
            let start = format!("{:08x}-", stripe.start.get());
            let line = maps.lines().find(|line| line.starts_with(&start)).unwrap_or("(not mapped)");
            let mapping = line.split_whitespace().take(2).collect::<Vec<_>>().join(" ");
            output.say(&format!("{mapping}  {:<18} {:>5} bytes used", stripe.class.to_string(), stripe.used))?;
        }
    }
    output.say(&format!("{} mappings in the process", maps.lines().count()))?;
    Ok(())
}
