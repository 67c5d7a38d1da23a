//! Compiles the modules that are built into `modload --demo`.

use std::error::Error;
use std::path::Path;

use modload_fixtures::{Compiler, Fixture};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-env-changed=CC");
    let out = std::env::var("OUT_DIR")?;
    for name in ["greet", "guest", "greet_fix", "greet_refix"] {
        let fixture = Fixture::new(name);
        for input in fixture.inputs()? {
            println!("cargo::rerun-if-changed={}", input.display());
        }
        // The demo traces and patches functions of these modules.
        let flags = ["-O2", "-fPIC", "-fvisibility=hidden", "-fpatchable-function-entry=5"];
        let object = fixture.object(Compiler::Cc, &flags)?;
        std::fs::copy(object, Path::new(&out).join(format!("{name}.o")))?;
    }
    Ok(())
}
