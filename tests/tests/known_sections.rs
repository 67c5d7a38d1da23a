//! Every section type and every section name in the tables of `abi`, and unknown type numbers: the results of a load
//! and of `check` agree with the tables. No code of the modules runs.

use std::fs;

use modload::error::sentence;
use modload::inspect::Inspection;
use modload::{Host, Image, Input};
use modload_abi::known::{NAMES, NameMatch, SectionContents, TYPES, Treatment, section_type};
use modload_abi::section::{STATIC_CALL_TRAMP_KEY, VERSIONS};
use modload_fixtures::{Compiler, Language, object_from_text};

const LIMIT: u64 = 1 << 20;

fn object(text: &str) -> Vec<u8> {
    let text = format!("{text}\n.section .note.GNU-stack,\"\",@progbits\n");
    fs::read(object_from_text("known", Language::Assembler, &text, Compiler::Cc, &[]).unwrap()).unwrap()
}

/// Returns the reason why a load refuses the object, if a load refuses it. `check` must agree.
fn refusal(bytes: &[u8]) -> Option<String> {
    let host = Host::builder().build().unwrap();
    // SAFETY: the object has no function that is called.
    let loaded = host.load(&unsafe { Image::trusted(bytes) }.named("known"));
    let input = Input { name: String::new(), bytes: bytes.into() };
    let checked = host.check(&[input], "known").err().map(|error| sentence(&*error.error));
    let said = match loaded {
        Ok(module) => module.unload().map(|()| None).unwrap(),
        Err(error) => Some(sentence(&*error.error)),
    };
    // Subscribers are asked only by a load.
    let by_subscriber = said.as_ref().is_some_and(|said| said.starts_with("refused by "));
    assert!(checked == said || (checked.is_none() && by_subscriber), "check says {checked:?}, and loading {said:?}");
    said
}

fn word(bytes: &[u8], at: usize) -> usize {
    usize::try_from(u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())).unwrap()
}

/// Returns the object with another type for its section `.probe`, which is the only section with 24 bytes.
fn retyped(mut bytes: Vec<u8>, kind: u32) -> Vec<u8> {
    let headers = word(&bytes, 0x28);
    let count = usize::from(u16::from_le_bytes(bytes[0x3c..0x3e].try_into().unwrap()));
    let probe = (0..count).map(|at| headers + 64 * at).find(|header| word(&bytes, header + 0x20) == 24).unwrap();
    bytes[probe + 4..probe + 8].copy_from_slice(&kind.to_le_bytes());
    bytes
}

#[test]
fn every_type_is_placed_read_known_to_be_harmless_or_refused_by_its_number() {
    let probe = |flags: &str| object(&format!(".section .probe,\"{flags}\",@progbits\n.zero 24"));
    let (kept, other) = (probe("a"), probe(""));
    let mut numbers: Vec<u32> = TYPES.iter().map(|known| known.number).collect();
    numbers.extend(0..40);
    numbers.extend([0x4000_0000, 0x4000_0013, 0x4000_0015, 0x5fff_ffff, 0x6000_0000, 0x6000_0003, 0x6fff_4700 - 1]);
    numbers.extend(0x6fff_4c00..0x6fff_4c20);
    numbers.extend(0x6fff_fff0..=0x6fff_ffff);
    numbers.extend([0x7000_0000, 0x7000_0001, 0x7000_0002, 0x7fff_ffff, 0x8000_0000, 0x8000_0001, u32::MAX]);
    // Arbitrary numbers.
    numbers.extend((1_u32..200).map(|round| round.wrapping_mul(0x9e37_79b9)));
    for number in numbers {
        let [kept, other] = [&kept, &other].map(|bytes| refusal(&retyped(bytes.clone(), number)));
        let by_number = format!("section \".probe\": its type is {number:#x}");
        let names_it = |said: &Option<String>| said.as_ref().is_some_and(|said| said.contains(&by_number));
        match section_type(number).map(|known| known.treatment) {
            // Compact relocations are read: 24 zeros are none.
            Some(Treatment::Refused(_)) if number == modload_abi::known::SHT_CREL => {
                assert!(kept.is_some() && other.is_some(), "{number:#x}: {kept:?}, {other:?}");
            }
            None | Some(Treatment::Refused(_)) => {
                assert!(names_it(&kept) && names_it(&other), "{number:#x}: {kept:?}, {other:?}");
            }
            Some(Treatment::Named(_)) => {
                assert!(names_it(&kept) && other.is_none(), "{number:#x}: {kept:?}, {other:?}");
            }
            Some(Treatment::Plain | Treatment::Hint) => assert_eq!((kept, other), (None, None), "{number:#x}"),
            // Of most of these 24 zeros are no sound one.
            Some(Treatment::Table) => assert!(kept.is_some(), "{number:#x}: {kept:?}"),
        }
    }
}

/// Returns an object with a section of this name, these flags, this type, this size, and this value in each byte.
fn named(name: &str, flags: &str, kind: &str, size: u64, byte: u8) -> Vec<u8> {
    object(&format!(".section {name},\"{flags}\",@{kind}\n.fill {size}, 1, {byte}\n"))
}

#[test]
fn every_name_is_followed_to_its_last_byte_or_refused() {
    for known in NAMES {
        let name =
            if known.names == NameMatch::Prefix { format!("{}probe", known.name) } else { known.name.to_owned() };
        let refused = |what: &str, bytes: &[u8]| {
            let said = refusal(bytes);
            let names_it =
                said.as_ref().is_some_and(|said| said.contains(&name) || said.starts_with("refused by static_keys: "));
            assert!(names_it, "{name}, {what}: {said:?}");
        };
        let loads = |what: &str, bytes: &[u8]| assert_eq!(refusal(bytes), None, "{name}, {what}");
        if !matches!(known.contents, SectionContents::Refused { .. }) {
            loads("empty", &named(&name, "a", "progbits", 0, 0));
        }
        match known.contents {
            SectionContents::Records(sizes) => {
                for size in sizes {
                    refused("a part of a record", &named(&name, "a", "progbits", size + 1, 0));
                    refused("less than a record", &named(&name, "a", "progbits", size - 1, 0));
                }
                refused("not allocated", &named(&name, "", "progbits", sizes[0], 0));
                refused("without contents", &named(&name, "a", "nobits", sizes[0], 0));
                // A list of versions has no effect on symbols that are not used, whatever their names. Among tables of
                // trampolines' keys Linux reads only the kernel's own.
                if ![VERSIONS, STATIC_CALL_TRAMP_KEY].contains(&&*name) {
                    refused("a record of nonsense", &named(&name, "a", "progbits", sizes[0], 0x5a));
                }
            }
            SectionContents::Functions => {
                for name in [name.clone(), format!("{name}.100")] {
                    refused("a part of a pointer", &named(&name, "a", "progbits", 12, 0));
                    refused("not allocated", &named(&name, "", "progbits", 8, 0));
                    refused("without contents", &named(&name, "a", "nobits", 8, 0));
                    refused("no function", &named(&name, "a", "progbits", 8, 0x5a));
                }
            }
            SectionContents::Strings | SectionContents::Frames => {
                refused("not allocated", &named(&name, "", "progbits", 8, 0));
                refused("without contents", &named(&name, "a", "nobits", 8, 0));
            }
            SectionContents::Refused { .. } => refused("not empty", &named(&name, "a", "progbits", 8, 0)),
            SectionContents::Placed => {
                let bytes = named(&name, "a", "progbits", 8, 0);
                loads("placed", &bytes);
                let inspection = Inspection::of(&bytes, "known", LIMIT).unwrap();
                let section = inspection.sections.iter().find(|section| section.name == name).unwrap();
                assert!(section.place.is_some(), "{name} stands in memory");
            }
            SectionContents::Mark => loads("a mark", &named(&name, "", "progbits", 8, 0)),
        }
    }
}

#[test]
fn unknown_flags_are_refused() {
    let bytes = object(".section .probe,\"a\",@progbits\n.zero 24");
    let headers = word(&bytes, 0x28);
    let count = usize::from(u16::from_le_bytes(bytes[0x3c..0x3e].try_into().unwrap()));
    let probe = (0..count).map(|at| headers + 64 * at).find(|header| word(&bytes, header + 0x20) == 24).unwrap();
    for bit in 0..64 {
        let flag = 1_u64 << bit;
        let mut bytes = bytes.clone();
        bytes[probe + 8..probe + 16].copy_from_slice(&(2 | flag).to_le_bytes());
        let is_known = modload_abi::known::FLAGS & flag != 0;
        let said = refusal(&bytes);
        let unknown = said.as_ref().is_some_and(|said| said.contains("flags (sh_flags) that are not known"));
        assert_eq!(unknown, !is_known, "{flag:#x}: {said:?}");
    }
}
