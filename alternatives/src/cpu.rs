//! Which features a processor has.

use std::arch::x86_64::{__cpuid, __cpuid_count};
use std::fmt;

use thiserror::Error;

use crate::features::{FEATURES, WORDS};

/// The features of a processor: Linux's `x86_capability`, words of capabilities and then of bugs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Features {
    words: [u32; WORDS],
}

/// A feature that is not in the table.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("there is no feature {0:?}; names are those of Linux's cpufeatures.h, without X86_FEATURE_")]
pub struct UnknownFeature(pub String);

/// What Linux sets by itself and code for user space may rely on.
const ALWAYS: u16 = 3 * 32 + 21;
const NOPL: u16 = 3 * 32 + 20;

/// What is asked at every site of a table, where looking for the name would be most of the work.
pub(crate) const RETPOLINE: u16 = 11 * 32 + 12;
pub(crate) const RETPOLINE_LFENCE: u16 = 11 * 32 + 13;
pub(crate) const RETHUNK: u16 = 11 * 32 + 14;
pub(crate) const INDIRECT_THUNK_ITS: u16 = 21 * 32 + 5;

/// Words that Linux fills by itself: what is in them says how code should be, not what a processor can do.
const LINUX_WORDS: [usize; 7] = [3, 7, 8, 11, 21, 22, 23];

/// Features whose instructions only a kernel may use.
const PRIVILEGED: [&str; 8] = ["SMAP", "SMEP", "PCID", "INVPCID", "XSAVES", "MWAIT", "VMX", "SVM"];

/// Features that need registers which the system must save, and the one that tells whether it does.
const NEED_AVX: &[&str] = &["AVX", "FMA", "F16C", "AVX2", "XOP", "FMA4", "VAES", "VPCLMULQDQ", "AVX_VNNI", "GFNI"];
const NEED_AVX512: &str = "AVX512";

impl Features {
    /// None at all.
    pub const NONE: Features = Features { words: [0; WORDS] };

    /// Those with these words, missing ones being 0.
    #[must_use]
    pub fn from_words(given: &[u32]) -> Features {
        let mut words = [0; WORDS];
        words.iter_mut().zip(given).for_each(|(word, given)| *word = *given);
        Features { words }
    }

    /// Those of the processor this runs on, as far as code in user space may use them. Of the words that Linux fills by
    /// itself only what holds everywhere is set: none of its mitigations, and no bugs.
    #[must_use]
    pub fn of_this_machine() -> Features {
        let highest = __cpuid(0).eax;
        let highest_extended = __cpuid(0x8000_0000).eax;
        let leaf = |leaf: u32, sub: u32| {
            let known = if leaf >= 0x8000_0000 { leaf <= highest_extended } else { leaf <= highest };
            known.then(|| __cpuid_count(leaf, sub))
        };
        let mut words = [0; WORDS];
        if let Some(basic) = leaf(1, 0) {
            (words[0], words[4]) = (basic.edx, basic.ecx);
        }
        if let Some(extended) = leaf(0x8000_0001, 0) {
            (words[1], words[6]) = (extended.edx, extended.ecx);
        }
        if let Some(structured) = leaf(7, 0) {
            (words[9], words[16], words[18]) = (structured.ebx, structured.ecx, structured.edx);
            words[12] = if structured.eax >= 1 { leaf(7, 1).map_or(0, |more| more.eax) } else { 0 };
        }
        words[10] = leaf(0xd, 1).map_or(0, |state| state.eax);
        words[13] = leaf(0x8000_0008, 0).map_or(0, |sizes| sizes.ebx);
        words[14] = leaf(6, 0).map_or(0, |power| power.eax);
        words[15] = leaf(0x8000_000a, 0).map_or(0, |virtualised| virtualised.edx);
        words[17] = leaf(0x8000_0007, 0).map_or(0, |power| power.ebx);
        words[19] = leaf(0x8000_001f, 0).map_or(0, |encryption| encryption.eax);
        words[20] = leaf(0x8000_0021, 0).map_or(0, |more| more.eax);
        let mut features = Features { words };
        features.set(ALWAYS);
        features.set(NOPL);
        // What the system does not save cannot be used.
        let avx = std::is_x86_feature_detected!("avx");
        let avx512 = std::is_x86_feature_detected!("avx512f");
        for (number, name) in numbered() {
            let unsaved = (!avx && NEED_AVX.contains(&name)) || (!avx512 && name.starts_with(NEED_AVX512));
            if unsaved || PRIVILEGED.contains(&name) {
                features.clear(number);
            }
        }
        features
    }

    /// Those that are named, separated by commas or blanks.
    ///
    /// # Errors
    /// [`UnknownFeature`]: the first name that is not in the table.
    pub fn named(names: &str) -> Result<Features, UnknownFeature> {
        let mut features = Features::NONE;
        for name in names.split([',', ' ', '\n']).filter(|name| !name.is_empty()) {
            features.set(Features::number(name).ok_or_else(|| UnknownFeature(name.escape_debug().to_string()))?);
        }
        Ok(features)
    }

    /// The number of a feature, by its name in any case of letters.
    #[must_use]
    pub fn number(name: &str) -> Option<u16> {
        numbered().find(|(_, known)| known.eq_ignore_ascii_case(name)).map(|(number, _)| number)
    }

    /// The name of the feature with this number, if it is in the table.
    #[must_use]
    pub fn name(number: u16) -> Option<&'static str> {
        let bits = FEATURES.get(usize::from(number / 32))?.bits;
        bits.iter().find(|(bit, _)| u16::from(*bit) == number % 32).map(|(_, name)| *name)
    }

    /// Whether the feature with this number is there; `None` if there is none of this number.
    #[must_use]
    pub fn has(&self, number: u16) -> Option<bool> {
        let word = self.words.get(usize::from(number / 32))?;
        Some(word >> (number % 32) & 1 == 1)
    }

    /// Whether the feature of this name is there.
    #[must_use]
    pub fn has_named(&self, name: &str) -> bool {
        Features::number(name).and_then(|number| self.has(number)).unwrap_or_default()
    }

    /// The features of a processor that are not `others`, by name. What Linux adds by itself, its mitigations above
    /// all, is no feature of a processor.
    #[must_use]
    pub fn beyond(&self, others: &Features) -> Vec<&'static str> {
        let of_processor = numbered().filter(|(number, _)| !LINUX_WORDS.contains(&usize::from(number / 32)));
        let beyond = of_processor.filter(|(number, _)| self.has(*number) > others.has(*number));
        beyond.map(|(_, name)| name).collect()
    }

    /// The words, those of bugs last.
    #[must_use]
    pub fn words(&self) -> &[u32; WORDS] {
        &self.words
    }

    fn set(&mut self, number: u16) {
        self.words[usize::from(number / 32)] |= 1 << (number % 32);
    }

    fn clear(&mut self, number: u16) {
        self.words[usize::from(number / 32)] &= !(1 << (number % 32));
    }
}

/// All features with their numbers.
fn numbered() -> impl Iterator<Item = (u16, &'static str)> {
    (0_u16..)
        .zip(FEATURES)
        .flat_map(|(word, features)| features.bits.iter().map(move |(bit, name)| (32 * word + u16::from(*bit), *name)))
}

/// The names, separated by blanks.
impl fmt::Debug for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let here = numbered().filter(|(number, _)| self.has(*number) == Some(true));
        f.write_str(&here.map(|(_, name)| name).collect::<Vec<_>>().join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::{ALWAYS, FEATURES, Features, INDIRECT_THUNK_ITS, NOPL, RETHUNK, RETPOLINE, RETPOLINE_LFENCE, numbered};

    #[test]
    fn the_table_has_each_bit_and_each_name_once_and_in_order() {
        let all: Vec<_> = numbered().collect();
        assert!(all.windows(2).all(|pair| pair[0].0 < pair[1].0));
        let mut names: Vec<_> = all.iter().map(|(_, name)| name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all.len());
        assert!(FEATURES.iter().flat_map(|word| word.bits).all(|(bit, _)| *bit < 32));
        // As in Linux's header.
        for (name, number) in [("FPU", 0), ("XMM2", 26), ("ERMS", 9 * 32 + 9), ("SMAP", 9 * 32 + 20), ("BUG_F00F", 704)]
        {
            assert_eq!(Features::number(name), Some(number));
            assert_eq!(Features::name(number), Some(name));
        }
        for (number, name) in [
            (ALWAYS, "ALWAYS"),
            (NOPL, "NOPL"),
            (RETPOLINE, "RETPOLINE"),
            (RETPOLINE_LFENCE, "RETPOLINE_LFENCE"),
            (RETHUNK, "RETHUNK"),
            (INDIRECT_THUNK_ITS, "INDIRECT_THUNK_ITS"),
        ] {
            assert_eq!(Features::name(number), Some(name));
        }
    }

    #[test]
    fn features_are_given_by_name_or_by_word() {
        let named = Features::named("xmm2, fpu ERMS").unwrap();
        assert_eq!(format!("{named:?}"), "FPU XMM2 ERMS");
        assert_eq!(Features::from_words(named.words()), named);
        assert_eq!((named.has(0), named.has(1), named.has(24 * 32)), (Some(true), Some(false), None));
        assert!(named.beyond(&Features::from_words(&[u32::MAX; 24])).is_empty());
        assert_eq!(Features::named("FPU ERMS AVX RETPOLINE BUG_ITS").unwrap().beyond(&named), ["AVX"]);
        let refused = Features::named("fpu,sse9").unwrap_err().to_string();
        assert!(refused.contains("\"sse9\""), "{refused}");
    }

    #[test]
    fn this_machine_has_what_every_one_has() {
        let here = Features::of_this_machine();
        let everywhere = Features::named("FPU XMM2 SYSCALL LM ALWAYS").unwrap();
        assert!(everywhere.beyond(&here).is_empty() && here.has_named("ALWAYS"), "{here:?}");
        assert!(!here.has_named("SMAP"), "stac and clac are not for user space");
        assert_eq!(here.has_named("AVX2"), std::is_x86_feature_detected!("avx2"));
    }
}
