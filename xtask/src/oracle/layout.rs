//! The places of a module's sections in its memory, computed like Linux 6.1 does. Needed for empty sections, which
//! sysfs does not list although symbols lie in them. That sysfs agrees for all other sections shows that the dump
//! belongs to the file.

use super::ko::{Ko, KoSection};

/// The page size. Each group begins on a new page.
const PAGE: u64 = 4096;

/// Sections that are written until init has returned.
const RO_AFTER_INIT: [&str; 2] = [".data..ro_after_init", "__jump_table"];

/// The groups of sections by permission, in the order in which they are placed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum PermissionGroup {
    Text,
    ReadOnly,
    RoAfterInit,
    Writable,
}

fn group(section: &KoSection) -> PermissionGroup {
    if section.is_executable() {
        PermissionGroup::Text
    } else if !section.is_writable() {
        PermissionGroup::ReadOnly
    } else if RO_AFTER_INIT.contains(&section.name.as_str()) {
        PermissionGroup::RoAfterInit
    } else {
        PermissionGroup::Writable
    }
}

/// One of the two memory areas of a module.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Half {
    /// Freed after init.
    Init,
    Core,
}

/// Returns the offset of each kept section in its half, by index.
pub(crate) fn offsets(ko: &Ko<'_>, half: Half) -> Vec<(usize, u64)> {
    let mut placed = Vec::new();
    let mut end: u64 = 0;
    for part in
        [PermissionGroup::Text, PermissionGroup::ReadOnly, PermissionGroup::RoAfterInit, PermissionGroup::Writable]
    {
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
