//! Runs a plugin in two threads, records the entries and returns of its functions, and draws them as a flame chart:
//! time to the right, calls below their callers.
//!
//! `cargo run --example trace_chart -- chart.svg`

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::{self, Write};
use std::path::Path;
use std::process::Command;
use std::thread;

use modload::trace::{Batch, RecordedThread, ThreadAction, TracedFunction};
use modload::trace::{Mode, TraceOptions};
use modload::{Host, Image};

/// A plugin that sorts by quicksort, with some work for each element.
const PLUGIN: &str = "\
#define NOINLINE __attribute__((noinline))
static unsigned random_state = 1;
NOINLINE int weigh(int value) { for (volatile int i = 0; i < value % 64; i++) ; return value; }
NOINLINE void fill(int *numbers, int count)
{
	for (int i = 0; i < count; i++)
		numbers[i] = weigh((int)((random_state = random_state * 1103515245u + 12345u) >> 16));
}
NOINLINE int partition(int *numbers, int count)
{
	int pivot = weigh(numbers[count - 1]), low = 0;
	for (int i = 0; i < count - 1; i++)
		if (numbers[i] < pivot) {
			int other = numbers[low];
			numbers[low++] = numbers[i];
			numbers[i] = other;
		}
	numbers[count - 1] = numbers[low];
	numbers[low] = pivot;
	return low;
}
NOINLINE void sort(int *numbers, int count)
{
	if (count < 2)
		return;
	int middle = partition(numbers, count);
	sort(numbers, middle);
	sort(numbers + middle + 1, count - middle - 1);
	__asm__ volatile(\"\");
}
int run(int count)
{
	int numbers[256];
	fill(numbers, count);
	sort(numbers, count);
	return numbers[0] <= numbers[count - 1];
}
";

fn compiled(folder: &Path) -> Result<Image<'static>, Box<dyn Error>> {
    let (source, object) = (folder.join("sorter.c"), folder.join("sorter.o"));
    std::fs::write(&source, PLUGIN)?;
    // The NOPs at each function's entry make it traceable.
    let flags = ["-O2", "-fPIC", "-fpatchable-function-entry=5", "-c", "-o"];
    if !Command::new("cc").args(flags).arg(&object).arg(&source).status()?.success() {
        return Err("cc cannot compile it".into());
    }
    // SAFETY: the object is compiled from the text above.
    Ok(unsafe { Image::trusted(std::fs::read(object)?) }.named("sorter"))
}

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args().nth(1).unwrap_or_else(|| "chart.svg".into());
    let folder = tempfile::tempdir()?;
    let host = Host::builder().build()?;
    let sorter = host.load(&compiled(folder.path())?)?;
    let trace = host.trace_functions(&TraceOptions::new(Mode::Graph).pattern("sorter:*")?)?;
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                // SAFETY: `run` has this type.
                let run = unsafe { sorter.symbol::<extern "C" fn(i32) -> i32>("run") }.expect("it is there");
                assert_eq!(run(60), 1);
            });
        }
    });
    let chart = Chart::new(&trace.finish());
    std::fs::write(&path, chart.to_string())?;
    println!("{path}: {} calls, {} missing", chart.bars.len(), chart.missing);
    Ok(())
}

/// A call.
struct Bar {
    thread: u32,
    function: u32,
    /// The number of enclosing calls.
    depth: usize,
    /// Nanoseconds.
    from: u64,
    to: u64,
}

/// A whole recording. [`fmt::Display`] draws it as SVG.
struct Chart {
    functions: Vec<TracedFunction>,
    threads: Vec<RecordedThread>,
    bars: Vec<Bar>,
    missing: u64,
}

impl Chart {
    fn new(batch: &Batch) -> Chart {
        let (mut bars, mut open) = (Vec::<Bar>::new(), BTreeMap::<u32, Vec<usize>>::new());
        for record in &batch.records {
            let stack = open.entry(record.thread).or_default();
            match record.what {
                ThreadAction::Enter => {
                    let (thread, function, depth) = (record.thread, record.function, stack.len());
                    stack.push(bars.len());
                    bars.push(Bar { thread, function, depth, from: record.at, to: record.at });
                }
                ThreadAction::Leave | ThreadAction::Unwound => {
                    if let Some(bar) = stack.pop() {
                        bars[bar].to = record.at;
                    }
                }
                ThreadAction::Call { .. } => {}
            }
        }
        // A call without a return lasts until the end.
        let end = batch.records.iter().map(|record| record.at).max().unwrap_or_default();
        open.into_values().flatten().for_each(|bar| bars[bar].to = end);
        let (functions, threads) = (batch.functions.clone(), batch.threads.clone());
        Chart { functions, threads, bars, missing: batch.missed.total() }
    }
}

/// Pixels.
const WIDTH: f64 = 1200.0;
const ROW: usize = 18;
const LETTER: f64 = 7.0;

impl fmt::Display for Chart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let begin = self.bars.iter().map(|bar| bar.from).min().unwrap_or_default();
        let end = self.bars.iter().map(|bar| bar.to).max().unwrap_or_default();
        let scale = WIDTH / pixels(end - begin).max(1.0);
        // A row for each thread's name, followed by the rows of its calls.
        let deepest = |thread: u32| self.bars.iter().filter(|bar| bar.thread == thread).map(|bar| bar.depth + 1).max();
        let mut tops = Vec::new();
        let mut rows = 0;
        for thread in (0..).take(self.threads.len()) {
            tops.push(rows);
            rows += 2 + deepest(thread).unwrap_or_default();
        }
        writeln!(f, r#"<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{}""#, rows * ROW)?;
        writeln!(f, r#"font-family="monospace" font-size="12"><rect width="100%" height="100%" fill="white"/>"#)?;
        for (thread, top) in self.threads.iter().zip(&tops) {
            let (name, y) = (escaped(&thread.name), top * ROW + ROW - 5);
            writeln!(f, r#"<text x="2" y="{y}" font-weight="bold">{name}-{}</text>"#, thread.tid)?;
        }
        for bar in &self.bars {
            let Some(top) = usize::try_from(bar.thread).ok().and_then(|thread| tops.get(thread)) else { continue };
            let function = usize::try_from(bar.function).ok().and_then(|function| self.functions.get(function));
            let Some(function) = function else { continue };
            let (x, width) = (pixels(bar.from - begin) * scale, (pixels(bar.to - bar.from) * scale).max(0.5));
            let y = (top + 1 + bar.depth) * ROW;
            let colour = function.name.bytes().fold(7, |hue: u32, byte| (hue * 31 + u32::from(byte)) % 60);
            let (name, module) = (escaped(&function.name), escaped(&function.module));
            let took = bar.to - bar.from;
            write!(f, r#"<g><title>{name} [{module}] {}.{:03} us</title>"#, took / 1000, took % 1000)?;
            write!(f, r#"<rect x="{x:.2}" y="{y}" width="{width:.2}" height="{}" rx="1" "#, ROW - 1)?;
            write!(f, r#"fill="hsl({colour}, 85%, 65%)"/>"#)?;
            if pixels(wide(function.name.chars().count())) * LETTER + 4.0 < width {
                write!(f, r#"<text x="{:.2}" y="{}">{name}</text>"#, x + 2.0, y + ROW - 5)?;
            }
            writeln!(f, "</g>")?;
        }
        writeln!(f, "</svg>")
    }
}

/// Converts a number for drawing.
fn pixels(number: u64) -> f64 {
    let [high, low] = [number >> 32, number & 0xffff_ffff].map(|half| u32::try_from(half).unwrap_or(u32::MAX));
    f64::from(high) * 4_294_967_296.0 + f64::from(low)
}

fn wide(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

/// Escapes a name, which comes from a file of another author.
fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for letter in text.chars() {
        match letter {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            // XML cannot represent most control characters.
            letter if letter.is_control() => write!(escaped, "\\u{{{:x}}}", u32::from(letter)).unwrap_or_default(),
            letter => escaped.push(letter),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use modload::trace::{Batch, Record, RecordedThread, ThreadAction, TracedFunction};

    use super::Chart;

    fn record(at: u64, function: u32, what: ThreadAction) -> Record {
        Record { thread: 0, at, function, what }
    }

    #[test]
    fn calls_lie_below_their_callers_and_names_cannot_break_out() {
        let function = |name: &str| TracedFunction { module: "m".into(), name: name.into() };
        let batch = Batch {
            functions: vec![function("outer"), function("<script>\"&\u{1b}")],
            threads: vec![RecordedThread { tid: 7, name: "</text>".into() }],
            records: vec![
                record(1000, 0, ThreadAction::Enter),
                record(2000, 1, ThreadAction::Enter),
                record(3000, 1, ThreadAction::Unwound),
                record(3500, 1, ThreadAction::Enter),
                record(5000, 1, ThreadAction::Leave),
            ],
            ..Batch::default()
        };
        let chart = Chart::new(&batch);
        let bars: Vec<_> = chart.bars.iter().map(|bar| (bar.depth, bar.from, bar.to)).collect();
        assert_eq!(bars, [(0, 1000, 5000), (1, 2000, 3000), (1, 3500, 5000)]);
        let svg = chart.to_string();
        assert_eq!(svg.matches("<rect ").count(), 4, "{svg}");
        assert!(svg.contains(r#"<rect x="300.00" y="36" width="300.00""#), "{svg}");
        assert!(svg.contains("&lt;script&gt;&quot;&amp;\\u{1b} [m] 1.000 us"), "{svg}");
        assert!(svg.contains("&lt;/text&gt;-7</text>") && !svg.contains("<script"), "{svg}");
        assert!(Chart::new(&Batch::default()).to_string().ends_with("</svg>\n"));
    }
}
