//! Mutants of a patch, through all code that takes the bytes of a patch and runs nothing: the loader up to the coming
//! chain, and the waiting parts as if their object had been loaded. No panic, nothing left behind.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use modload::error::sentence;
use modload::patch::link as klp_link;
use modload::{Coming, Image, Refusal, Subscriber};
use modload_edit::Addr;
use modload_loader::{External, Externals, Faults, Injected, Loader, Order, Policy, Stage};
use modload_static_keys::StaticKeys;

use crate::scene::{TAIL, WAYS, linked_bytes};

const MUTANTS: u64 = 20_000;

/// Resolves every symbol to an address that no code calls.
struct Everything;

impl Externals for Everything {
    fn exported(&self, _: &[u8]) -> Option<External> {
        None
    }

    fn fallback(&self, _: &[u8]) -> Option<External> {
        Some(External { addr: Addr::new(0x1234_5678), gpl_only: false, crc: None })
    }

    fn own<'n>(&self, names: &BTreeSet<&'n [u8]>) -> BTreeMap<&'n [u8], Vec<Addr>> {
        let some = |name: &[u8]| (0..4).map(|number| Addr::new(0x2345_6780 + number)).take(name.len() % 4).collect();
        names.iter().map(|name| (*name, some(name))).collect()
    }

    fn names(&self) -> Vec<String> {
        Vec::new()
    }
}

/// Nothing is run.
struct BeforeRunning;

impl Faults for BeforeRunning {
    fn before(&self, stage: Stage) -> Result<(), Injected> {
        if stage == Stage::Publish { Err(Injected) } else { Ok(()) }
    }
}

/// Plans all that waits.
struct Planner;

impl Subscriber for Planner {
    fn coming(&self, coming: &mut Coming<'_>) -> Result<(), Refusal> {
        let Some(slices) = coming.module().slices() else { return Ok(()) };
        for slice in slices.iter() {
            let found: Vec<_> = slice.wanted().iter().map(|_| Addr::new(0x3456_7890)).collect();
            let plan = slices.plan(slice, &found).map_err(|error| Refusal::from(sentence(&error)))?;
            plan.net().map_err(|error| Refusal::from(error.to_string()))?;
            assert!(slice.places().count() < 1 << 20);
        }
        Ok(())
    }
}

fn mutate(patch: &[u8], round: u64) -> Vec<u8> {
    let mut state = round.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut below = |bound: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state >> 16).unwrap() % bound
    };
    let mut mutant = patch.to_vec();
    for _ in 0..=below(3) {
        let at = below(mutant.len());
        mutant[at] = match below(4) {
            0 => 0,
            1 => 0xff,
            2 => mutant[at] ^ 1 << below(8),
            _ => u8::try_from(below(256)).unwrap(),
        };
    }
    mutant
}

pub(crate) fn mutants_of_a_patch_never_do_more_than_fail() {
    let text = format!("{}{}{TAIL}", crate::keys::PATCH.replace("new_answer", "keys"), crate::named::ALTERNATIVE);
    let patch = linked_bytes(&text.replace("static int keys", "__attribute__((used)) static int keys"), WAYS[2]);
    let loader = Loader::new(Arc::new(Everything), Policy::default()).unwrap();
    loader.subscribe("planner", Order::builtin(1), Arc::new(Planner)).forget();
    loader.subscribe("static_keys", Order::builtin(2), Arc::new(StaticKeys::new())).forget();
    let used = || loader.memory().map(|stripe| stripe.used);
    let before = used();
    let (mut planned, mut refused) = (0, 0);
    for round in 0..MUTANTS {
        let mutant = if round == 0 { patch.clone() } else { mutate(&patch, round) };
        let _ = klp_link::link(&mutant);
        // SAFETY: no code of the patch is run.
        let image = unsafe { Image::trusted(mutant) }.named("mutant");
        let error = loader.load_module_with(&image, &BeforeRunning).expect_err("it is made to fail at the latest");
        assert!(round != 0 || error.stage == Stage::Publish, "the patch itself is right: {error}");
        planned += u64::from(error.stage == Stage::Publish);
        refused += u64::from(error.stage != Stage::Publish);
        assert!(loader.modules().is_empty(), "round {round}: {error}");
    }
    assert_eq!(used(), before);
    println!("{planned} of {MUTANTS} planned, {refused} refused");
    assert!(planned > MUTANTS / 10 && refused > MUTANTS / 10, "{planned} planned, {refused} refused");
}
