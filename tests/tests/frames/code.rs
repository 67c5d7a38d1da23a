//! Libraries that are compiled for a test and opened.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::process::Command;

use modload_fixtures::{Compiler, Language, object_from_text};

/// A library that stays open.
pub(crate) struct Library(*mut libc::c_void);

impl Library {
    /// Compiles a text, links the object, and opens the library so that calls are bound when they are made.
    pub(crate) fn of(name: &str, language: Language, text: &str, flags: &[&str]) -> Library {
        let object = object_from_text(name, language, text, Compiler::Cc, flags).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let library = folder.path().join(format!("lib{name}.so"));
        let program = if language == Language::Cxx { "g++" } else { "cc" };
        let linked =
            Command::new(program).args(["-shared", "-Wl,-z,lazy", "-o"]).args([&library, &object]).status().unwrap();
        assert!(linked.success());
        let path = CString::new(library.as_os_str().as_bytes()).unwrap();
        // SAFETY: a library of ours without constructors that do harm.
        let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_LAZY) };
        assert!(!handle.is_null(), "dlopen of {}", library.display());
        Library(handle)
    }

    /// The address of a symbol.
    pub(crate) fn symbol(&self, name: &str) -> *mut libc::c_void {
        let name = CString::new(name).unwrap();
        // SAFETY: an open library and a name.
        let symbol = unsafe { libc::dlsym(self.0, name.as_ptr()) };
        assert!(!symbol.is_null());
        symbol
    }

    /// A function `void (*)(void (*callback)(void))`.
    pub(crate) fn calls_back(&self, name: &str) -> extern "C" fn(extern "C" fn()) {
        // SAFETY: the test's text gives it this type.
        unsafe { std::mem::transmute::<*mut libc::c_void, extern "C" fn(extern "C" fn())>(self.symbol(name)) }
    }

    /// A function `long (*)(long)`.
    pub(crate) fn computes(&self, name: &str) -> extern "C" fn(i64) -> i64 {
        // SAFETY: the test's text gives it this type.
        unsafe { std::mem::transmute::<*mut libc::c_void, extern "C" fn(i64) -> i64>(self.symbol(name)) }
    }

    /// Closes the library.
    pub(crate) fn close(self) {
        // SAFETY: opened once, and no thread runs its code.
        assert_eq!(unsafe { libc::dlclose(self.0) }, 0);
    }
}
