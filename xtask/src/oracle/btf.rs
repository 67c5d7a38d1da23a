//! BTF, in which a kernel describes its own types: the offsets of members, and the sizes of structures.

use crate::Result;

const MAGIC: u16 = 0xeb9f;

/// The kinds of types. The rows are: kind, number of additional bytes per type, and number of bytes per part of the
/// type.
const INT: u32 = 1;
const ARRAY: u32 = 3;
const STRUCT: u32 = 4;
const UNION: u32 = 5;
const FOLLOWING: [(u32, usize, usize); 10] = [
    (INT, 4, 0),
    (ARRAY, 12, 0),
    (STRUCT, 0, 12),
    (UNION, 0, 12),
    (6, 0, 8),
    (13, 0, 8),
    (14, 4, 0),
    (15, 0, 12),
    (17, 4, 0),
    (19, 0, 12),
];

/// The types of a kernel.
pub(crate) struct Btf<'b> {
    strings: &'b [u8],
    /// The types by number. The first is void.
    types: Vec<Type<'b>>,
}

#[derive(Clone, Copy)]
struct Type<'b> {
    name: usize,
    kind: u32,
    /// Whether a member's offset field also holds the size of a bit field.
    has_bit_fields: bool,
    parts: usize,
    size: u32,
    following: &'b [u8],
}

/// The place of a member.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct BtfMember {
    /// The offset in bytes from the start of the structure.
    pub(crate) offset: u64,
    /// The number of elements, if the member is an array.
    pub(crate) elements: Option<u32>,
}

fn word(bytes: &[u8], at: usize) -> Result<u32> {
    let bytes = bytes.get(at..).and_then(|rest| rest.first_chunk()).ok_or("BTF ends too early")?;
    Ok(u32::from_le_bytes(*bytes))
}

fn number(bytes: &[u8], at: usize) -> Result<usize> {
    Ok(usize::try_from(word(bytes, at)?)?)
}

impl<'b> Btf<'b> {
    pub(crate) fn parse(bytes: &'b [u8]) -> Result<Btf<'b>> {
        if bytes.first_chunk() != Some(&MAGIC.to_le_bytes()) {
            return Err("the data is not BTF".into());
        }
        let body = bytes.get(number(bytes, 4)?..).ok_or("BTF ends too early")?;
        let part = |at| -> Result<&'b [u8]> {
            let (start, length) = (number(bytes, at)?, number(bytes, at + 4)?);
            body.get(start..start + length).ok_or_else(|| "BTF ends too early".into())
        };
        let (mut rest, strings) = (part(8)?, part(16)?);
        let void = Type { name: 0, kind: 0, has_bit_fields: false, parts: 0, size: 0, following: &[] };
        let mut types = vec![void];
        while !rest.is_empty() {
            let info = word(rest, 4)?;
            let (kind, parts) = ((info >> 24) & 0x1f, usize::try_from(info & 0xffff)?);
            let row = FOLLOWING.iter().find(|(row, ..)| *row == kind);
            let following = row.map_or(0, |(_, once, each)| once + each * parts);
            let (this, after) = rest.split_at_checked(12 + following).ok_or("BTF ends too early")?;
            let (name, size) = (number(this, 0)?, word(this, 8)?);
            types.push(Type { name, kind, has_bit_fields: info >> 31 == 1, parts, size, following: &this[12..] });
            rest = after;
        }
        Ok(Btf { strings, types })
    }

    fn name(&self, at: usize) -> &'b [u8] {
        self.strings.get(at..).and_then(|rest| rest.split(|byte| *byte == 0).next()).unwrap_or_default()
    }

    fn structure(&self, name: &str) -> Result<&Type<'b>> {
        let found = self.types.iter().find(|it| it.kind == STRUCT && self.name(it.name) == name.as_bytes());
        found.ok_or_else(|| format!("the kernel has no structure {name}").into())
    }

    /// Returns the size of a structure.
    pub(crate) fn size(&self, name: &str) -> Result<u64> {
        Ok(self.structure(name)?.size.into())
    }

    /// Returns a member of a structure, or of an anonymous structure within it.
    pub(crate) fn member(&self, structure: &str, member: &str) -> Result<BtfMember> {
        let found = self.member_of(self.structure(structure)?, member)?;
        found.ok_or_else(|| format!("{structure} has no member {member}").into())
    }

    fn member_of(&self, structure: &Type<'b>, member: &str) -> Result<Option<BtfMember>> {
        for part in 0..structure.parts {
            let (name, kind) = (number(structure.following, part * 12)?, number(structure.following, part * 12 + 4)?);
            let place = word(structure.following, part * 12 + 8)?;
            let bits = if structure.has_bit_fields { place & 0x00ff_ffff } else { place };
            let offset = u64::from(bits / 8);
            let of = self.types.get(kind).ok_or("BTF names a type that it does not have")?;
            if name != 0 && self.name(name) == member.as_bytes() {
                let elements = if of.kind == ARRAY { Some(word(of.following, 8)?) } else { None };
                return Ok(Some(BtfMember { offset, elements }));
            }
            let has_no_name = name == 0 && [STRUCT, UNION].contains(&of.kind);
            let inner = if has_no_name { self.member_of(of, member)? } else { None };
            if let Some(inner) = inner {
                return Ok(Some(BtfMember { offset: offset + inner.offset, ..inner }));
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::{Btf, BtfMember, MAGIC};

    /// Returns types, given as words, with a header before and these names after.
    fn btf(types: &[u32], names: &str) -> Vec<u8> {
        let (length, names_length) = (u32::try_from(types.len()).unwrap() * 4, u32::try_from(names.len()).unwrap());
        let words =
            [u32::from(MAGIC) | 1 << 16, 24, 0, length, length, names_length].into_iter().chain(types.iter().copied());
        words.flat_map(u32::to_le_bytes).chain(names.bytes()).collect()
    }

    #[test]
    fn members_are_found_in_what_has_no_name() {
        // 1: an integer. 2: an array of 24. 3: a union without a name. 4: struct s { int a; union { array b; }; }
        let integer = [0, 1 << 24, 4, 32];
        let array = [0, 3 << 24, 0, 1, 1, 24];
        let union = [0, 5 << 24 | 1, 96, 5, 2, 0];
        let structure = [1, 4 << 24 | 2, 100, 3, 1, 0, 0, 3, 32];
        let bytes = btf(&[&integer[..], &array, &union, &structure].concat(), "\0s\0a\0b\0");
        let btf = Btf::parse(&bytes).unwrap();
        assert_eq!(btf.member("s", "a").unwrap(), BtfMember { offset: 0, elements: None });
        assert_eq!(btf.member("s", "b").unwrap(), BtfMember { offset: 4, elements: Some(24) });
        assert_eq!(btf.size("s").unwrap(), 100);
        assert_eq!(btf.member("s", "c").unwrap_err().to_string(), "s has no member c");
        assert!(btf.size("t").is_err() && Btf::parse(&bytes[..60]).is_err() && Btf::parse(&[]).is_err());
    }
}
