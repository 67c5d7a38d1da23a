//! `.modinfo`: strings of the form `key=value`, each ended by a NUL. More NULs may lie between them for alignment.

use std::borrow::Cow;
use std::fmt;

/// One entry. Its bytes need not be UTF-8.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ModinfoEntry<'a> {
    /// The bytes before the first `=`.
    pub key: &'a [u8],
    /// The bytes after the first `=`. Empty if the entry has no `=`.
    pub value: &'a [u8],
}

impl fmt::Debug for ModinfoEntry<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.key.escape_ascii(), self.value.escape_ascii())
    }
}

/// Returns the entries of a `.modinfo` section, in order. A last string without a closing NUL counts as an entry.
pub fn entries(section: &[u8]) -> impl Iterator<Item = ModinfoEntry<'_>> {
    section.split(|&byte| byte == 0).filter(|string| !string.is_empty()).map(|string| {
        let equals = string.iter().position(|&byte| byte == b'=');
        let (key, value) = equals.map_or((string, &[][..]), |at| (&string[..at], &string[at + 1..]));
        ModinfoEntry { key, value }
    })
}

/// Returns the value of the first entry with this key.
#[must_use]
pub fn get<'a>(section: &'a [u8], key: &str) -> Option<&'a [u8]> {
    entries(section).find(|entry| entry.key == key.as_bytes()).map(|entry| entry.value)
}

/// Returns whether Linux counts this licence as compatible with the GPL (`license_is_gpl_compatible`,
/// include/linux/license.h).
#[must_use]
pub fn is_gpl_compatible(license: &[u8]) -> bool {
    const COMPATIBLE: [&[u8]; 6] =
        [b"GPL", b"GPL v2", b"GPL and additional rights", b"Dual BSD/GPL", b"Dual MIT/GPL", b"Dual MPL/GPL"];
    COMPATIBLE.contains(&license)
}

/// Returns a module's name in the form in which Linux compares names, with `_` for each `-`. A file name may contain
/// `-`, but a C identifier cannot.
#[must_use]
pub fn canonical(name: &str) -> Cow<'_, str> {
    if name.contains('-') { Cow::Owned(name.replace('-', "_")) } else { Cow::Borrowed(name) }
}

/// Returns a pattern with `_` for each `-` outside of brackets.
#[must_use]
pub fn canonical_pattern(pattern: &str) -> String {
    let mut inside = false;
    let letter = |letter| {
        inside = match letter {
            '[' => true,
            ']' => false,
            _ => inside,
        };
        if letter == '-' && !inside { '_' } else { letter }
    };
    pattern.chars().map(letter).collect()
}

/// Returns whether two names mean the same module.
#[must_use]
pub fn is_same_name(a: &str, b: &str) -> bool {
    canonical(a) == canonical(b)
}

#[cfg(test)]
mod tests {
    use super::{canonical_pattern, entries, get, is_gpl_compatible, is_same_name};

    #[test]
    fn dashes_and_underscores_are_alike() {
        assert!(is_same_name("my-mod_x", "my_mod-x") && is_same_name("a", "a"));
        assert_eq!(canonical_pattern("a-b[0-9]-c"), "a_b[0-9]_c");
        assert!(!is_same_name("my-mod", "mymod") && !is_same_name("my-mod", "my.mod"));
    }

    #[test]
    fn entries_are_separated_by_any_number_of_nuls() {
        let section = b"name=greet\0\0\0license=Dual MIT/GPL\0flag\0parm=x=y";
        let seen: Vec<_> = entries(section).map(|entry| format!("{entry:?}")).collect();
        assert_eq!(seen, ["name=greet", "license=Dual MIT/GPL", "flag=", "parm=x=y"]);
        assert_eq!(get(section, "parm"), Some(&b"x=y"[..]));
        assert_eq!(get(section, "parmtype"), None);
    }

    #[test]
    fn licences_are_compared_exactly() {
        assert!(is_gpl_compatible(b"GPL v2"));
        assert!(!is_gpl_compatible(b"GPL v3"));
        assert!(!is_gpl_compatible(b"gpl"));
    }
}
