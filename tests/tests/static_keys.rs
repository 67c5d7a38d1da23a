//! Static keys and static calls: the effect of code while a key is off, and while a key is on, in all modules that use
//! the key.

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use modload::error::sentence;
use modload::keys::{KeyError, StaticCall, StaticKey, set_static_call};
use modload::text::disassembled;
use modload::{Coming, Host, Image, Module, Order, Refusal, Subscriber};
use modload_tests::{case, image_from_text, peek};

fn main() -> ExitCode {
    modload_tests::run(&[
        case!(a_branch_follows_its_key_in_every_form),
        case!(a_key_is_switched_in_all_modules_at_once),
        case!(counts_are_balanced),
        case!(a_static_call_calls_what_it_is_told_in_every_form),
        case!(a_static_call_of_another_module),
        case!(a_key_switched_while_a_user_is_coming),
        case!(sites_of_init_go_with_init),
        case!(keys_that_are_read_only_by_now),
        case!(what_is_wrong_with_a_record_is_refused_by_name),
        case!(a_failed_load_leaves_no_sites),
        case!(a_call_that_is_recorded_and_marked_is_one_site),
        case!(a_key_of_inits_is_refused_to_who_stays),
        case!(who_is_in_a_call_that_became_nothing_is_seen),
        case!(a_host_owns_a_static_call),
        case!(keys_and_calls_under_fire).within_seconds(120),
    ])
}

fn call(module: &Module, function: &str, argument: i32) -> i32 {
    // SAFETY: every function of these texts that is called here is an `int f(int)`.
    let function = unsafe { module.symbol::<extern "C" fn(i32) -> i32>(function) }.unwrap();
    function(argument)
}

fn text(name: &str, text: &str) -> Image<'static> {
    let headers = "#include <modload/jump_label.h>\n#include <modload/static_call.h>\nint abs(int);\n#pragma GCC visibility push(hidden)\n";
    image_from_text(name, &format!("{headers}{text}\nMODULE_LICENSE(\"Dual MIT/GPL\");\n"))
}

/// Returns the first instructions of a function.
fn first(module: &Module, function: &str, len: usize) -> String {
    let at = module.symbol_info(function).unwrap().addr;
    disassembled(at, &peek(at, len)).replace(&format!("{:#x}", at.get() >> 12), "PAGE")
}

static HOSTS_KEY: StaticKey = StaticKey::disabled();
static HOSTS_TRUE_KEY: StaticKey = StaticKey::enabled();

fn host() -> Host {
    let builder = Host::builder().process_symbols();
    builder.static_key("hosts_key", &HOSTS_KEY).static_key("hosts_true_key", &HOSTS_TRUE_KEY).build().unwrap()
}

/// All four forms of branch of two keys, as one number; and functions that switch the keys.
const FORMS: &str = "
static DEFINE_STATIC_KEY_FALSE(off);
static DEFINE_STATIC_KEY_TRUE(on);
int forms(int unused)
{
    (void)unused;
    return (static_branch_unlikely(&off) ? 1 : 0) | (static_branch_likely(&off) ? 2 : 0)
         | (static_branch_unlikely(&on) ? 4 : 0) | (static_branch_likely(&on) ? 8 : 0);
}
/* Two bytes are not enough for this one's jump. */
int far_form(int unused)
{
    (void)unused;
    if (static_branch_likely(&off))
        __asm__ volatile(\".fill 200, 1, 0x90\");
    else
        return 0;
    return 1;
}
int enable(int which) { return which ? static_branch_enable(&on) : static_branch_enable(&off); }
int disable(int which) { return which ? static_branch_disable(&on) : static_branch_disable(&off); }
int enabled(int which) { return which ? static_key_enabled(&on) : static_key_enabled(&off); }
";

fn a_branch_follows_its_key_in_every_form() {
    let host = host();
    let module = host.load(&text("forms", FORMS)).unwrap();
    for _ in 0..3 {
        assert_eq!((call(&module, "forms", 0), call(&module, "far_form", 0)), (0b1100, 0));
        assert_eq!(call(&module, "enable", 0), 0);
        assert_eq!((call(&module, "forms", 0), call(&module, "far_form", 0)), (0b1111, 1));
        assert_eq!(call(&module, "disable", 1), 0);
        assert_eq!((call(&module, "forms", 0), call(&module, "far_form", 0)), (0b0011, 1));
        assert_eq!((call(&module, "enabled", 0), call(&module, "enabled", 1)), (1, 0));
        assert_eq!((call(&module, "disable", 0), call(&module, "enable", 1)), (0, 0));
    }
    assert_eq!(call(&module, "enable", 1), 0, "it is enabled already");
}

const OWNER: &str = "
DEFINE_STATIC_KEY_FALSE(shared);
EXPORT_SYMBOL(shared);
int switch_it(int on) { return on ? static_branch_enable(&shared) : static_branch_disable(&shared); }
int owners(int unused) { (void)unused; return static_branch_unlikely(&shared); }
";

fn user(number: i32) -> Image<'static> {
    let users = format!(
        "DECLARE_STATIC_KEY_FALSE(shared); DECLARE_STATIC_KEY_FALSE(hosts_key); DECLARE_STATIC_KEY_TRUE(hosts_true_key);
         int use(int unused) {{ (void)unused; return static_branch_unlikely(&shared) ? {number} : 0; }}
         int use_hosts(int unused)
         {{ (void)unused; return (static_branch_unlikely(&hosts_key) ? 1 : 0) | (static_branch_likely(&hosts_true_key) ? 2 : 0); }}"
    );
    text(&format!("user{number}"), &users)
}

fn a_key_is_switched_in_all_modules_at_once() {
    let host = host();
    let owner = host.load(&text("owner", OWNER)).unwrap();
    let mut users: Vec<_> = (1..=5).map(|number| (number, host.load(&user(number)).unwrap())).collect();
    for on in [1, 0, 1] {
        assert_eq!(call(&owner, "switch_it", on), 0);
        assert_eq!(call(&owner, "owners", 0), on);
        assert!(users.iter().all(|(number, user)| call(user, "use", 0) == number * on));
    }
    // One module is loaded while the key is on, and one is unloaded.
    users.push((6, host.load(&user(6)).unwrap()));
    assert_eq!(call(&users[5].1, "use", 0), 6);
    users.remove(2).1.unload().unwrap();
    assert_eq!(call(&owner, "switch_it", 0), 0);
    assert!(users.iter().all(|(_, user)| call(user, "use", 0) == 0));
    // The host's keys.
    assert!(users.iter().all(|(_, user)| call(user, "use_hosts", 0) == 2));
    HOSTS_KEY.enable().unwrap();
    HOSTS_TRUE_KEY.disable().unwrap();
    assert!(users.iter().all(|(_, user)| call(user, "use_hosts", 0) == 1));
    assert!(HOSTS_KEY.is_enabled() && !HOSTS_TRUE_KEY.is_enabled());
    users.into_iter().for_each(|(_, user)| user.unload().unwrap());
    HOSTS_KEY.disable().unwrap();
    HOSTS_TRUE_KEY.enable().unwrap();
    owner.unload().unwrap();
}

fn counts_are_balanced() {
    let host = host();
    let module = host.load(&user_of_host()).unwrap();
    let enabled = || call(&module, "use", 0) == 1;
    HOSTS_KEY.increment().unwrap();
    HOSTS_KEY.increment().unwrap();
    assert!(enabled());
    assert!(matches!(HOSTS_KEY.disable(), Err(KeyError::Unbalanced { count: 2, .. })));
    HOSTS_KEY.decrement().unwrap();
    assert!(enabled());
    HOSTS_KEY.decrement().unwrap();
    assert!(!enabled());
    assert!(matches!(HOSTS_KEY.decrement(), Err(KeyError::Unbalanced { count: 0, .. })));
    assert_eq!(call(&module, "balance", 0), 1, "the module's own functions count the same key");
}

fn user_of_host() -> Image<'static> {
    text(
        "user_of_host",
        "DECLARE_STATIC_KEY_FALSE(hosts_key);
         int use(int unused) { (void)unused; return static_branch_unlikely(&hosts_key) ? 1 : 0; }
         int balance(int unused)
         {
             int wrong = static_branch_dec(&hosts_key) != -EINVAL;
             (void)unused;
             wrong |= static_branch_inc(&hosts_key) | static_branch_inc(&hosts_key);
             wrong |= static_key_count(&hosts_key.key) != 2;
             wrong |= static_branch_dec(&hosts_key) | static_branch_dec(&hosts_key);
             return !wrong;
         }",
    )
}

const CALLS: &str = "
static int one(int n) { return n + 1; }
static int two(int n) { return n + 2; }
DEFINE_STATIC_CALL(step, one);
EXPORT_STATIC_CALL(step);
DEFINE_STATIC_CALL_RET0(zero, one);
static int side;
static void set(int n) { side = n; }
DEFINE_STATIC_CALL_NULL(maybe, set);
EXPORT_STATIC_CALL_TRAMP(maybe);
int tail(int n) { return static_call(step)(n); }
int middle(int n) { return static_call(step)(n) * 10; }
int through_trampoline(int n) { int (*volatile f)(int) = &static_call(step); return f(n); }
int zero_middle(int n) { return static_call(zero)(n) + 7; }
int zero_tail(int n) { return static_call(zero)(n); }
int maybe_middle(int n) { side = 0; static_call_cond(maybe)(n); return side; }
void maybe_tail(int n) { static_call_cond(maybe)(n); }
int to_one(int unused) { (void)unused; return static_call_update(step, one); }
int to_two(int unused) { (void)unused; return static_call_update(step, two) || static_call_query(step) != (void *)two; }
int to_abs(int unused) { (void)unused; return static_call_update(step, abs); }
int to_zero(int unused)
{ (void)unused; return static_call_update(step, (int (*)(int))__static_call_return0); }
int zero_to_two(int unused) { (void)unused; return static_call_update(zero, two); }
int maybe_to_set(int unused) { (void)unused; return static_call_update(maybe, set); }
int maybe_to_null(int unused) { (void)unused; return static_call_update(maybe, (void (*)(int))0); }
";

fn a_static_call_calls_what_it_is_told_in_every_form() {
    let host = host();
    let module = host.load(&text("calls", CALLS)).unwrap();
    let step = |n| ["tail", "middle", "through_trampoline"].map(|function| call(&module, function, n));
    for _ in 0..2 {
        assert_eq!(step(5), [6, 60, 6]);
        assert_eq!(call(&module, "to_two", 0), 0);
        assert_eq!(step(5), [7, 70, 7]);
        // The C library's is far away.
        assert_eq!(call(&module, "to_abs", 0), 0);
        assert_eq!(step(-5), [5, 50, 5]);
        assert_eq!(call(&module, "to_zero", 0), 0);
        assert_eq!(step(5), [0, 0, 0]);
        assert_eq!(call(&module, "to_one", 0), 0);
    }
    assert_eq!((call(&module, "zero_middle", 5), call(&module, "zero_tail", 5)), (7, 0));
    assert_eq!(call(&module, "zero_to_two", 0), 0);
    assert_eq!((call(&module, "zero_middle", 5), call(&module, "zero_tail", 5)), (14, 7));
    for _ in 0..2 {
        assert_eq!(call(&module, "maybe_middle", 5), 0);
        call(&module, "maybe_tail", 5);
        assert_eq!(call(&module, "maybe_to_set", 0), 0);
        assert_eq!(call(&module, "maybe_middle", 5), 5);
        assert_eq!(call(&module, "maybe_to_null", 0), 0);
    }
    // The site is a call of the function, not of the trampoline.
    let one = module.symbol_info("one").unwrap().addr;
    let tail = module.symbol_info("tail").unwrap().addr;
    assert_eq!(disassembled(tail, &peek(tail, 5)), format!("jmp {one}"));
}

fn a_static_call_of_another_module() {
    let host = host();
    let owner = host.load(&text("calls", CALLS)).unwrap();
    let user = "
        int step_type(int); void maybe_type(int);
        DECLARE_STATIC_CALL(step, step_type); DECLARE_STATIC_CALL(maybe, maybe_type);
        int middle(int n) { return static_call(step)(n) * 100; }
        int maybe_middle(int n) { static_call(maybe)(n); return 1; }
        static int three(int n) { return n + 3; }
        int to_three(int unused) { (void)unused; return static_call_update(step, three); }
        void exit_it(void) { }
        module_exit(exit_it);
        ";
    let module = host.load(&text("caller", user)).unwrap();
    assert_eq!((call(&module, "middle", 1), call(&module, "maybe_middle", 1)), (200, 1));
    assert_eq!(call(&owner, "to_two", 0), 0);
    assert_eq!(call(&module, "middle", 1), 300);
    // The module has only the trampoline of `maybe`; its sites are changed nevertheless.
    assert_eq!(call(&owner, "maybe_to_set", 0), 0);
    call(&module, "maybe_middle", 9);
    assert_eq!(call(&module, "to_three", 0), 0);
    assert_eq!((call(&owner, "middle", 1), call(&module, "middle", 1)), (40, 400));
    assert_eq!(call(&owner, "to_one", 0), 0);
    module.unload().unwrap();
    assert_eq!((call(&owner, "to_two", 0), call(&owner, "middle", 1)), (0, 30));
}

/// Switches the host's key while a module is coming: before and after the built-in subscriber of keys has seen the
/// module.
struct Switches;

impl Subscriber for Switches {
    fn coming(&self, _: &mut Coming<'_>) -> Result<(), Refusal> {
        HOSTS_KEY.enable().map_err(|error| error.to_string().into())
    }
}

fn a_key_switched_while_a_user_is_coming() {
    let host = host();
    let early = host.load(&user_of_host()).unwrap();
    let membership = host.subscribe("switches", Order::mirrored(0), Switches);
    let late = host.load(&user_of_host().named("late")).unwrap();
    assert_eq!((call(&early, "use", 0), call(&late, "use", 0)), (1, 1));
    membership.leave();
    HOSTS_KEY.disable().unwrap();
    assert_eq!((call(&early, "use", 0), call(&late, "use", 0)), (0, 0));
    assert_eq!(first(&late, "use", 5), "nopl (%rax,%rax)");
}

fn sites_of_init_go_with_init() {
    let module = "
        DECLARE_STATIC_KEY_FALSE(hosts_key);
        static DEFINE_STATIC_KEY_FALSE(own);
        int seen = -1;
        EXPORT_SYMBOL(seen);
        static int __init begin(void)
        {
            seen = (static_branch_unlikely(&hosts_key) ? 1 : 0) | (static_branch_unlikely(&own) ? 2 : 0);
            if (static_branch_enable(&own) != 0)
                return -EINVAL;
            seen |= static_branch_unlikely(&own) ? 4 : 0;
            return 0;
        }
        module_init(begin);
        int get(int unused) { (void)unused; return seen | (static_branch_unlikely(&own) ? 8 : 0); }
        int off(int unused) { (void)unused; return static_branch_disable(&own); }
        ";
    let host = host();
    HOSTS_KEY.enable().unwrap();
    let module = host.load(&text("with_init", module)).unwrap();
    assert_eq!(call(&module, "get", 0), 1 | 4 | 8);
    // The sites of init are INT3, or belong to other code by now: a switch that still listed them would be refused.
    HOSTS_KEY.disable().unwrap();
    assert_eq!((call(&module, "off", 0), call(&module, "get", 0)), (0, 1 | 4));
}

fn keys_that_are_read_only_by_now() {
    let module = "
        static DEFINE_STATIC_KEY_FALSE_RO(late);
        static int __init begin(void) { return static_branch_enable(&late); }
        module_init(begin);
        int get(int unused) { (void)unused; return static_branch_unlikely(&late) ? 1 : 0; }
        int count(int unused) { (void)unused; return static_key_count(&late.key); }
        int off(int unused) { (void)unused; return static_branch_disable(&late); }
        ";
    let host = host();
    let module = host.load(&text("late_keys", module)).unwrap();
    assert_eq!((call(&module, "get", 0), call(&module, "count", 0)), (1, 1));
    assert_eq!((call(&module, "off", 0), call(&module, "get", 0), call(&module, "count", 0)), (0, 0, 0));
}

fn what_is_wrong_with_a_record_is_refused_by_name() {
    let host = host();
    let record = |name: &str, code: &str, table: &str| {
        let module = format!(
            "__asm__(\".text\\n{code}\\n.section {table}\");\nextern char key[16]; char key[16] __attribute__((aligned(8)));"
        );
        sentence(&host.load(&text(name, &module)).unwrap_err())
    };
    let jump = |site: &str, key: &str| {
        format!("__jump_table, \\\"a\\\"\\n.balign 8\\n.long {site} - ., over - .\\n.quad {key} - .\\n.text")
    };
    let call = |site: &str, key: &str| {
        format!(".static_call_sites, \\\"a\\\"\\n.balign 4\\n.long {site} - ., {key} - .\\n.text")
    };
    let code = "start: mov $0x90669066, %eax\\nsite: .byte 0x0f, 0x1f, 0x44, 0, 0\\nover: ret\\nmov $0xe8, %ecx\\nret";
    let lines = [
        record("neither", code, &jump("start", "key")),
        record("inside", code, &jump("start + 1", "key")),
        record("no_key", code, &jump("site", "over")),
        record("outside", code, &jump("key", "key")),
        record("call_inside", code, &call("over + 2", "key")),
        record("call_of_nothing", code, &call("start", "key")),
        record("call_without_key", code, &call("site", "over")),
    ];
    let known = |line: &String| {
        let hex = |word: &str| word.starts_with("0x") && word.len() > 7;
        line.split(' ').map(|word| if hex(word) { "ADDR" } else { word }).collect::<Vec<_>>().join(" ")
    };
    insta::assert_snapshot!("refusals", lines.iter().map(known).collect::<Vec<_>>().join("\n"));
    assert!(host.modules().is_empty());
}

fn a_failed_load_leaves_no_sites() {
    let module = "
        DECLARE_STATIC_KEY_FALSE(hosts_key);
        int use(int unused) { (void)unused; return static_branch_unlikely(&hosts_key) ? 1 : 0; }
        static int __init begin(void) { return -ENODEV; }
        module_init(begin);
        ";
    let host = host();
    for _ in 0..3 {
        host.load(&text("fails", module)).unwrap_err();
        HOSTS_KEY.enable().unwrap();
        HOSTS_KEY.disable().unwrap();
    }
}

fn a_call_that_is_recorded_and_marked_is_one_site() {
    let module = r#"
        static int one(int n) { return n + 1; }
        static int two(int n) { return n + 2; }
        DEFINE_STATIC_CALL(step, one);
        int use(int n)
        {
            int r;
            __asm__ volatile("sub $8, %%rsp\n1: call __SCT__step\nadd $8, %%rsp\n"
                ".pushsection .static_call_sites, \"a\"\n.balign 4\n.long 1b - ., __SCK__step - .\n.popsection"
                : "=a"(r) : "D"(n) : "rcx", "rdx", "rsi", "r8", "r9", "r10", "r11", "memory");
            return r;
        }
        int change(int unused) { (void)unused; return static_call_update(step, two); }
        "#;
    let host = host();
    let module = host.load(&text("recorded", module)).unwrap();
    assert_eq!((call(&module, "use", 1), call(&module, "change", 0), call(&module, "use", 1)), (2, 0, 3));
}

fn a_key_of_inits_is_refused_to_who_stays() {
    let module = r#"
        struct static_key_false gone __attribute__((section(".init.data"))) = STATIC_KEY_FALSE_INIT;
        int use(int unused) { (void)unused; return static_branch_unlikely(&gone) ? 1 : 0; }
        "#;
    let refused = sentence(&host().load(&text("key_of_init", module)).unwrap_err());
    assert!(
        refused
            .ends_with("its key is freed with the init sections, but its site is not; move the key out of init data"),
        "{refused}"
    );
}

static LOADED: std::sync::Mutex<Option<(modload::WeakHost, String)>> = std::sync::Mutex::new(None);

/// Sets the static call of its own caller to nothing, and unloads the caller's module.
extern "C" fn unload_the_caller(n: i32) -> i32 {
    // SAFETY: nothing is called.
    unsafe { set_static_call(&HOSTS_CALL, std::ptr::null()) }.unwrap();
    let mut loaded = LOADED.lock().unwrap();
    let (host, said) = loaded.as_mut().unwrap();
    *said = host.upgrade().unwrap().unload("caller").map_or_else(|error| error.to_string(), |()| "unloaded".into());
    n
}

fn who_is_in_a_call_that_became_nothing_is_seen() {
    let builder = Host::builder().static_call("hosts_call", &HOSTS_CALL).static_key("hosts_key", &HOSTS_KEY);
    let host = builder.build().unwrap();
    choose(unload_the_caller);
    *LOADED.lock().unwrap() = Some((host.downgrade(), String::new()));
    let module = host.load(&text("caller", CALLER)).unwrap();
    // SAFETY: an `int f(int)`. The function is called without a reference to its module: that is the subject of the
    // test.
    let ask = *unsafe { module.symbol::<extern "C" fn(i32) -> i32>("ask") }.unwrap();
    drop(module);
    assert_eq!(ask(4), 8);
    let said = LOADED.lock().unwrap().take().unwrap().1;
    assert!(said.contains("is in ask+"), "{said}");
    host.unload("caller").unwrap();
}

static HOSTS_CALL: StaticCall = StaticCall::null();

extern "C" fn plus_ten(n: i32) -> i32 {
    n + 10
}

extern "C" fn plus_twenty(n: i32) -> i32 {
    n + 20
}

/// Has the host's call call one of the two.
fn choose(function: extern "C" fn(i32) -> i32) {
    #[expect(clippy::as_conversions, reason = "the only way from a function pointer to its address")]
    let function = function as *const ();
    // SAFETY: the modules of these tests declare the symbol as a call of `int f(int)`.
    unsafe { set_static_call(&HOSTS_CALL, function) }.unwrap();
}

const CALLER: &str = "
int type(int);
DECLARE_STATIC_CALL(hosts_call, type);
DECLARE_STATIC_KEY_FALSE(hosts_key);
int ask(int n) { return static_call(hosts_call)(n) * 2; }
int pass(int n) { return static_call(hosts_call)(n); }
int branch(int n) { return static_branch_unlikely(&hosts_key) ? n : -n; }
";

fn a_host_owns_a_static_call() {
    let host =
        Host::builder().static_call("hosts_call", &HOSTS_CALL).static_key("hosts_key", &HOSTS_KEY).build().unwrap();
    choose(plus_ten);
    let module = host.load(&text("caller", CALLER)).unwrap();
    assert_eq!((call(&module, "ask", 1), call(&module, "pass", 1)), (22, 11));
    choose(plus_twenty);
    assert_eq!((call(&module, "ask", 1), call(&module, "pass", 1)), (42, 21));
}

/// Twice the number of switches when the last one is complete, one more while the next is under way.
static STATE: AtomicU64 = AtomicU64::new(0);

fn keys_and_calls_under_fire() {
    const SWITCHES: u64 = 2000;
    let host =
        Host::builder().static_call("hosts_call", &HOSTS_CALL).static_key("hosts_key", &HOSTS_KEY).build().unwrap();
    choose(plus_ten);
    let users: Vec<_> = (0..4).map(|number| host.load(&text(&format!("user{number}"), CALLER)).unwrap()).collect();
    let churn: Vec<_> = (0..2).map(|number| text(&format!("churn{number}"), CALLER)).collect();
    let stop = AtomicBool::new(false);
    let check = |module: &Module| {
        let before = STATE.load(Ordering::SeqCst);
        let results = [call(module, "ask", 1), call(module, "pass", 1), call(module, "branch", 1)];
        let after = STATE.load(Ordering::SeqCst);
        let allowed = [[22, 42], [11, 21], [-1, 1]];
        let now = usize::from(before / 2 % 2 == 1);
        for (result, allowed) in results.into_iter().zip(allowed) {
            let right = if before == after && before.is_multiple_of(2) {
                result == allowed[now]
            } else {
                allowed.contains(&result)
            };
            assert!(right, "{results:?} in state {before}..{after}");
        }
    };
    let (calls, loads) = thread::scope(|scope| {
        let callers: Vec<_> = users
            .iter()
            .map(|user| {
                let (stop, check) = (&stop, &check);
                scope.spawn(move || {
                    let mut calls = 0_u64;
                    while !stop.load(Ordering::Relaxed) {
                        check(user);
                        calls += 1;
                    }
                    calls
                })
            })
            .collect();
        let loaders: Vec<_> = churn
            .iter()
            .map(|image| {
                let (stop, check, host) = (&stop, &check, &host);
                scope.spawn(move || {
                    let mut loads = 0_u64;
                    while !stop.load(Ordering::Relaxed) {
                        let module = host.load(image).unwrap();
                        check(&module);
                        module.unload().unwrap();
                        loads += 1;
                    }
                    loads
                })
            })
            .collect();
        for switch in 1..=SWITCHES {
            STATE.fetch_add(1, Ordering::SeqCst);
            if switch % 2 == 1 {
                choose(plus_twenty);
                HOSTS_KEY.enable().unwrap();
            } else {
                choose(plus_ten);
                HOSTS_KEY.disable().unwrap();
            }
            STATE.fetch_add(1, Ordering::SeqCst);
        }
        stop.store(true, Ordering::Relaxed);
        let sum = |threads: Vec<thread::ScopedJoinHandle<'_, u64>>| {
            threads.into_iter().map(|one| one.join().unwrap()).sum::<u64>()
        };
        (sum(callers), sum(loaders))
    });
    println!("{SWITCHES} switches, {calls} calls, {loads} loads");
    assert!(calls > SWITCHES && loads > 10, "{calls} calls, {loads} loads");
}
