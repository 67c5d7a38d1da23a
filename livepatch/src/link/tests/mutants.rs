//! Damaged objects.

use modload_fixtures::{Compiler, Language};

use super::{LAYOUT, PATCH, assembled, compiled};
use crate::link::link;

/// The generator xorshift64*.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        usize::try_from(self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16).unwrap() % bound.max(1)
    }
}

#[test]
fn mutants_never_do_more_than_fail() {
    let group =
        ".section .text.shared,\"axG\",@progbits,shared,comdat\nshared: call .modload.klp.guest.hello.0\njmp shared2";
    let mut objects = vec![assembled(LAYOUT), assembled(group)];
    let compilers = [Compiler::Gcc, Compiler::Clang].into_iter().filter(|compiler| compiler.find().is_some());
    objects.extend(compilers.map(|compiler| compiled(Language::C, PATCH, compiler, &["-O2", "-fPIC"])));
    let mut random = Random(0x6d6f_646c_6f61_6421);
    let (mut refused, rounds) = (0, 40_000);
    for round in 0..rounds {
        let object = &objects[round % objects.len()];
        let mut mutant = object.clone();
        if random.below(16) == 0 {
            mutant.truncate(random.below(object.len()));
        }
        let table = usize::try_from(u64::from_le_bytes(object[40..48].try_into().unwrap())).unwrap();
        for _ in 0..=random.below(3) {
            let end = mutant.len();
            // Most of the changes hit the tables.
            let from = if random.below(2) == 0 { table.min(end) } else { 0 };
            let at = from + random.below(end - from);
            let value = [0, 0xff, 1 << random.below(8), random.below(256)][random.below(4)];
            if let Some(byte) = mutant.get_mut(at) {
                *byte = u8::try_from(value).unwrap();
            }
        }
        match link(&mutant) {
            // Only names and the sections for objects make the output larger.
            Ok(linked) => assert!(linked.bytes.len() < 4 * mutant.len() + (64 << 10), "round {round}"),
            Err(_) => refused += 1,
        }
    }
    println!("{refused} of {rounds} mutants of {} objects are refused", objects.len());
    assert!(refused > rounds / 8 && refused < rounds, "{refused} of {rounds} are refused");
}
