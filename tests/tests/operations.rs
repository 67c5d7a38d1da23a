//! Operations tables: calls through a table become direct calls if the function is in reach. Otherwise they stay calls
//! through the module's own copy of the table.

use std::process::ExitCode;

use modload::error::sentence;
use modload::{Host, Input};
use modload_fixtures::{Compiler, Language, object_from_text};
use modload_tests::{case, image_from_text};

fn main() -> ExitCode {
    modload_tests::run(&[
        case!(calls_of_what_is_in_reach_are_direct),
        case!(calls_of_what_is_far_go_through_the_table),
        case!(who_names_another_table_is_told),
        case!(who_wants_more_than_the_table_has_is_told),
        case!(no_alternative_brings_back_what_only_a_kernel_may_do),
        case!(every_feature_that_user_space_must_not_have_is_left_out_of_code),
        case!(exports_align_the_stacks_of_those_who_do_not),
        case!(explanations_stand_in_nobodys_way),
    ])
}

const PLUGIN: &str = "struct host_ops { long (*add)(long, long); long (*take)(long); };\n\
    extern const struct host_ops host_ops __attribute__((visibility(\"hidden\")));\n\
    long called(long a) { return host_ops.add(a, 2) + 1; }\n\
    long jumped(long a) { return host_ops.take(a); }\n\
    const struct host_ops *where(void) { return &host_ops; }\n";

extern "C" fn add(a: i64, b: i64) -> i64 {
    a + b
}

extern "C" fn take(a: i64) -> i64 {
    a - 1
}

fn results(host: &Host) {
    let plugin = host.load(&image_from_text("plugin", PLUGIN)).unwrap();
    // SAFETY: that is their type.
    let called = unsafe { plugin.symbol::<extern "C" fn(i64) -> i64>("called").unwrap() };
    // SAFETY: the same.
    let jumped = unsafe { plugin.symbol::<extern "C" fn(i64) -> i64>("jumped").unwrap() };
    assert_eq!((called(40), jumped(40)), (43, 39));
}

/// Returns the engines that rewrite the plugin's calls.
fn engines(host: &Host) -> Vec<String> {
    let object = object_from_text("plugin", Language::C, PLUGIN, Compiler::Cc, &["-O2", "-fPIC"]).unwrap();
    let input = Input { name: "plugin.o".into(), bytes: std::fs::read(object).unwrap().into() };
    let explained = ["called", "jumped"]
        .map(|function| host.explain(std::slice::from_ref(&input), "plugin", function).unwrap().changes);
    explained.into_iter().flatten().map(|change| change.engine).collect()
}

fn calls_of_what_is_in_reach_are_direct() {
    let others = Host::builder().build().unwrap();
    let text = "long near_add(long a, long b) { return a + b; } long near_take(long a) { return a - 1; }";
    let provider = others.load(&image_from_text("provider", text)).unwrap();
    // SAFETY: only addresses are taken.
    let functions = ["near_add", "near_take"].map(|name| *unsafe { provider.symbol::<*const ()>(name).unwrap() });
    let host = Host::builder().operations("host_ops", &functions).build().unwrap();
    results(&host);
    assert_eq!(engines(&host), ["relocation", "paravirt site", "relocation", "paravirt site"]);
}

/// Returns a host whose functions no module can reach directly.
fn far_host() -> Host {
    let add: extern "C" fn(i64, i64) -> i64 = add;
    let take: extern "C" fn(i64) -> i64 = take;
    #[expect(clippy::as_conversions, reason = "the only way from a function pointer to its address")]
    let functions = [add as *const (), take as *const ()];
    Host::builder().operations("host_ops", &functions).build().unwrap()
}

fn calls_of_what_is_far_go_through_the_table() {
    let host = far_host();
    results(&host);
    assert_eq!(engines(&host), ["relocation", "relocation"]);
}

fn who_names_another_table_is_told() {
    let host = Host::builder().operations("other_ops", &[]).build().unwrap();
    let refused = sentence(&host.load(&image_from_text("plugin", PLUGIN)).unwrap_err());
    assert!(refused.contains("\"host_ops\""), "{refused}");
}

/// Explanations conflict neither with a module of any name nor with each other.
fn explanations_stand_in_nobodys_way() {
    let host = far_host();
    let named = host.load(&image_from_text("(plugin)", "int named(void) { return 1; }")).unwrap();
    assert_eq!(named.name(), "(plugin)");
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..20).for_each(|_| assert_eq!(engines(&host), ["relocation", "relocation"])));
        }
    });
    assert_eq!(host.modules().len(), 1);
}

fn who_wants_more_than_the_table_has_is_told() {
    let host = Host::builder().operations("host_ops", &[std::ptr::null()]).build().unwrap();
    let refused = sentence(&host.load(&image_from_text("plugin", PLUGIN)).unwrap_err());
    assert!(refused.contains("\"host_ops\"") && refused.contains("the host's table does not have"), "{refused}");
}

/// Linux's `cli`, `sti`, `pushf; pop %rax`, `mov %rdi,%rax` and `wbinvd`: calls through `pv_ops` with an alternative for the feature
/// `!XENPV`, as every inlined one of Linux 6.1 has.
fn no_alternative_brings_back_what_only_a_kernel_may_do() {
    const SITES: [(&str, u8, &str); 5] = [
        ("irq_disable", 31, "cli"),
        ("irq_enable", 32, "sti"),
        ("save_fl", 30, "pushf\\npop %rax"),
        ("pte_val", 62, "mov %rdi,%rax"),
        ("wbinvd", 21, "wbinvd"),
    ];
    let site = |(name, number, native): (&str, u8, &str)| {
        let native = native.replace("\\n", "\n");
        format!(
            ".text\n.globl {name}\n.type {name}, @function\n{name}:\nmov %rdi,%rax\n1: call *pv_ops+8*{number}(%rip)\n2: ret\n\
             .size {name}, . - {name}\n.section .parainstructions,\"a\"\n.balign 8\n.quad 1b\n.byte {number}, 2b-1b\n.balign 8\n\
             .section .altinstr_replacement,\"ax\"\n3: {native}\n4:\n.section .altinstructions,\"a\"\n.long 1b - ., 3b - .\n\
             .word 0x8000 | (8*32+16)\n.byte 2b-1b, 4b-3b\n"
        )
    };
    let text = SITES.map(site).concat();
    let object = object_from_text("linux", Language::Assembler, &text, Compiler::Cc, &[]).unwrap();
    let bytes = std::fs::read(object).unwrap();
    for features in [None, Some("")] {
        let host = Host::builder().linux_operations();
        // A list of the embedder's own can leave out any feature except those that user space must have.
        let host = match features {
            Some(names) => host.cpu(modload::Features::named(names).unwrap()).unwrap(),
            None => host,
        };
        let host = host.build().unwrap();
        // SAFETY: the text is ours, and its code has no effect in a process.
        let module = host.load(&unsafe { modload::Image::trusted(bytes.clone()) }.named("linux")).unwrap();
        for (name, ..) in SITES {
            // SAFETY: each takes a number and gives back the same, or flags.
            let result = unsafe { module.call(name, &[0x1234]) }.unwrap();
            // Interrupts are on in every process.
            assert!(if name == "save_fl" { result & 0x200 != 0 } else { result == 0x1234 }, "{name}: {result:#x}");
        }
    }
}

/// A site for each feature, whose replacement is an operation with no user-space equivalent: for features that a
/// process must not have, no replacement is written.
fn every_feature_that_user_space_must_not_have_is_left_out_of_code() {
    let names = [
        "SMAP",
        "SMEP",
        "PCID",
        "INVPCID",
        "XSAVES",
        "MWAIT",
        "VMX",
        "SVM",
        "SGX",
        "PCONFIG",
        "ENQCMD",
        "MSR",
        "FLUSH_L1D",
    ];
    let never = [("XENPV", 0x8000), ("ALWAYS", 0x8000), ("NOPL", 0x8000)].into_iter();
    let sites = names.into_iter().map(|name| (name, 0)).chain(never);
    let text: String = sites
        .map(|(name, flags)| {
            let number = modload::Features::number(name).unwrap();
            format!(
                ".text\n1: nop; nop\n2:\n.section .altinstr_replacement,\"ax\"\n3: hlt\n4:\n.section .altinstructions,\"a\"\n\
                 .long 1b - ., 3b - .\n.word {flags} | {number}\n.byte 2b-1b, 4b-3b\n"
            )
        })
        .collect();
    let text = format!(
        ".text\n.globl probe\n.type probe, @function\nprobe:\nmov $42,%eax\n{text}.text\nret\n.size probe, . - probe\n"
    );
    let object = object_from_text("features", Language::Assembler, &text, Compiler::Cc, &[]).unwrap();
    // SAFETY: the text is ours.
    let image = unsafe { modload::Image::trusted(std::fs::read(object).unwrap()) }.named("features");
    let module = Host::builder().build().unwrap().load(&image).unwrap();
    // SAFETY: the function is an `int probe(void)`.
    assert_eq!(unsafe { module.call("probe", &[]) }.unwrap() & 0xffff_ffff, 42);
}

/// A module that aligns its stack to eight bytes, as kernels do, and calls the host's exports with both alignments of
/// the stack modulo sixteen. The function that the host calls back returns the alignment of the stack at that moment.
fn exports_align_the_stacks_of_those_who_do_not() {
    const TEXT: &str = r#"
#include <modload/livepatch.h>
#include <modload/jump_label.h>
MODULE_INFO(livepatch, "Y");
MODULE_LICENSE("GPL");
DEFINE_STATIC_KEY_FALSE(key);
static int object;
/* At a function's entry the return address is above a multiple of sixteen. */
static long seen, odd;
#define LOOK() do { seen++; odd += ((unsigned long)__builtin_frame_address(0) & 15) != 0; } while (0)
static int fill(void *of, void *data, void *from) { (void)of, (void)data, (void)from; LOOK(); return 0; }
static void drop(void *of, void *data) { (void)of, (void)data; LOOK(); }
static int pre_patch(struct klp_object *of) { (void)of; LOOK(); return 0; }
static void post_patch(struct klp_object *of) { (void)of; LOOK(); }
static struct klp_func funcs[] = { {} };
static struct klp_object objs[] = {
	{ .name = "none", .funcs = funcs }, { .funcs = funcs, .callbacks = { .pre_patch = pre_patch, .post_patch = post_patch } }, {}
};
static struct klp_patch patch = { .mod = THIS_MODULE, .objs = objs };
static int heard(struct notifier_block *nb, unsigned long state, void *data) { (void)nb, (void)state, (void)data; return 0; }
static struct notifier_block block = { .notifier_call = heard };
void modload_log(const struct module *, int, const char *);

/* rsp is a multiple of sixteen less `shift` at each call. */
__attribute__((noinline, noipa)) static int all(int is_init)
{
	int wrong = 0;
	modload_log(THIS_MODULE, 6, "a line");
	wrong |= register_module_notifier(&block);
	wrong |= unregister_module_notifier(&block);
	static_key_slow_inc(&key.key);
	wrong |= static_key_count(&key.key) != 1;
	static_key_slow_dec(&key.key);
	static_key_enable(&key.key);
	static_key_disable(&key.key);
	wrong |= !klp_shadow_alloc(&object, 1, 8, GFP_KERNEL, fill, 0);
	wrong |= !klp_shadow_get(&object, 1);
	klp_shadow_free(&object, 1, drop);
	wrong |= !klp_shadow_get_or_alloc(&object, 2, 8, GFP_KERNEL, fill, 0);
	klp_shadow_free_all(2, drop);
	klp_get_prev_state(1);
	klp_checkpoint();
	if (is_init)
		wrong |= klp_enable_patch(&patch);
	return wrong;
}
int shifted(int is_init);
__asm__(".pushsection .text\n.globl shifted\n.type shifted, @function\nshifted:\n.cfi_startproc\n"
	"	push %rdi\n	.cfi_adjust_cfa_offset 8\n	call all_both\n	mov (%rsp), %rdi\n	mov %eax, (%rsp)\n"
	"	sub $8, %rsp\n	.cfi_adjust_cfa_offset 8\n	call all_both\n	add $8, %rsp\n	.cfi_adjust_cfa_offset -8\n"
	"	pop %rdi\n	.cfi_adjust_cfa_offset -8\n	or %edi, %eax\n	ret\n.cfi_endproc\n.size shifted, . - shifted\n.popsection\n");
int all_both(int is_init) { return all(is_init && !patch.replace && seen > 3); }
static int __init start(void) { int wrong = shifted(1); return wrong ? -1 : 0; }
module_init(start);
__attribute__((visibility("default"))) long odd_ones(void) { return odd * 1000 + seen; }
"#;
    let flags =
        ["-O2", "-fPIC", "-fvisibility=hidden", "-mpreferred-stack-boundary=3", "-mno-sse", "-fno-omit-frame-pointer"];
    let object = object_from_text("kernel_stack", Language::C, TEXT, Compiler::Cc, &flags).unwrap();
    let host = Host::builder().build().unwrap();
    // SAFETY: the text is ours.
    let image = unsafe { modload::Image::trusted(std::fs::read(object).unwrap()) }.named("kernel_stack");
    let module = host.load(&image).unwrap();
    // SAFETY: the function is a `long odd_ones(void)`.
    let odd = unsafe { module.call("odd_ones", &[]) }.unwrap();
    assert_eq!(odd, 10, "the thousands are callbacks that found the stack as it must not be");
    host.disable_patch("kernel_stack").unwrap();
}
