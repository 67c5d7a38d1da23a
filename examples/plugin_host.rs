//! A program with plugins, in a dozen lines: loads the given objects and calls `run` in each.
//!
//! `cargo run --example plugin_host -- plugin.o ..`, where a plugin is `cc -O2 -fPIC -c` of `int run(void) { .. }`.

use modload::{Host, read_trusted};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let host = Host::builder().process_symbols().build()?;
    for path in std::env::args().skip(1) {
        // SAFETY: the user of this program has chosen the plugins.
        let plugin = host.load(&unsafe { read_trusted(&path)? })?;
        // SAFETY: every plugin must define `run` with this type.
        let run = unsafe { plugin.symbol::<extern "C" fn() -> i32>("run")? };
        println!("{}: run() = {}", plugin.name(), run());
    }
    Ok(())
}
