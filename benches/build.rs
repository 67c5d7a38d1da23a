//! Compiles the floor into a static library.

use std::env;
use std::path::Path;
use std::process::{Command, ExitCode};

fn main() -> ExitCode {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=floor");
    let out = env::var("OUT_DIR").unwrap_or_default();
    let (object, library) = (Path::new(&out).join("floor.o"), Path::new(&out).join("libfloor.a"));
    let mut compile = Command::new("cc");
    compile.args(["-std=gnu11", "-O2", "-Wall", "-Wextra", "-fPIC", "-c", "floor/floor.c", "-o"]);
    let mut archive = Command::new("ar");
    archive.arg("crs").arg(&library);
    for step in [compile.arg(&object), archive.arg(&object)] {
        match step.status() {
            Ok(status) if status.success() => {}
            failed => {
                println!("cargo::error={step:?}: {failed:?}");
                return ExitCode::FAILURE;
            }
        }
    }
    println!("cargo::rustc-link-search=native={out}");
    ExitCode::SUCCESS
}
