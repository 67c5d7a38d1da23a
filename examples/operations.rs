//! A host whose plugins call its operations through a table, and the cost of such a call: through a pointer to the
//! table, through the table (where the loader makes it a direct call), and directly.

use std::error::Error;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use modload::{Host, Image, Module};

const ROUNDS: i64 = 20;

/// The operations. They are a module, so that they are in reach of other modules.
const PROVIDER: &str = "long op_add(long a, long b) { return a + b; }\n";

const PLUGIN: &str = "\
struct host_ops { long (*add)(long, long); };
extern const struct host_ops host_ops __attribute__((visibility(\"hidden\")));
static const struct host_ops *volatile pointer = &host_ops;
#define NOINLINE __attribute__((noinline))
static NOINLINE long own_add(long a, long b) { return a + b; }
NOINLINE long through_pointer(long a, long b) { return pointer->add(a, b) + 1; }
NOINLINE long through_table(long a, long b) { return host_ops.add(a, b) + 1; }
NOINLINE long directly(long a, long b) { return own_add(a, b) + 1; }
#define LOOP(name) long loop_##name(long n) { long sum = 0; while (n--) sum = name(sum, n); return sum; }
LOOP(through_pointer)
LOOP(through_table)
LOOP(directly)
";

fn compiled(folder: &Path, name: &str, text: &str) -> Result<Image<'static>, Box<dyn Error>> {
    let (source, object) = (folder.join(name).with_extension("c"), folder.join(name).with_extension("o"));
    std::fs::write(&source, text)?;
    if !Command::new("cc").args(["-O2", "-c", "-o"]).arg(&object).arg(&source).status()?.success() {
        return Err("cc cannot compile it".into());
    }
    // SAFETY: the object is compiled from the text above.
    Ok(unsafe { Image::trusted(std::fs::read(object)?) }.named(name))
}

/// Returns nanoseconds per call.
fn measure(plugin: &Module, name: &str, calls: i64) -> Result<f64, Box<dyn Error>> {
    // SAFETY: all three loops have this type.
    let run = unsafe { plugin.symbol::<extern "C" fn(i64) -> i64>(name)? };
    // Each loop adds the counter down to 0, and one more per call.
    assert_eq!(run(10), 45 + 10);
    let begun = Instant::now();
    run(calls);
    let calls = u32::try_from(calls)?;
    Ok(begun.elapsed().as_secs_f64() * 1e9 / f64::from(calls))
}

fn main() -> Result<(), Box<dyn Error>> {
    let calls = std::env::args().nth(1).map_or(Ok(50_000_000), |calls| calls.parse())?;
    let folder = tempfile::tempdir()?;
    let operations = Host::builder().build()?;
    let provider = operations.load(&compiled(folder.path(), "provider", PROVIDER)?)?;
    // SAFETY: only the address is taken.
    let add = *unsafe { provider.symbol::<*const ()>("op_add")? };

    let host = Host::builder().operations("host_ops", &[add]).build()?;
    let plugin = host.load(&compiled(folder.path(), "plugin", PLUGIN)?)?;
    let ways = [
        ("through a pointer to the table", "loop_through_pointer"),
        ("through the table, made direct", "loop_through_table"),
        ("directly", "loop_directly"),
    ];
    // Alternating, with the best of several rounds, to exclude the effects of other work on the machine.
    let mut best = [f64::INFINITY; 3];
    for _ in 0..ROUNDS {
        for ((_, name), best) in ways.iter().zip(&mut best) {
            *best = best.min(measure(&plugin, name, calls / ROUNDS)?);
        }
    }
    for ((what, _), best) in ways.iter().zip(best) {
        println!("{what:<32} {best:.2} ns a call");
    }
    Ok(())
}
