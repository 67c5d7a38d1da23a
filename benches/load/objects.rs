//! The loaded objects: a tiny and a medium one, compiled once and also linked for dlopen.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use modload_fixtures::{Compiler, Language, generate_medium, object_from_text};

/// The type of the called function: `int add(int, int)`.
pub(crate) type Function = extern "C" fn(i32, i32) -> i32;

/// An object and its shared libraries.
pub(crate) struct Object {
    pub(crate) name: &'static str,
    pub(crate) path: PathBuf,
    pub(crate) bytes: Vec<u8>,
    pub(crate) linked: Vec<Linked>,
}

/// The code of an object as a shared library.
pub(crate) struct Linked {
    pub(crate) contender: &'static str,
    pub(crate) path: PathBuf,
    pub(crate) bytes: Vec<u8>,
}

/// One function, two variables, a string.
const TINY: &str = r#"
static volatile int calls = 1;
static const char *volatile last = "nothing yet";

__attribute__((visibility("default"))) int add(int a, int b)
{
	calls++;
	last = "add";
	return a + b;
}
"#;

/// The called function of the medium object.
const ENTRY: &str = r#"
__attribute__((visibility("default"))) int add(int a, int b)
{
	return run(a + b);
}
"#;

const HIDDEN: &[&str] = &["-O2", "-fPIC", "-fvisibility=hidden"];
const VISIBLE: &[&str] = &["-O2", "-fPIC"];

impl Object {
    pub(crate) fn tiny(folder: &Path) -> Result<Object, Box<dyn Error>> {
        Object::new("tiny", TINY, &[("dlopen", HIDDEN)], folder)
    }

    /// 1,000 functions, about 12,000 relocations.
    pub(crate) fn medium(folder: &Path) -> Result<Object, Box<dyn Error>> {
        let source = generate_medium(1000, 12) + ENTRY;
        Object::new("medium", &source, &[("dlopen", HIDDEN), ("dlopen, default visibility", VISIBLE)], folder)
    }

    fn new(
        name: &'static str,
        source: &str,
        links: &[(&'static str, &[&str])],
        folder: &Path,
    ) -> Result<Object, Box<dyn Error>> {
        let compile = |flags| object_from_text(name, Language::C, source, Compiler::Gcc, flags);
        // Objects and libraries are on the same file system.
        let path = folder.join(format!("{name}.o"));
        fs::copy(compile(HIDDEN)?, &path)?;
        let mut linked = Vec::new();
        for (contender, flags) in links {
            let library = folder.join(format!("{name}-{}.so", linked.len()));
            let status = Command::new("cc").arg("-shared").arg("-o").arg(&library).arg(compile(flags)?).status()?;
            if !status.success() {
                return Err(format!("cc -shared: {status}").into());
            }
            linked.push(Linked { contender, bytes: fs::read(&library)?, path: library });
        }
        Ok(Object { name, bytes: fs::read(&path)?, path, linked })
    }
}
