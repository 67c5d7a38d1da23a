//! Stage *params*: `name=value`, stored into the module's variables as Linux's `kernel/params.c` does.

use std::ffi::CString;
use std::fmt;

use modload_abi::KernelParam;
use modload_abi::record::{FixedRecord, KparamArray, KparamString};
use modload_edit::{Addr, index, wide};

use crate::prepare::error::PrepareError;
use crate::prepare::layout::MemoryPart;
use crate::prepare::memory::Staging;
use crate::vocabulary::escape::escaped;
use crate::vocabulary::param_error::ParamError;

/// The type of a parameter, named as in `module_param(name, type, perm)`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ParamType {
    /// One byte: y, yes, 1, on; n, no, 0, off. No value means yes.
    Bool,
    /// The same, and the opposite is stored.
    InvBool,
    /// An integer.
    Integer(Integer),
    /// A pointer to a string, which the host keeps.
    CharP,
    /// A buffer of this many bytes, including the closing NUL.
    String {
        /// Size of the buffer.
        maxlen: u32,
    },
    /// Values separated by commas.
    Array {
        /// Type of each.
        element: Box<ParamType>,
        /// Size of each in bytes.
        elemsize: u32,
        /// How many there is room for.
        max: u32,
        /// Address that receives the number of given values.
        num: Option<Addr>,
    },
}

/// The integer types of parameters.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Integer {
    name: &'static str,
    bytes: usize,
    signed: Sign,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Sign {
    Signed,
    Unsigned,
}

const fn integer(name: &'static str, bytes: usize, signed: Sign) -> Option<ParamType> {
    Some(ParamType::Integer(Integer { name, bytes, signed }))
}

const KINDS: usize = 14;

/// The types that a module may name, in the order of [`OPS`]. `None`: the type is made from the record's argument.
const TYPES: [(&str, Option<ParamType>); KINDS] = [
    ("bool", Some(ParamType::Bool)),
    ("invbool", Some(ParamType::InvBool)),
    ("byte", integer("byte", 1, Sign::Unsigned)),
    ("short", integer("short", 2, Sign::Signed)),
    ("ushort", integer("ushort", 2, Sign::Unsigned)),
    ("int", integer("int", 4, Sign::Signed)),
    ("uint", integer("uint", 4, Sign::Unsigned)),
    ("hexint", integer("hexint", 4, Sign::Unsigned)),
    ("long", integer("long", 8, Sign::Signed)),
    ("ulong", integer("ulong", 8, Sign::Unsigned)),
    ("ullong", integer("ullong", 8, Sign::Unsigned)),
    ("charp", Some(ParamType::CharP)),
    ("string", None),
    ("array", None),
];

/// The targets of `param_ops_int` and similar symbols. Modules only compare and pass on these addresses.
static OPS: [u64; KINDS] = [0; KINDS];

/// The address of the operations of a type.
pub(crate) fn ops(name: &[u8]) -> Option<Addr> {
    let at = TYPES.iter().position(|(known, _)| known.as_bytes() == name)?;
    Some(Addr::new(wide(std::ptr::from_ref(&OPS[at]).expose_provenance())))
}

fn type_of(ops: u64) -> Option<(&'static str, Option<ParamType>)> {
    let at = OPS.iter().position(|slot| wide(std::ptr::from_ref(slot).expose_provenance()) == ops)?;
    let (name, kind) = &TYPES[at];
    Some((name, kind.clone()))
}

/// A parameter of a module.
#[derive(Clone, Debug)]
pub struct ParamInfo {
    /// Name of the parameter.
    pub name: String,
    /// Permission bits, as of a file in sysfs.
    pub perm: u16,
    /// Type of the parameter.
    pub kind: ParamType,
    /// Address of the value.
    pub(crate) place: Addr,
    /// Strings that the module has pointers to, as long as the module is loaded.
    held: Vec<CString>,
}

/// The longest string a `charp` takes, as in Linux.
const MAX_STRING: usize = 1024;

impl ParamInfo {
    /// Reads a record of `__param`.
    pub(crate) fn read(name: String, record: &KernelParam, memory: &Staging) -> Result<ParamInfo, &'static str> {
        let arg = Addr::new(record.arg);
        let (kind_name, kind) =
            type_of(record.ops).ok_or("parameters with operations of their own are not supported")?;
        let bytes = |len: usize| {
            memory.at(arg).and_then(|(_, rest)| rest.get(..len)).ok_or("its argument is not in the module")
        };
        let (kind, place) = match kind {
            Some(kind) => (kind, arg),
            None if kind_name == "string" => {
                let string = KparamString::read(bytes(KparamString::SIZE)?);
                (ParamType::String { maxlen: string.maxlen }, Addr::new(string.string))
            }
            None => {
                let array = KparamArray::read(bytes(KparamArray::SIZE)?);
                let (_, element) = type_of(array.ops).ok_or("an array of an unknown type")?;
                let element = Box::new(element.ok_or("an array of strings or of arrays")?);
                if element.size() != u64::from(array.elemsize) {
                    return Err("the size of an element is not that of its type");
                }
                let num = Some(Addr::new(array.num)).filter(|num| *num != Addr::NULL);
                let kind = ParamType::Array { element, elemsize: array.elemsize, max: array.max, num };
                (kind, Addr::new(array.elem))
            }
        };
        let param = ParamInfo { name, perm: record.perm, kind, place, held: Vec::new() };
        let num = match param.kind {
            ParamType::Array { num: Some(num), .. } => Some((num, 4)),
            _ => None,
        };
        for (at, len) in [Some((place, param.kind.size())), num].into_iter().flatten() {
            let fits = |(part, rest): (MemoryPart, &[u8])| {
                matches!(part, MemoryPart::Data | MemoryPart::InitData | MemoryPart::RoAfterInit)
                    && wide(rest.len()) >= len
            };
            if !memory.at(at).is_some_and(fits) {
                return Err("its variable is not in the module's data");
            }
        }
        Ok(param)
    }

    /// Whether this is the parameter's name; `-` and `_` are the same, as in Linux.
    #[must_use]
    pub fn is_named(&self, name: &str) -> bool {
        let same = |(a, b): (u8, u8)| a == b || (matches!(a, b'-' | b'_') && matches!(b, b'-' | b'_'));
        self.name.len() == name.len() && self.name.bytes().zip(name.bytes()).all(same)
    }

    /// Parses a value and stores the value with `write`, which returns `None` for a place outside of the module.
    pub(crate) fn set(
        &mut self,
        value: Option<&str>,
        write: &dyn Fn(Addr, &[u8]) -> Option<()>,
    ) -> Result<(), ParamError> {
        let mut held = Vec::new();
        let mut store = |at: Addr, bytes: &[u8]| write(at, bytes).ok_or(ParamError::Outside);
        store_value(&self.kind, self.place, value, &mut held, &mut store)?;
        self.held.append(&mut held);
        Ok(())
    }

    /// Returns the value as text, as in Linux's sysfs.
    pub(crate) fn show(&self, read: &dyn Fn(Addr, usize) -> Option<Vec<u8>>) -> Option<String> {
        self.kind.show(self.place, &self.held, read)
    }
}

/// Stores bytes at an address of the module's variables.
type Store<'a> = dyn FnMut(Addr, &[u8]) -> Result<(), ParamError> + 'a;

fn store_value(
    kind: &ParamType,
    at: Addr,
    value: Option<&str>,
    held: &mut Vec<CString>,
    store: &mut Store<'_>,
) -> Result<(), ParamError> {
    let given = || value.ok_or(ParamError::NeedsValue);
    let invalid = |value: &str, expected: &str| ParamError::Invalid {
        value: escaped(value.as_bytes()),
        expected: expected.into(),
    };
    match kind {
        ParamType::Bool | ParamType::InvBool => {
            let value = value.unwrap_or("1");
            let yes = boolean(value).ok_or_else(|| invalid(value, "a bool (y, n, 1, 0, on, off)"))?;
            store(at, &[u8::from(yes == (*kind == ParamType::Bool))])
        }
        ParamType::Integer(integer) => {
            let value = given()?;
            let number = number(value).ok_or_else(|| {
                invalid(value, &format!("of type {} (decimal, 0x and hexadecimal, or 0 and octal)", integer.name))
            })?;
            if !integer.range().contains(&number) {
                return Err(ParamError::Range { value: escaped(value.as_bytes()), kind: integer.name });
            }
            store(at, &number.to_le_bytes()[..integer.bytes])
        }
        ParamType::CharP => {
            let value = given()?;
            if value.len() > MAX_STRING {
                return Err(ParamError::TooLong { len: value.len(), max: MAX_STRING });
            }
            let string = CString::new(value).map_err(|_| invalid(value, "a string without NUL"))?;
            store(at, &wide(string.as_ptr().expose_provenance()).to_le_bytes())?;
            held.push(string);
            Ok(())
        }
        ParamType::String { maxlen } => {
            let value = given()?;
            let max = index((*maxlen).into()).saturating_sub(1);
            if value.len() > max {
                return Err(ParamError::TooLong { len: value.len(), max });
            }
            let mut bytes = value.as_bytes().to_vec();
            bytes.push(0);
            store(at, &bytes)
        }
        ParamType::Array { element, elemsize, max, num } => {
            let mut count: u32 = 0;
            for value in given()?.split(',') {
                if count == *max {
                    return Err(ParamError::TooMany { max: *max });
                }
                let place = at + u64::from(count) * u64::from(*elemsize);
                store_value(element, place, Some(value), held, store)?;
                count += 1;
            }
            num.map_or(Ok(()), |num| store(num, &count.to_le_bytes()))
        }
    }
}

impl Integer {
    fn range(self) -> std::ops::RangeInclusive<i128> {
        let bits = self.bytes * 8;
        match self.signed {
            Sign::Signed => -(1 << (bits - 1))..=(1 << (bits - 1)) - 1,
            Sign::Unsigned => 0..=(1 << bits) - 1,
        }
    }
}

impl ParamType {
    /// Bytes in the module's data.
    fn size(&self) -> u64 {
        match self {
            ParamType::Bool | ParamType::InvBool => 1,
            ParamType::Integer(integer) => wide(integer.bytes),
            ParamType::CharP => 8,
            ParamType::String { maxlen } => (*maxlen).into(),
            ParamType::Array { elemsize, max, .. } => u64::from(*elemsize) * u64::from(*max),
        }
    }

    fn show(&self, at: Addr, held: &[CString], read: &dyn Fn(Addr, usize) -> Option<Vec<u8>>) -> Option<String> {
        let bytes = || read(at, index(self.size()));
        let text = |bytes: &[u8]| escaped(bytes.split(|&byte| byte == 0).next().unwrap_or_default());
        Some(match self {
            ParamType::Bool => if bytes()?[0] == 0 { "N" } else { "Y" }.into(),
            ParamType::InvBool => if bytes()?[0] == 0 { "Y" } else { "N" }.into(),
            ParamType::Integer(integer) => {
                let mut wider = [0; 16];
                let bytes = bytes()?;
                let negative = integer.signed == Sign::Signed && bytes.last().is_some_and(|byte| byte & 0x80 != 0);
                wider.fill(if negative { 0xff } else { 0 });
                wider[..bytes.len()].copy_from_slice(&bytes);
                let number = i128::from_le_bytes(wider);
                if integer.name == "hexint" { format!("{number:#x}") } else { number.to_string() }
            }
            ParamType::CharP => {
                // Only pointers that the host has stored are followed.
                let pointer = u64::from_le_bytes(bytes()?.try_into().ok()?);
                let held = held.iter().find(|string| wide(string.as_ptr().expose_provenance()) == pointer);
                held.map_or_else(|| "(set by the module)".into(), |string| text(string.as_bytes()))
            }
            ParamType::String { .. } => text(&bytes()?),
            ParamType::Array { element, elemsize, max, num } => {
                let count = num.and_then(|num| Some(u32::from_le_bytes(read(num, 4)?.try_into().ok()?)));
                let values = (0..count.map_or(*max, |count| count.min(*max)))
                    .map(|i| element.show(at + u64::from(i) * u64::from(*elemsize), held, read));
                values.collect::<Option<Vec<_>>>()?.join(",")
            }
        })
    }
}

impl fmt::Display for ParamType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ParamType::Bool => f.write_str("bool"),
            ParamType::InvBool => f.write_str("invbool"),
            ParamType::Integer(integer) => f.write_str(integer.name),
            ParamType::CharP => f.write_str("charp"),
            ParamType::String { .. } => f.write_str("string"),
            ParamType::Array { element, .. } => write!(f, "array of {element}"),
        }
    }
}

/// As Linux's `kstrtobool`: the first letters decide.
fn boolean(value: &str) -> Option<bool> {
    match value.as_bytes() {
        [b'y' | b'Y' | b't' | b'T' | b'1', ..] => Some(true),
        [b'n' | b'N' | b'f' | b'F' | b'0', ..] => Some(false),
        [b'o' | b'O', b'n' | b'N', ..] => Some(true),
        [b'o' | b'O', b'f' | b'F', ..] => Some(false),
        _ => None,
    }
}

/// As Linux's `kstrtoll` with base 0: a sign, then decimal, 0x and hexadecimal, or 0 and octal.
fn number(value: &str) -> Option<i128> {
    let (negative, digits) = match value.as_bytes() {
        [b'-', ..] => (true, &value[1..]),
        [b'+', ..] => (false, &value[1..]),
        _ => (false, value),
    };
    let (radix, digits) = match digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        Some(digits) => (16, digits),
        None if digits.len() > 1 && digits.starts_with('0') => (8, &digits[1..]),
        None => (10, digits),
    };
    // `from_str_radix` accepts a sign, and the sign is already removed.
    if !digits.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return None;
    }
    let number = i128::from(u64::from_str_radix(digits, radix).ok()?);
    Some(if negative { -number } else { number })
}

/// Splits `name=value`.
pub(crate) fn split(param: &str) -> (&str, Option<&str>) {
    param.split_once('=').map_or((param, None), |(name, value)| (name, Some(value)))
}

/// How many parameters were set.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ParamsSet(pub(crate) u64);

/// Sets the given parameters; `unknown` is called for each parameter that the module does not have.
pub(crate) fn parse(
    params: &mut [ParamInfo],
    given: &[String],
    write: &dyn Fn(Addr, &[u8]) -> Option<()>,
    mut unknown: impl FnMut(&str),
) -> Result<ParamsSet, PrepareError> {
    let mut set = 0;
    for param in given {
        let (name, value) = split(param);
        match params.iter_mut().find(|param| param.is_named(name)) {
            None => unknown(name),
            Some(param) => {
                let named = param.name.clone();
                param.set(value, write).map_err(|source| PrepareError::Param { name: named, source })?;
                set += 1;
            }
        }
    }
    Ok(ParamsSet(set))
}

#[cfg(test)]
mod tests {
    use super::{boolean, number};

    #[test]
    fn numbers_are_read_as_linux_does() {
        let cases = [
            ("0", Some(0)),
            ("42", Some(42)),
            ("-42", Some(-42)),
            ("+7", Some(7)),
            ("0x1f", Some(31)),
            ("0X1F", Some(31)),
            ("-0x10", Some(-16)),
            ("017", Some(15)),
            ("08", None),
            ("", None),
            ("-", None),
            ("--1", None),
            ("+-1", None),
            ("1 ", None),
            ("abc", None),
            ("0x", None),
            ("18446744073709551615", Some(u64::MAX.into())),
            ("18446744073709551616", None),
        ];
        for (text, expected) in cases {
            assert_eq!(number(text), expected, "{text:?}");
        }
    }

    #[test]
    fn bools_are_read_as_linux_does() {
        for (text, expected) in [
            ("y", Some(true)),
            ("off", Some(false)),
            ("On", Some(true)),
            ("0", Some(false)),
            ("", None),
            ("o", None),
            ("x", None),
        ] {
            assert_eq!(boolean(text), expected, "{text:?}");
        }
    }
}
