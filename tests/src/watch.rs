//! Ways of watching calls of functions, and the results: for tests that need the same calls in all ways.

use std::arch::asm;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use modload::Host;
use modload::trace::{Batch, Missed, ThreadAction};
use modload::trace::{Call, Filter, FunctionTrace, Mode, TraceOptions, Tracing};

/// How calls are looked at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Watch {
    /// By a tracer.
    Tracer,
    /// By a tracer that is shown the registers.
    Registers,
    /// By two tracers.
    Two,
    /// Recorded, calls alone.
    Calls,
    /// Recorded, entries and returns.
    Graph,
    /// Calls are recorded, and a tracer is called for them.
    CallsAndTracer,
    /// Entries and returns are recorded, and a tracer is called for the calls.
    GraphAndTracer,
}

impl Watch {
    /// All ways.
    pub const ALL: [Watch; 7] = [
        Watch::Tracer,
        Watch::Registers,
        Watch::Two,
        Watch::Calls,
        Watch::Graph,
        Watch::CallsAndTracer,
        Watch::GraphAndTracer,
    ];

    /// Returns the mode of the recording, if there is a recording.
    #[must_use]
    pub fn mode(self) -> Option<Mode> {
        match self {
            Watch::Tracer | Watch::Registers | Watch::Two => None,
            Watch::Calls | Watch::CallsAndTracer => Some(Mode::Calls),
            Watch::Graph | Watch::GraphAndTracer => Some(Mode::Graph),
        }
    }

    fn tracers(self) -> usize {
        match self {
            Watch::Tracer | Watch::Registers | Watch::CallsAndTracer | Watch::GraphAndTracer => 1,
            Watch::Two => 2,
            Watch::Calls | Watch::Graph => 0,
        }
    }
}

/// The results for the functions that were watched.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Seen {
    /// The number of calls of each function, for each of the tracers.
    pub heard: Vec<BTreeMap<String, u64>>,
    /// The recording, if there was one.
    pub recorded: Option<Recorded>,
}

/// A recording.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Recorded {
    /// The number of calls, or of entries, of each function.
    pub calls: BTreeMap<String, u64>,
    /// The number of times that each function ended otherwise than by a return.
    pub unwound: BTreeMap<String, u64>,
    /// The events of each thread, in the order of the threads' first events: `f {`, `} f`, `~ f` for a function that
    /// was unwound.
    pub lines: Vec<Vec<String>>,
    /// The calls that were not recorded.
    pub missed: Missed,
}

/// Writes over every register that a callback may write to.
fn write_over_registers() {
    if std::arch::is_x86_feature_detected!("avx512f") {
        // SAFETY: all registers that the code changes are declared; the processor has the instructions.
        unsafe {
            asm!(
                ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
                "vpternlogd zmm\\n, zmm\\n, zmm\\n, 0xff",
                ".endr",
                clobber_abi("C"),
            );
        }
    } else {
        // SAFETY: all registers that the code changes are declared; every x86-64 processor has the instructions.
        unsafe {
            asm!(".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15", "pcmpeqd xmm\\n, xmm\\n", ".endr", clobber_abi("C"),);
        }
    }
    // SAFETY: all registers that the code changes are declared.
    unsafe {
        asm!(".irp register,rax,rcx,rdx,rsi,rdi,r8,r9,r10,r11", "mov \\register, -1", ".endr", clobber_abi("C"),);
    }
}

/// Calls `run` while the functions that a pattern selects are watched, and returns the results.
///
/// # Panics
/// If the functions cannot be watched, or records are not nested.
pub fn watched(host: &Host, watch: Watch, pattern: &str, run: impl FnOnce()) -> Seen {
    let filter: Filter = pattern.parse().unwrap();
    let heard: Vec<Arc<Mutex<BTreeMap<String, u64>>>> = (0..watch.tracers()).map(|_| Arc::default()).collect();
    let tracers: Vec<Tracing> = heard
        .iter()
        .map(|heard| {
            let heard = heard.clone();
            let tracer = move |call: &Call<'_>| {
                *heard.lock().unwrap_or_else(PoisonError::into_inner).entry(call.symbol().to_owned()).or_default() += 1;
                if let Some(registers) = call.registers() {
                    // These registers hold no values of earlier code.
                    assert!(registers.rsp().get() != 0 && registers.rbx != !0);
                }
                write_over_registers();
            };
            match watch {
                Watch::Registers => host.trace_with_registers(filter.clone(), tracer),
                _ => host.trace(filter.clone(), tracer),
            }
            .unwrap()
        })
        .collect();
    let trace = watch.mode().map(|mode| record(host, mode, pattern));
    run();
    let recorded = trace.map(|trace| Recorded::of(&trace.finish()));
    drop(tracers);
    let heard = heard.into_iter().map(|heard| Arc::into_inner(heard).unwrap().into_inner().unwrap()).collect();
    Seen { heard, recorded }
}

fn record(host: &Host, mode: Mode, pattern: &str) -> FunctionTrace {
    host.trace_functions(&TraceOptions::new(mode).pattern(pattern).unwrap().buffer(16 << 20)).unwrap()
}

impl Recorded {
    /// Evaluates a whole recording.
    ///
    /// # Panics
    /// If an end does not belong to the last entered function among those that have not ended.
    #[must_use]
    pub fn of(batch: &Batch) -> Recorded {
        let mut recorded = Recorded { missed: batch.missed, ..Recorded::default() };
        let mut open: Vec<Vec<u32>> = vec![Vec::new(); batch.threads.len()];
        recorded.lines = vec![Vec::new(); batch.threads.len()];
        for record in &batch.records {
            let thread = usize::try_from(record.thread).unwrap();
            let name = batch.functions[usize::try_from(record.function).unwrap()].name.clone();
            let line = match &record.what {
                ThreadAction::Call { .. } => {
                    *recorded.calls.entry(name.clone()).or_default() += 1;
                    name
                }
                ThreadAction::Enter => {
                    *recorded.calls.entry(name.clone()).or_default() += 1;
                    open[thread].push(record.function);
                    format!("{name} {{")
                }
                end => {
                    let lines = &recorded.lines[thread];
                    assert_eq!(open[thread].pop(), Some(record.function), "{name} ends after {lines:?}");
                    if *end == ThreadAction::Unwound {
                        *recorded.unwound.entry(name.clone()).or_default() += 1;
                        format!("~ {name}")
                    } else {
                        format!("}} {name}")
                    }
                }
            };
            recorded.lines[thread].push(line);
        }
        recorded
    }
}
