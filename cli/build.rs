//! Compiles the modules that are built into `modload --demo`. The folder `demo` has links to fixtures and to the SDK's headers, so that
//! this package has all that it needs.

use std::env;
use std::error::Error;
use std::path::Path;
use std::process::Command;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-env-changed=CC");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=demo");
    let out = env::var("OUT_DIR")?;
    let compiler = env::var("CC").unwrap_or_else(|_| "cc".into());
    // A compiler may be given with options.
    let mut words = compiler.split_whitespace();
    let (program, options) = (words.next().unwrap_or("cc"), words);
    let options: Vec<&str> = options.collect();
    for name in ["greet", "guest", "greet_fix", "greet_refix"] {
        let mut compile = Command::new(program);
        compile.args(&options);
        // The demo traces and patches functions of these modules.
        compile.args([
            "-O2",
            "-fPIC",
            "-fvisibility=hidden",
            "-fpatchable-function-entry=5",
            "-I",
            "demo/include",
            "-c",
        ]);
        compile.arg(format!("demo/{name}.c")).arg("-o").arg(Path::new(&out).join(format!("{name}.o")));
        match compile.status() {
            Ok(status) if status.success() => {}
            Ok(status) => return Err(format!("{compile:?}: {status}").into()),
            Err(error) => {
                return Err(format!("{compile:?}: {error}; modload's commands need a C compiler to be built").into());
            }
        }
    }
    Ok(())
}
