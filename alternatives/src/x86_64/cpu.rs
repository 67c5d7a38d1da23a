//! The features of a processor.

use std::arch::x86_64::{__cpuid, __cpuid_count};
use std::fmt;

use thiserror::Error;

use super::features::{FEATURES, WORDS};
use super::user_space::{FeatureRule, Must, ROWS};

/// The features of a processor: Linux's `x86_capability`, words of capabilities followed by words of bugs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Features {
    words: [u32; WORDS],
}

/// A feature name that is not in the table.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("there is no feature {0:?}; names are those of Linux's cpufeatures.h, without X86_FEATURE_")]
pub struct UnknownFeature(pub String);

/// Features that are tested at every site of a table. Looking up their names each time would be most of the work.
pub(crate) const RETPOLINE: u16 = 11 * 32 + 12;
pub(crate) const RETPOLINE_LFENCE: u16 = 11 * 32 + 13;
pub(crate) const RETHUNK: u16 = 11 * 32 + 14;
pub(crate) const INDIRECT_THUNK_ITS: u16 = 21 * 32 + 5;

/// The words that Linux fills itself: they hold Linux's choices for code, not features of a processor.
const LINUX_WORDS: [usize; 7] = [3, 7, 8, 11, 21, 22, 23];

impl Features {
    /// No features.
    pub const NONE: Features = Features { words: [0; WORDS] };

    /// Makes features of these words. Missing words are 0.
    #[must_use]
    pub fn from_words(given: &[u32]) -> Features {
        let mut words = [0; WORDS];
        words.iter_mut().zip(given).for_each(|(word, given)| *word = *given);
        Features { words }
    }

    /// Returns the features of this processor that code in user space may use. In the words that Linux fills itself,
    /// only the features that user space must have are set: no mitigations and no bugs.
    #[must_use]
    pub fn of_this_machine() -> Features {
        Features::of_this_processor().for_user_space()
    }

    /// Returns why user space must not have a feature, or `None` if it may have it.
    #[must_use]
    pub fn why_not_in_user_space(name: &str) -> Option<&'static str> {
        let is_it = |row: &&FeatureRule| row.features.contains(&name) && matches!(row.must, Must::NotBeThere);
        ROWS.iter().find(is_it).map(|row| row.because)
    }

    /// Returns the features that CPUID reports. The words that Linux fills itself stay empty.
    fn of_this_processor() -> Features {
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
        Features { words }
    }

    /// Sets the features that user space must have and clears those it must not have. Each row of a table gives the
    /// reason. A list that a user provides may omit any other feature.
    #[must_use]
    pub fn for_user_space(mut self) -> Features {
        for row in ROWS {
            for name in row.features {
                let Some(number) = Features::number(name) else { continue };
                match row.must {
                    Must::BeThere => self.set(number),
                    Must::NotBeThere => self.clear(number),
                    Must::BeSaved(is_saved) if !is_saved() => self.clear(number),
                    Must::BeSaved(_) => {}
                }
            }
        }
        self
    }

    /// Returns the features with these names, separated by commas or blanks.
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

    /// Returns the number of a feature. Upper and lower case of the name do not matter.
    #[must_use]
    pub fn number(name: &str) -> Option<u16> {
        numbered().find(|(_, known)| known.eq_ignore_ascii_case(name)).map(|(number, _)| number)
    }

    /// Returns the name of the feature with this number, if the table has one.
    #[must_use]
    pub fn name(number: u16) -> Option<&'static str> {
        let bits = FEATURES.get(usize::from(number / 32))?.bits;
        bits.iter().find(|(bit, _)| u16::from(*bit) == number % 32).map(|(_, name)| *name)
    }

    /// Returns whether the feature with this number is present, or `None` if the number is too large.
    #[must_use]
    pub fn has(&self, number: u16) -> Option<bool> {
        let word = self.words.get(usize::from(number / 32))?;
        Some(word >> (number % 32) & 1 == 1)
    }

    /// Returns whether the feature of this name is present.
    #[must_use]
    pub fn has_named(&self, name: &str) -> bool {
        Features::number(name).and_then(|number| self.has(number)).unwrap_or_default()
    }

    /// Returns the names of the processor features that are set here but not in `others`. Features that Linux sets
    /// itself, mostly mitigations, are no processor features.
    #[must_use]
    pub fn beyond(&self, others: &Features) -> Vec<&'static str> {
        let of_processor = numbered().filter(|(number, _)| !LINUX_WORDS.contains(&usize::from(number / 32)));
        let beyond = of_processor.filter(|(number, _)| self.has(*number) > others.has(*number));
        beyond.map(|(_, name)| name).collect()
    }

    /// Returns the words. The words of bugs come last.
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

/// Returns all features with their numbers.
fn numbered() -> impl Iterator<Item = (u16, &'static str)> {
    (0_u16..)
        .zip(FEATURES)
        .flat_map(|(word, features)| features.bits.iter().map(move |(bit, name)| (32 * word + u16::from(*bit), *name)))
}

/// Writes the names, separated by blanks.
impl fmt::Debug for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let here = numbered().filter(|(number, _)| self.has(*number) == Some(true));
        f.write_str(&here.map(|(_, name)| name).collect::<Vec<_>>().join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::super::user_space::{Must, ROWS};
    use super::{FEATURES, Features, INDIRECT_THUNK_ITS, LINUX_WORDS, RETHUNK, RETPOLINE, RETPOLINE_LFENCE, numbered};

    #[test]
    fn the_table_has_each_bit_and_each_name_once_and_in_order() {
        let all: Vec<_> = numbered().collect();
        assert!(all.windows(2).all(|pair| pair[0].0 < pair[1].0));
        let mut names: Vec<_> = all.iter().map(|(_, name)| name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all.len());
        assert!(FEATURES.iter().flat_map(|word| word.bits).all(|(bit, _)| *bit < 32));
        // The numbers of Linux's header.
        for (name, number) in [("FPU", 0), ("XMM2", 26), ("ERMS", 9 * 32 + 9), ("SMAP", 9 * 32 + 20), ("BUG_F00F", 704)]
        {
            assert_eq!(Features::number(name), Some(number));
            assert_eq!(Features::name(number), Some(name));
        }
        for (number, name) in [
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

    /// Checks each feature of the table on a processor with all features, on one with none, and on this processor. A
    /// feature is as its row says, with a reason, or as the processor says; and no feature that Linux would set itself
    /// is set.
    #[test]
    fn every_feature_is_as_user_space_needs_it() {
        let mut rows = std::collections::BTreeMap::new();
        for row in ROWS {
            assert!(row.because.len() > 20, "{}", row.because);
            for name in row.features {
                assert!(Features::number(name).is_some(), "{name} is a feature");
                assert!(rows.insert(*name, row.must).is_none(), "{name} is in one row");
            }
        }
        let everything = Features::from_words(&[u32::MAX; 24]);
        let (with_all, with_none) = (everything.for_user_space(), Features::NONE.for_user_space());
        let (processor, here) = (Features::of_this_processor(), Features::of_this_machine());
        for (number, name) in numbered() {
            let [all, none, processor, here] =
                [&with_all, &with_none, &processor, &here].map(|features| features.has(number).unwrap());
            let expected = match rows.get(name) {
                Some(Must::BeThere) => (true, true, true),
                Some(Must::NotBeThere) => (false, false, false),
                Some(Must::BeSaved(is_saved)) => (is_saved(), false, processor && is_saved()),
                None => (true, false, processor),
            };
            assert_eq!((all, none, here), expected, "{name}");
            let is_linuxs_own = LINUX_WORDS.contains(&usize::from(number / 32));
            assert!(!(is_linuxs_own && processor), "{name} is for Linux to set, and CPUID does not say it");
        }
        let avx512: Vec<_> = numbered().filter(|(_, name)| name.starts_with("AVX512")).collect();
        assert!(avx512.iter().all(|(_, name)| rows.contains_key(name)), "{avx512:?}");
        assert!(Features::why_not_in_user_space("SMAP").is_some_and(|why| why.contains("stac")));
        assert_eq!(Features::why_not_in_user_space("XENPV"), None);
        // The instructions that the code would contain otherwise.
        for name in ["XENPV", "ALWAYS"] {
            assert!(here.has_named(name), "{name}");
        }
        for name in ["SMAP", "INVPCID", "USE_IBPB", "RETPOLINE", "PTI"] {
            assert!(!here.has_named(name), "{name}");
        }
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
