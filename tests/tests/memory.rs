//! The kernel's list of the mappings while a thousand modules are loaded and unloaded.

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use modload::text::{Addr, Arena, Class, StripeUsage};
use modload::{Host, Image, Module};
use modload_edit::{Edit, EditOrigin, EditSet, Engine, Sink, index, wide};
use modload_tests::{Chance, Mapping, case, image, image_from_text, mappings};
use modload_text::{Annex, TextLock, fill};

fn main() -> ExitCode {
    modload_tests::run(&[
        case!(protections_never_change_while_a_thousand_modules_come_and_go).within_seconds(240),
        case!(each_part_of_a_module_lies_in_its_stripe),
        case!(annexes_are_code_and_never_writable),
        case!(ro_after_init_is_writable_in_init_only),
    ])
}

const MODULES: usize = 1000;

/// Returns the expected access of a stripe's mappings, if that access never changes.
fn fixed_access(class: Class) -> Option<&'static str> {
    match class {
        Class::Text => Some("r-xp"),
        Class::ReadOnly => Some("r--p"),
        Class::Data => Some("rw-p"),
        // Changes page by page, and is never executable.
        Class::RoAfterInit => None,
    }
}

/// Judges all mappings of one moment.
fn judge(mappings: &[Mapping], stripes: &[StripeUsage; 4]) {
    for Mapping { start, end, access } in mappings {
        assert!(!(access.contains('w') && access.contains('x')), "{start:x}-{end:x} is {access}");
    }
    for stripe in stripes {
        let here: Vec<_> = mappings.iter().filter(|mapping| mapping.overlaps(stripe.start, stripe.len)).collect();
        for mapping in &here {
            match fixed_access(stripe.class) {
                Some(access) => assert_eq!(mapping.access, access, "{}: {mapping:x?}", stripe.class),
                None => assert!(["r--p", "rw-p"].contains(&&*mapping.access), "{mapping:x?}"),
            }
        }
        // The kernel gives out the lines one by one: of a stripe that is being split some may overlap.
        if stripe.class != Class::RoAfterInit {
            let [mapping] = here[..] else { panic!("the stripe for {} is one mapping: {here:x?}", stripe.class) };
            assert_eq!((mapping.start, mapping.end), (stripe.start.get(), stripe.start.get() + stripe.len));
        }
    }
}

/// Asks for single pages, by another way than the lines of `maps`.
fn query(stripes: &[StripeUsage; 4], chance: &mut Chance) {
    for stripe in &stripes[..2] {
        let at = stripe.start + wide(chance.below(index(stripe.len)));
        let region = region::query(std::ptr::without_provenance::<u8>(index(at.get()))).unwrap();
        let executable = stripe.class == Class::Text;
        assert!(region.is_readable() && !region.is_writable() && region.is_executable() == executable, "{region:?}");
    }
}

fn protections_never_change_while_a_thousand_modules_come_and_go() {
    let host = Host::builder().build().unwrap();
    let stripes = Arena::get().unwrap().usage();
    // A function, a table, a counter, data that becomes read-only.
    let text = "static const int table[] = { 2, 3, 5 }; static int counter;\n\
                static int fixed __attribute__((section(\".data..ro_after_init\"))) = 7;\n\
                int next(int i); int next(int i) { counter++; return table[i % 3] + fixed + counter; }\n";
    let kinds = [image("ro_after_init"), image("init_sections"), image_from_text("plain", text)];
    let before = mappings();
    judge(&before, &stripes);
    let (stop, rounds) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        let racing = scope.spawn(|| {
            let (mut chance, mut most) = (Chance::new(1), 0);
            while !stop.load(Ordering::Relaxed) {
                let now = mappings();
                judge(&now, &stripes);
                query(&stripes, &mut chance);
                most = most.max(now.len());
                rounds.fetch_add(1, Ordering::Relaxed);
            }
            most
        });
        let load = |number: usize| -> Module {
            let image: &Image<'_> = &kinds[number % kinds.len()];
            host.load(&image.clone().named(format!("m{number}"))).unwrap()
        };
        let mut chance = Chance::new(42);
        // One after the other; then all at the same time; then half of them are unloaded in random order, and loaded
        // again.
        for number in 0..MODULES {
            load(number).unload().unwrap();
        }
        let mut live: Vec<Module> = (0..MODULES).map(load).collect();
        at_most_16_more(&before, "all of them are live");
        for _ in 0..MODULES / 2 {
            live.swap_remove(chance.below(live.len())).unload().unwrap();
        }
        at_most_16_more(&before, "half of them are gone, in random order");
        live.extend((MODULES..MODULES * 3 / 2).map(load));
        at_most_16_more(&before, "their places are taken again");
        while !live.is_empty() {
            live.swap_remove(chance.below(live.len())).unload().unwrap();
        }
        at_most_16_more(&before, "all are gone");
        stop.store(true, Ordering::Relaxed);
        let most = racing.join().expect("the racing thread has seen nothing but what it should");
        // The stack and heap of the test's thread, and ours.
        assert!(most <= before.len() + 16 + 4, "{most} mappings at a time, {} before", before.len());
    });
    assert!(rounds.into_inner() > 20, "the race was one");
    assert!(host.modules().is_empty());
}

/// The mapping of code that holds a function.
fn code_of(function: *const ()) -> (Addr, Addr) {
    let at = Addr::new(wide(function.expose_provenance()));
    let mapping = mappings().into_iter().find(|mapping| mapping.overlaps(at, 1)).unwrap();
    assert_eq!(mapping.access, "r-xp");
    (Addr::new(mapping.start), Addr::new(mapping.end))
}

fn annexes_are_code_and_never_writable() {
    let stripes = Arena::get().unwrap().usage();
    #[expect(clippy::as_conversions, reason = "functions become pointers by a cast alone")]
    let near = [annexes_are_code_and_never_writable as *const (), libc::getpid as *const ()].map(code_of);
    let (stop, rounds) = (AtomicBool::new(false), AtomicU64::new(0));
    // An odd number while an annex certainly exists, and its address.
    let (changes, place) = (AtomicU64::new(0), AtomicU64::new(0));
    thread::scope(|scope| {
        let racing = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let (change, at) = (changes.load(Ordering::SeqCst), Addr::new(place.load(Ordering::SeqCst)));
                let now = mappings();
                judge(&now, &stripes);
                if change % 2 == 1 && changes.load(Ordering::SeqCst) == change {
                    let here: Vec<_> = now.iter().filter(|mapping| mapping.overlaps(at, 1)).collect();
                    assert!(matches!(here[..], [mapping] if mapping.access == "r-xp"), "{here:x?}");
                    rounds.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        let mut number = 0;
        while (number < 2000 || rounds.load(Ordering::Relaxed) < 100) && !racing.is_finished() {
            let (start, end) = near[number % 2];
            let annex = Annex::near(start, end, 4096).unwrap();
            place.store(annex.addr().get(), Ordering::SeqCst);
            changes.fetch_add(1, Ordering::SeqCst);
            let code = [0xb8, 7, 0, 0, 0, 0xc3];
            let mut edits = EditSet::new();
            edits.edit(Edit { at: annex.addr(), old: &[0xcc; 6], new: &code, why: WHY }).unwrap();
            fill(&mut TextLock::take(), &edits).unwrap();
            changes.fetch_add(1, Ordering::SeqCst);
            drop(annex);
            number += 1;
        }
        stop.store(true, Ordering::Relaxed);
        racing.join().expect("the racing thread has seen nothing but what it should");
    });
}

const WHY: EditOrigin = EditOrigin { engine: Engine::JumpLabel, section: 0, record: 0 };

/// Returns the number of mappings in the arena. The test's own threads and vectors have mappings, too.
fn in_arena(mappings: &[Mapping]) -> usize {
    let stripes = Arena::get().unwrap().usage();
    mappings.iter().filter(|mapping| stripes.iter().any(|stripe| mapping.overlaps(stripe.start, stripe.len))).count()
}

fn at_most_16_more(before: &[Mapping], when: &str) {
    let now = mappings();
    assert!(now.len() <= before.len() + 16, "{when}: {} mappings, {} before", now.len(), before.len());
    assert!(in_arena(&now) <= in_arena(before) + 4, "{when}: {} in the arena", in_arena(&now));
}

fn stripe_of(at: Addr) -> Option<Class> {
    let usage = Arena::get().unwrap().usage();
    usage.iter().find(|stripe| (stripe.start..stripe.start + stripe.len).contains(&at)).map(|stripe| stripe.class)
}

fn each_part_of_a_module_lies_in_its_stripe() {
    let host = Host::builder().build().unwrap();
    let module = host.load(&image("ro_after_init")).unwrap();
    let mut parts = Vec::new();
    for section in module.sections().filter(|section| section.size != 0) {
        parts.push(format!("{} {:?}", section.name, stripe_of(section.addr).unwrap()));
    }
    for expected in [".text Text", ".data..ro_after_init RoAfterInit", ".rodata ReadOnly", ".data Data"] {
        assert!(parts.iter().any(|part| part == expected), "{expected}: {parts:?}");
    }
    assert!(!parts.iter().any(|part| part.starts_with(".init")), "{parts:?}");
    module.unload().unwrap();
}

/// The protection of the page that holds an address.
fn access(at: Addr) -> String {
    mappings().into_iter().find(|mapping| mapping.overlaps(at, 1)).unwrap().access
}

fn ro_after_init_is_writable_in_init_only() {
    let host = Host::builder().build().unwrap();
    let module = host.load(&image("ro_after_init")).unwrap();
    let at = module.symbol_info("fixed_limit").unwrap().addr;
    assert_eq!((stripe_of(at), access(at).as_str()), (Some(Class::RoAfterInit), "r--p"));
    // The module's init has written to that data.
    // SAFETY: `int ro_limit(void)`.
    assert_eq!(unsafe { module.call("ro_limit", &[]) }.unwrap(), 3);
    module.unload().unwrap();
    assert_eq!(access(at), "r--p", "freed pages stay read-only");
}
