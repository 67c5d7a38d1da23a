//! References of a patch to the program itself: to functions and variables that the program does not export.

use modload::error::sentence;

use crate::scene::{TAIL, WAYS, call, host, linked};

#[link(name = "entries", kind = "static")]
unsafe extern "C" {
    static patchable_functions: [extern "C" fn(i32) -> i32; 8];
    static counted_functions: [extern "C" fn(i32) -> i32; 8];
}

/// Two functions of one name, by their positions, and a variable; by a call, by address, from data, and from init, too.
const PATCH: &str = r#"
int first(int n) KLP_SYMBOL(vmlinux, add_3, 1);
int second(int n) KLP_SYMBOL(vmlinux, add_3, 2);
extern int (*const functions[8])(int) KLP_SYMBOL(vmlinux, patchable_functions, 0);
static int (*volatile by_address)(int) = second;
static int new_answer(int n) { return first(n); }
static int at_init;
static int __init early(void) { at_init = first(1); return at_init != 4; }
#define SHOWN __attribute__((visibility("default")))
SHOWN int calls(int n) { return first(n) + 100 * second(n) + 10000 * by_address(n) + 1000000 * functions[7](n) + at_init; }
SHOWN long is_first(void *function) { return function == (void *)first; }
SHOWN long is_second(void *function) { return function == (void *)second && function == (void *)by_address; }
"#;

pub(crate) fn what_the_program_does_not_export() {
    // SAFETY: written once, when the program is linked.
    let (patchable, counted) = unsafe { (patchable_functions[2], counted_functions[2]) };
    #[expect(clippy::as_conversions, reason = "the only way from a function pointer to its address")]
    let [patchable, counted] = [patchable, counted].map(|function| (function as *const ()).expose_provenance());
    let text = format!("{PATCH}{}", TAIL.replace("return klp_enable", "return early() ? -22 : klp_enable"));
    for way in WAYS {
        let host = host();
        let loaded = host.load(&linked("patch", &text, way));
        if way.1.contains(&"-mcmodel=kernel") {
            // Symbols that such code refers to directly must be within 2 GiB, and the program is not.
            let refused = sentence(&loaded.unwrap_err());
            assert!(
                refused.contains(".klp.sym.vmlinux.patchable_functions,0")
                    && refused.contains("beyond its 32-bit field"),
                "{refused}"
            );
            continue;
        }
        let patch = loaded.unwrap_or_else(|error| panic!("{way:?}: {error}"));
        assert_eq!(call(&patch, "calls", 1), 4 + 400 + 40_000 + 9_000_000 + 4, "{way:?}");
        let is = |function: &str, at: usize| call(&patch, function, u64::try_from(at).unwrap());
        let found =
            [is("is_first", patchable), is("is_first", counted), is("is_second", patchable), is("is_second", counted)];
        assert!(matches!(found, [1, 0, 0, 1] | [0, 1, 1, 0]), "{way:?}: {found:?}");
    }
}
