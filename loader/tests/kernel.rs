//! Every module of Debian's kernel can be looked at, though none can be loaded yet.

use std::fs;
use std::io::{self, Write};

use modload_fixtures::Kernel;
use modload_loader::Inspection;

#[test]
fn every_module_of_debians_kernel_can_be_inspected() {
    let Some(kernel) = Kernel::find() else {
        // Written past the harness's capture, so that this is not mistaken for a pass.
        let reason = "MODLOAD_KERNEL is not set, see cargo xtask kernel";
        writeln!(io::stderr().lock(), "SKIPPED inspecting Debian's modules: {reason}").unwrap();
        return;
    };
    let modules = kernel.modules().unwrap();
    assert!(modules.len() > 1000, "{} modules", modules.len());
    for path in &modules {
        let inspection = Inspection::of(&fs::read(path).unwrap(), "module", 1 << 30);
        let inspection = inspection.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let file_name = path.file_stem().unwrap().to_string_lossy().replace('-', "_");
        assert_eq!(inspection.name, file_name, "{}", path.display());
        assert!(inspection.modinfo.iter().any(|(key, _)| key == "vermagic"), "{}", path.display());
    }
    println!("{} modules inspected", modules.len());
}
