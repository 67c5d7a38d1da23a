//! Bugs with names, and records of other engines that wait.

use modload::Host;
use modload::error::sentence;

use crate::scene::{TAIL, WAYS, built, bytes, call, host, linked, linked_bytes, loaded};
use crate::target::TARGET;

/// Without the red zone, for calls out of assembly.
const WAY: usize = 2;

/// An alternative whose replacement, or whose site, calls a function of the target.
pub(crate) const ALTERNATIVE: &str = r#"
#define CALLED(site, feature, replacement) ({ int result;                                                    \
	__asm__ volatile("1: " site "\n2:\n"                                                                   \
		".pushsection .altinstr_replacement, \"ax\"\n3: " replacement "\n4:\n.popsection\n"             \
		".pushsection .altinstructions, \"a\"\n.long 1b - ., 3b - .\n.word " feature "\n"                \
		".byte 2b - 1b, 4b - 3b\n.popsection"                                                              \
		: "=a"(result), "+D"(n) : : "rcx", "rdx", "rsi", "r8", "r9", "r10", "r11", "memory", "cc");         \
	result; })
#define TWICE "call .modload.klp.target.twice.0"
#define ALWAYS "3*32+21"
#define NEVER "0x8000 + 3*32+21"
static int new_answer(int n)
{
	int sum = CALLED("movl $1, %%eax", ALWAYS, TWICE);
	sum += 100 * CALLED("movl $2, %%eax", NEVER, TWICE);
	sum += 1000 * CALLED(TWICE, ALWAYS, "movl $3, %%eax");
	sum += 10000 * CALLED(TWICE, NEVER, "movl $4, %%eax");
	/* Two for one place, of which one has nothing to do with the target: the later one holds. */
	int result;
	__asm__ volatile("1: movl $5, %%eax\n"
		".pushsection .altinstr_replacement, \"ax\"\n2: " TWICE "\n3: movl $6, %%eax\n.popsection\n"
		".pushsection .altinstructions, \"a\"\n.long 1b - ., 2b - .\n.word " ALWAYS "\n.byte 5, 5\n"
		".long 1b - ., 3b - .\n.word " ALWAYS "\n.byte 5, 5\n.popsection"
		: "=a"(result), "+D"(n) : : "rcx", "rdx", "rsi", "r8", "r9", "r10", "r11", "memory", "cc");
	return sum + 100000 * result;
}
"#;

pub(crate) fn alternatives_that_call_an_absent_module() {
    let host = host();
    let patch = host.load(&linked("patch", &format!("{ALTERNATIVE}{TAIL}"), WAYS[WAY])).unwrap();
    let untouched = bytes(&patch, &["."]);
    for _ in 0..2 {
        let target = host.load(&built("target", TARGET)).unwrap();
        assert_eq!(call(&target, "ask", 1), 2 + 200 + 3000 + 20_000 + 600_000);
        target.unload().unwrap();
        assert!(bytes(&patch, &["."]) == untouched);
    }
}

/// Linux's `irq_disable`, which in a process does nothing, by way of the table of the host or of the target.
fn operation(table: &str) -> String {
    let text = r#"
static int new_answer(int n)
{
	__asm__ volatile("1: call *TABLE+8*31(%%rip)\n2:\n.pushsection .parainstructions, \"a\"\n.balign 8\n"
		".quad 1b\n.byte 31, 2b - 1b\n.balign 8\n.popsection" ::: "memory", "cc");
	return n + 7;
}
"#;
    text.replace("TABLE", table)
}

/// A return through a thunk, with a waiting relocation on the operand.
const LATE: &str = r#"
__asm__(".pushsection .text\n.type late, @function\nlate: jmp __x86_return_thunk\n.size late, . - late\n"
	".reloc late + 1, R_X86_64_PC32, .modload.klp.target.twice.0 - 4\n.popsection\n"
	".pushsection .return_sites, \"a\"\n.long late - .\n.popsection");
static int new_answer(int n) { return n; }
"#;

/// A relocation of a live patch onto a site that has been rewritten.
pub(crate) fn kpatch_580_a_relocation_onto_a_rewritten_site() {
    // If the relocation is applied early, the paravirt engine reads the result and replaces the call.
    let host = Host::builder().process_symbols().linux_operations().build().unwrap();
    let early = linked_bytes(&format!("{}{TAIL}", operation(".modload.klp.vmlinux.pv_ops.0")), WAYS[WAY]);
    let patch = host.load(&loaded("patch", early.clone())).unwrap();
    let target = host.load(&built("target", TARGET)).unwrap();
    assert_eq!(call(&target, "ask", 1), 8);
    target.unload().unwrap();
    drop(patch);
    host.disable_patch("patch").unwrap();
    host.unload("patch").unwrap();

    // The bug: the relocation was grouped with the relocations that wait for a module.
    let section = early.windows(17).position(|bytes| bytes == b".klp.rela.vmlinux").unwrap();
    let mut misplaced = early;
    misplaced[section + 10..section + 17].copy_from_slice(b"targets");
    let refused = sentence(&host.load(&loaded("patch", misplaced)).unwrap_err());
    assert!(refused.contains("a relocation of one object is of a symbol of another"), "{refused}");

    // A reference to a module waits together with the record that depends on the reference, and is as correct as a
    // reference to the host.
    let module = linked("patch", &format!("{}{TAIL}", operation(".modload.klp.target.count.0")), WAYS[WAY]);
    let patch = host.load(&module).unwrap();
    let untouched = bytes(&patch, &[".text"]);
    let target = host.load(&built("target", TARGET)).unwrap();
    assert_eq!(call(&target, "ask", 1), 8);
    assert!(bytes(&patch, &[".text"]) != untouched);
    target.unload().unwrap();
    assert!(bytes(&patch, &[".text"]) == untouched);
    drop(patch);
    host.disable_patch("patch").unwrap();
    host.unload("patch").unwrap();

    // A waiting relocation on a place that does not wait would be applied too late.
    let refused = host.load(&linked("patch", &format!("{LATE}{TAIL}"), WAYS[WAY])).unwrap_err();
    assert_eq!(refused.stage.to_string(), "specialise");
    let refused = sentence(&refused);
    for part in [
        "R_X86_64_PC32 at .text+0x",
        " in late against \".klp.sym.target.twice,0\", which writes 4 bytes, waits for \"target\", but return site 0 of section ",
        " of the same module has rewritten its place already: [e9, ",
        " (jmp 0x",
        " became [c3, cc, cc, cc, cc] (ret; int3; int3; int3; int3)",
    ] {
        assert!(refused.contains(part), "{part}: {refused}");
    }
}

/// A key of a module that is not loaded when the patch's own jump labels are made. Linux refuses such a patch; earlier
/// versions read a key at an invalid address.
pub(crate) fn kpatch_944_jump_labels_before_their_relocations() {
    const KEYS: &str = r#"
#include <modload/module.h>
#include <modload/jump_label.h>
static __attribute__((used)) DEFINE_STATIC_KEY_TRUE(feature);
static __attribute__((noinline, used)) int answer(int n) { __asm__ volatile(""); return n; }
__attribute__((visibility("default"))) int ask(int n) { return answer(n); }
MODULE_LICENSE("GPL");
"#;
    const PATCH: &str = r#"
static DEFINE_STATIC_KEY_FALSE(own);
DECLARE_STATIC_KEY_TRUE(feature) KLP_SYMBOL(target, feature, 0);
static int new_answer(int n)
{
	if (static_branch_unlikely(&own))
		n += 10;
	if (static_branch_likely(&feature))
		n += 100;
	return n;
}
__attribute__((visibility("default"))) int switch_own(int on)
{
	return on ? static_branch_enable(&own) : static_branch_disable(&own);
}
"#;
    let host = host();
    let patch = host.load(&linked("patch", &format!("{PATCH}{TAIL}"), WAYS[0])).unwrap();
    // The patch's own keys are switched while the others wait.
    call(&patch, "switch_own", 1);
    let target = host.load(&built("target", KEYS)).unwrap();
    assert_eq!(call(&target, "ask", 1), 111);
    call(&patch, "switch_own", 0);
    assert_eq!(call(&target, "ask", 1), 101);
    target.unload().unwrap();
    call(&patch, "switch_own", 1);
    let target = host.load(&built("target", KEYS)).unwrap();
    assert_eq!(call(&target, "ask", 1), 111);
}

/// A target whose init fails is patched before init, and unloaded afterwards. The references to the target are taken
/// back. Otherwise the patch would lead the next target of this name to memory of another module.
pub(crate) fn kpatch_699_the_targets_init_fails() {
    const FAILS: &str = r#"
#include <modload/module.h>
static __attribute__((used)) int count = 4;
static __attribute__((noinline, used)) int twice(int n) { __asm__ volatile(""); return 2 * n; }
static __attribute__((noinline, used)) int answer(int n) { __asm__ volatile(""); return n + 1; }
static int __init start(void) { return answer(1) == 8008 ? -5 : -22; }
module_init(start);
"#;
    let host = host();
    let text = format!("{}{TAIL}", crate::target::PATCH);
    let patch = host.load(&linked("patch", &text, WAYS[0])).unwrap();
    let untouched = bytes(&patch, &["."]);
    for _ in 0..2 {
        let failed = host.load(&built("target", FAILS)).unwrap_err();
        assert_eq!(
            (failed.stage.to_string().as_str(), failed.error.errno()),
            ("init", 5),
            "it is patched when it runs: {failed}"
        );
        assert!(bytes(&patch, &["."]) == untouched);
    }
    let target = host.load(&built("target", TARGET)).unwrap();
    assert_eq!(call(&target, "ask", 3), 24_080);
}
