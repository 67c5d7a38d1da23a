//! Compiles each floor (the minimal implementation of a task in C) to a static library.

use std::env;
use std::path::Path;
use std::process::{Command, ExitCode};

fn main() -> ExitCode {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=floor");
    let out = env::var("OUT_DIR").unwrap_or_default();
    for name in ["floor", "poke", "stores", "trace"] {
        let object = Path::new(&out).join(format!("{name}.o"));
        let mut compile = Command::new("cc");
        compile.args(["-std=gnu11", "-O2", "-Wall", "-Wextra", "-fPIC", "-pthread", "-c", "-o"]).arg(&object);
        compile.arg(format!("floor/{name}.c"));
        let mut archive = Command::new("ar");
        archive.arg("crs").arg(Path::new(&out).join(format!("lib{name}.a"))).arg(&object);
        for step in [&mut compile, &mut archive] {
            match step.status() {
                Ok(status) if status.success() => {}
                failed => {
                    println!("cargo::error={step:?}: {failed:?}");
                    return ExitCode::FAILURE;
                }
            }
        }
    }
    println!("cargo::rustc-link-search=native={out}");
    ExitCode::SUCCESS
}
