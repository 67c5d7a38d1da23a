//! What a linker and a compiler's driver do for a program: libraries, data of libraries that lies far away, archives that
//! every program gets, and bounds of the program.

use std::process::ExitCode;

use modload::error::sentence;
use modload::{Host, Image, Module};
use modload_fixtures::{Compiler, Language, object_from_text};
use modload_tests::{case, run};

fn main() -> ExitCode {
    run(&[
        case!(a_module_has_its_library_as_long_as_it_lives),
        case!(a_library_that_is_not_there_is_named),
        case!(constant_data_of_libraries_is_near).needing("g++"),
        case!(other_data_of_libraries_is_refused),
        case!(bounds_of_the_program_are_not_the_modules),
        case!(what_a_driver_adds_is_named),
        case!(dladdr_knows_modules),
    ])
}

fn host() -> Host {
    Host::builder().process_symbols().build().unwrap()
}

fn image(language: Language, text: &str, flags: &[&str]) -> Image<'static> {
    let flags = [&["-O2"], flags].concat();
    let object = object_from_text("linked", language, text, Compiler::Cc, &flags).unwrap();
    // SAFETY: the texts are ours.
    unsafe { Image::trusted(std::fs::read(object).unwrap()) }.named("linked")
}

fn refused(host: &Host, text: &str, flags: &[&str]) -> String {
    sentence(&host.load(&image(Language::C, text, flags)).unwrap_err())
}

fn call(module: &Module, name: &str, argument: u64) -> u64 {
    // SAFETY: the texts have functions that take an integer or nothing, and return a long.
    unsafe { module.call(name, &[argument]) }.unwrap()
}

/// Whether a library is mapped.
fn is_mapped(name: &str) -> bool {
    std::fs::read_to_string("/proc/self/maps").unwrap().contains(name)
}

/// The first is a library of glibc's that no program here uses.
const WITH_LIBRARY: &str = r#"
    #include <modload/module.h>
    MODULE_INFO(library, "libBrokenLocale.so.1");
    MODULE_INFO(library, "libm.so.6");
    double cbrt(double);
    long known(long cube) { return (long)(cbrt((double)cube) + 0.5); }"#;

fn a_module_has_its_library_as_long_as_it_lives() {
    let host = host();
    for _ in 0..3 {
        assert!(!is_mapped("libBrokenLocale"));
        let module = host.load(&image(Language::C, WITH_LIBRARY, &["-fPIC"])).unwrap();
        assert!(is_mapped("libBrokenLocale"));
        assert_eq!(call(&module, "known", 27), 3);
        module.unload().unwrap();
    }
    assert!(!is_mapped("libBrokenLocale"));
    // Without the offer of the process's symbols, a module cannot open libraries either.
    let refused = refused(&Host::builder().build().unwrap(), WITH_LIBRARY, &["-fPIC"]);
    assert!(refused.contains("which cannot be opened: this host does not offer"), "{refused}");
}

fn a_library_that_is_not_there_is_named() {
    let text =
        "#include <modload/module.h>\nMODULE_INFO(library, \"libnowhere.so.9\");\nint init_module(void) { return 0; }";
    let refused = refused(&host(), text, &["-fPIC"]);
    assert!(refused.contains("it asks for the library \"libnowhere.so.9\", which cannot be opened"), "{refused}");
    assert!(refused.contains("No such file"), "{refused}");
}

fn constant_data_of_libraries_is_near() {
    // SAFETY: the C++ runtime, whose constructors do no harm.
    unsafe { libc::dlopen(c"libstdc++.so.6".as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
    let host = host();
    let text = r#"
        #include <stdio.h>
        long number(long which) { return fileno(which == 0 ? stdin : which == 1 ? stdout : stderr); }
        FILE **place(void) { return &stderr; }
        long same(void) { return *place() == stderr && fflush(stdout) == 0; }"#;
    let module = host.load(&image(Language::C, text, &["-fPIE"])).unwrap();
    assert_eq!([0, 1, 2].map(|which| call(&module, "number", which)), [0, 1, 2]);
    assert_eq!(call(&module, "same", 0), 1);
    module.unload().unwrap();
    // A stream of strings has the library's virtual tables, which code of a program refers to directly.
    let text = r#"
        #include <sstream>
        #include <stdexcept>
        #include <typeinfo>
        struct Base { virtual ~Base() {} virtual long number() { return 1; } };
        struct Derived : Base { long number() override { return 2; } };
        static long length(const std::string &text) { return text.size(); }
        extern "C" long use(long number)
        {
            std::ostringstream stream;
            stream << "number " << number;
            Base *base = new Derived;
            long result = length(stream.str()) * 100 + (dynamic_cast<Derived *>(base) ? base->number() : 0) * 10;
            result += typeid(*base) == typeid(Derived);
            delete base;
            try {
                throw std::runtime_error(stream.str());
            } catch (const std::exception &error) {
                return result + (typeid(error) == typeid(std::runtime_error)) * 4;
            }
        }"#;
    let module = host.load(&image(Language::Cxx, text, &["-fPIE"])).unwrap();
    assert_eq!(call(&module, "use", 12345), 1225);
}

fn other_data_of_libraries_is_refused() {
    let text = "extern char **environ; long first(void) { return environ[0] != 0; }";
    let refused = refused(&host(), text, &["-fPIE"]);
    assert!(refused.contains("\"environ\"") && refused.contains("compile with -fPIC"), "{refused}");
    host().load(&image(Language::C, text, &["-fPIC"])).unwrap();
}

fn bounds_of_the_program_are_not_the_modules() {
    for name in ["_end", "etext", "__bss_start", "__data_start", "edata"] {
        let text = format!("extern char {name}[]; char *get(void) {{ return {name}; }}");
        let refused = refused(&host(), &text, &["-fPIC"]);
        assert!(refused.contains(name) && refused.contains("a linker defines it as a bound"), "{refused}");
        let weak = format!("extern char {name}[] __attribute__((weak)); long get(void) {{ return {name} != 0; }}");
        assert_eq!(call(&host().load(&image(Language::C, &weak, &["-fPIC"])).unwrap(), "get", 0), 0);
    }
    // The module's own definition counts.
    let own = "char end[4]; long get(void) { return end[0]; }";
    assert_eq!(call(&host().load(&image(Language::C, own, &["-fPIC"])).unwrap(), "get", 0), 0);
}

fn what_a_driver_adds_is_named() {
    let text = "int atexit(void (*)(void)); static void nothing(void) {} long get(void) { return atexit(nothing); }";
    let refused_of_c = refused(&host(), text, &["-fPIC"]);
    assert!(refused_of_c.contains("it is in libc_nonshared.a"), "{refused_of_c}");
    let text = "extern int __cpu_model[]; int get(void) { return __cpu_model[0]; }";
    let refused_of_compiler = refused(&host(), text, &["-fPIC"]);
    assert!(refused_of_compiler.contains("it is in libgcc.a"), "{refused_of_compiler}");
}

fn dladdr_knows_modules() {
    let text = r#"
        #define _GNU_SOURCE
        #include <dlfcn.h>
        #include <string.h>
        static volatile int variable[4];
        long find(long which)
        {
            Dl_info info;
            void *at = which == 0 ? (char *)find + 3 : which == 1 ? (void *)&variable[2] : (void *)strlen;
            if (!dladdr(at, &info) || !info.dli_fname)
                return 1;
            if (which == 2)
                return !strstr(info.dli_fname, "libc");
            if (strcmp(info.dli_fname, "linked") || !info.dli_fbase || !info.dli_sname)
                return 2;
            return which == 0 ? 4 * !!strcmp(info.dli_sname, "find") + 8 * (info.dli_saddr != (void *)find)
                              : 4 * !!strcmp(info.dli_sname, "variable") + 8 * (info.dli_saddr != (void *)variable);
        }
        long nothing(void) { Dl_info info; return dladdr((void *)8, &info); }"#;
    let host = host();
    let module = host.load(&image(Language::C, text, &["-fPIC"])).unwrap();
    assert_eq!([0, 1, 2].map(|which| call(&module, "find", which)), [0, 0, 0]);
    assert_eq!(call(&module, "nothing", 0), 0);
}
