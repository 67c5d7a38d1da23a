//! Where Linux 6.1 places the sections of a module, relative to the start of its memory. sysfs does not list empty
//! sections, though symbols lie in them; and that it agrees on all others shows that the dump belongs to the file.

use super::ko::{Ko, Section};

/// The pages that groups begin with.
const PAGE: u64 = 4096;

/// Data that is written until init has returned.
const RO_AFTER_INIT: [&str; 2] = [".data..ro_after_init", "__jump_table"];

/// Sections of one permission lie together, in the order of these groups.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Group {
    Text,
    ReadOnly,
    RoAfterInit,
    Writable,
}

fn group(section: &Section) -> Group {
    if section.is_executable() {
        Group::Text
    } else if !section.is_writable() {
        Group::ReadOnly
    } else if RO_AFTER_INIT.contains(&section.name.as_str()) {
        Group::RoAfterInit
    } else {
        Group::Writable
    }
}

/// Which of the two memories of a module.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Half {
    /// Given back after init.
    Init,
    Core,
}

/// The offset of each kept section in its half, by index.
pub(crate) fn offsets(ko: &Ko<'_>, half: Half) -> Vec<(usize, u64)> {
    let mut placed = Vec::new();
    let mut end: u64 = 0;
    for part in [Group::Text, Group::ReadOnly, Group::RoAfterInit, Group::Writable] {
        for (index, section) in ko.numbered().filter(|(_, section)| section.is_kept() && group(section) == part) {
            if section.is_init() == (half == Half::Init) {
                let start = end.next_multiple_of(section.align);
                placed.push((index, start));
                end = start + section.size;
            }
        }
        end = end.next_multiple_of(PAGE);
    }
    placed
}
