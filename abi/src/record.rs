//! Record layouts, one row each of the table in the System V ABI or in Linux 6.1's headers.

use thiserror::Error;

/// A record of fixed size.
pub trait Record: Sized {
    /// Its size in bytes.
    const SIZE: usize;

    /// Reads it from exactly [`Record::SIZE`] bytes.
    fn read(bytes: &[u8]) -> Self;
}

/// A section whose size is no multiple of its record's.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("{bytes} bytes are no whole number of {record}-byte records")]
pub struct Partial {
    /// Size of the section.
    pub bytes: usize,
    /// Size of one record.
    pub record: usize,
}

/// The records of a section, in order. Cheap to copy; reads each record when it is asked for.
#[derive(Debug)]
pub struct Records<'a, R> {
    bytes: &'a [u8],
    record: std::marker::PhantomData<fn() -> R>,
}

impl<R> Clone for Records<'_, R> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<R> Copy for Records<'_, R> {}

impl<'a, R: Record> Records<'a, R> {
    /// The records that fill `bytes`.
    ///
    /// # Errors
    /// [`Partial`] if a part of a record is left over.
    pub fn new(bytes: &'a [u8]) -> Result<Records<'a, R>, Partial> {
        if bytes.len().is_multiple_of(R::SIZE) {
            return Ok(Records { bytes, record: std::marker::PhantomData });
        }
        Err(Partial { bytes: bytes.len(), record: R::SIZE })
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len() / R::SIZE
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The records from first to last.
    #[inline]
    pub fn iter(&self) -> impl ExactSizeIterator<Item = R> + use<'a, R> {
        self.bytes.chunks_exact(R::SIZE).map(R::read)
    }
}

#[inline]
fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&bytes[at..at + N]);
    field
}

/// A relocation with addend: `Elf64_Rela`, 24 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rela {
    /// Offset of the place in the section that is relocated.
    pub offset: u64,
    /// The relocation's number: low half of `r_info`.
    pub kind: u32,
    /// Index of the symbol: high half of `r_info`.
    pub symbol: u32,
    /// The constant addend.
    pub addend: i64,
}

impl Record for Rela {
    const SIZE: usize = 24;

    #[inline]
    fn read(bytes: &[u8]) -> Rela {
        Rela {
            offset: u64::from_le_bytes(field(bytes, 0)),
            kind: u32::from_le_bytes(field(bytes, 8)),
            symbol: u32::from_le_bytes(field(bytes, 12)),
            addend: i64::from_le_bytes(field(bytes, 16)),
        }
    }
}

/// An exported symbol: Linux's `struct kernel_symbol` with relative references, 12 bytes. Each field is the distance
/// from itself to what it refers to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Symbol {
    /// Distance from the record's byte 0 to the symbol.
    pub value: i32,
    /// Distance from the record's byte 4 to its name.
    pub name: i32,
    /// Distance from the record's byte 8 to its namespace, or 0 for none.
    pub namespace: i32,
}

impl Record for Symbol {
    const SIZE: usize = 12;

    fn read(bytes: &[u8]) -> Symbol {
        Symbol {
            value: i32::from_le_bytes(field(bytes, 0)),
            name: i32::from_le_bytes(field(bytes, 4)),
            namespace: i32::from_le_bytes(field(bytes, 8)),
        }
    }
}

/// The CRC of a symbol that a module uses: Linux's `struct modversion_info`, 64 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Version {
    /// The CRC that the module was built against.
    pub crc: u64,
    /// The symbol's name, filled up with NULs.
    pub name: [u8; 56],
}

impl Version {
    /// Whether this is the entry of the symbol of this name.
    #[must_use]
    pub fn is_for(&self, name: &[u8]) -> bool {
        self.name.starts_with(name) && self.name[name.len()..].iter().all(|&byte| byte == 0)
    }
}

impl Record for Version {
    const SIZE: usize = 64;

    fn read(bytes: &[u8]) -> Version {
        Version { crc: u64::from_le_bytes(field(bytes, 0)), name: field(bytes, 8) }
    }
}

/// A module parameter: Linux's `struct kernel_param`, 40 bytes. Pointers are relocated before they are read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Param {
    /// Address of the parameter's name.
    pub name: u64,
    /// Address of the module it belongs to.
    pub module: u64,
    /// Address of the operations of its type (`param_ops_int`).
    pub ops: u64,
    /// Permission bits, as of a file.
    pub perm: u16,
    /// Initcall level; -1 in a module.
    pub level: i8,
    /// `KERNEL_PARAM_FL_*`.
    pub flags: u8,
    /// Address of the variable, or of a [`KparamArray`] or [`KparamString`].
    pub arg: u64,
}

impl Record for Param {
    const SIZE: usize = 40;

    fn read(bytes: &[u8]) -> Param {
        Param {
            name: u64::from_le_bytes(field(bytes, 0)),
            module: u64::from_le_bytes(field(bytes, 8)),
            ops: u64::from_le_bytes(field(bytes, 16)),
            perm: u16::from_le_bytes(field(bytes, 24)),
            level: i8::from_le_bytes(field(bytes, 26)),
            flags: u8::from_le_bytes(field(bytes, 27)),
            arg: u64::from_le_bytes(field(bytes, 32)),
        }
    }
}

/// What a parameter of type string refers to: Linux's `struct kparam_string`, 16 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KparamString {
    /// Size of the buffer, its closing NUL included.
    pub maxlen: u32,
    /// Address of the buffer.
    pub string: u64,
}

impl Record for KparamString {
    const SIZE: usize = 16;

    fn read(bytes: &[u8]) -> KparamString {
        KparamString { maxlen: u32::from_le_bytes(field(bytes, 0)), string: u64::from_le_bytes(field(bytes, 8)) }
    }
}

/// What a parameter of type array refers to: Linux's `struct kparam_array`, 32 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KparamArray {
    /// How many elements there is room for.
    pub max: u32,
    /// Size of one element in bytes.
    pub elemsize: u32,
    /// Address of an `unsigned int` that takes the number of elements given, or 0.
    pub num: u64,
    /// Address of the operations of the elements' type.
    pub ops: u64,
    /// Address of the first element.
    pub elem: u64,
}

impl Record for KparamArray {
    const SIZE: usize = 32;

    fn read(bytes: &[u8]) -> KparamArray {
        KparamArray {
            max: u32::from_le_bytes(field(bytes, 0)),
            elemsize: u32::from_le_bytes(field(bytes, 4)),
            num: u64::from_le_bytes(field(bytes, 8)),
            ops: u64::from_le_bytes(field(bytes, 16)),
            elem: u64::from_le_bytes(field(bytes, 24)),
        }
    }
}

/// An alternative for a place of code: Linux 6.1's `struct alt_instr`, 12 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AltInstr {
    /// Distance from the record's byte 0 to the site.
    pub site: i32,
    /// Distance from the record's byte 4 to the replacement.
    pub replacement: i32,
    /// The feature's number; [`AltInstr::NOT`] is set if the feature must be absent.
    pub feature: u16,
    /// Bytes of the site.
    pub site_len: u8,
    /// Bytes of the replacement.
    pub replacement_len: u8,
}

impl AltInstr {
    /// In `feature`: replaced if the feature is absent. `ALTINSTR_FLAG_INV`.
    pub const NOT: u16 = 1 << 15;
}

impl Record for AltInstr {
    const SIZE: usize = 12;

    fn read(bytes: &[u8]) -> AltInstr {
        AltInstr {
            site: i32::from_le_bytes(field(bytes, 0)),
            replacement: i32::from_le_bytes(field(bytes, 4)),
            feature: u16::from_le_bytes(field(bytes, 8)),
            site_len: bytes[10],
            replacement_len: bytes[11],
        }
    }
}

/// The same since Linux 6.3, 14 bytes: flags have a field of their own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AltInstr63 {
    /// Distance from the record's byte 0 to the site.
    pub site: i32,
    /// Distance from the record's byte 4 to the replacement.
    pub replacement: i32,
    /// The feature's number.
    pub feature: u16,
    /// [`AltInstr63::NOT`] and [`AltInstr63::DIRECT_CALL`].
    pub flags: u16,
    /// Bytes of the site.
    pub site_len: u8,
    /// Bytes of the replacement.
    pub replacement_len: u8,
}

impl AltInstr63 {
    /// Replaced if the feature is absent. `ALT_FLAG_NOT`.
    pub const NOT: u16 = 1 << 0;
    /// The site is an indirect call through a pointer; it becomes a direct one. `ALT_FLAG_DIRECT_CALL`.
    pub const DIRECT_CALL: u16 = 1 << 1;
}

impl Record for AltInstr63 {
    const SIZE: usize = 14;

    fn read(bytes: &[u8]) -> AltInstr63 {
        AltInstr63 {
            site: i32::from_le_bytes(field(bytes, 0)),
            replacement: i32::from_le_bytes(field(bytes, 4)),
            feature: u16::from_le_bytes(field(bytes, 8)),
            flags: u16::from_le_bytes(field(bytes, 10)),
            site_len: bytes[12],
            replacement_len: bytes[13],
        }
    }
}

/// A call through an operations table: Linux 6.1's `struct paravirt_patch_site`, 16 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ParavirtSite {
    /// Address of the site.
    pub site: u64,
    /// Which operation: its offset in `pv_ops`, divided by 8.
    pub op: u8,
    /// Bytes of the site.
    pub len: u8,
}

impl Record for ParavirtSite {
    const SIZE: usize = 16;

    fn read(bytes: &[u8]) -> ParavirtSite {
        ParavirtSite { site: u64::from_le_bytes(field(bytes, 0)), op: bytes[8], len: bytes[9] }
    }
}

/// A place of code by its distance: 4 bytes. `.retpoline_sites`, `.return_sites`, `.smp_locks`, `.ibt_endbr_seal`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RelativeSite {
    /// Distance from the record to the site.
    pub site: i32,
}

impl Record for RelativeSite {
    const SIZE: usize = 4;

    fn read(bytes: &[u8]) -> RelativeSite {
        RelativeSite { site: i32::from_le_bytes(field(bytes, 0)) }
    }
}

/// A place of code by its address: 8 bytes. `__mcount_loc`, `__patchable_function_entries`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Site {
    /// Address of the site.
    pub site: u64,
}

impl Record for Site {
    const SIZE: usize = 8;

    fn read(bytes: &[u8]) -> Site {
        Site { site: u64::from_le_bytes(field(bytes, 0)) }
    }
}

/// A branch that a static key decides: Linux's `struct jump_entry`, 16 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct JumpEntry {
    /// Distance from the record's byte 0 to the site.
    pub code: i32,
    /// Distance from the record's byte 4 to where it jumps.
    pub target: i32,
    /// Distance from the record's byte 8 to the key. Bit 0: the branch is likely; bit 1: the site is init code.
    pub key: i64,
}

impl Record for JumpEntry {
    const SIZE: usize = 16;

    fn read(bytes: &[u8]) -> JumpEntry {
        JumpEntry {
            code: i32::from_le_bytes(field(bytes, 0)),
            target: i32::from_le_bytes(field(bytes, 4)),
            key: i64::from_le_bytes(field(bytes, 8)),
        }
    }
}

/// A static call: Linux's `struct static_call_site`, 8 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StaticCallSite {
    /// Distance from the record's byte 0 to the site.
    pub site: i32,
    /// Distance from the record's byte 4 to the key. Of the sum, bit 0 means a tail call, bit 1 that the site is init
    /// code.
    pub key: i32,
}

impl Record for StaticCallSite {
    const SIZE: usize = 8;

    fn read(bytes: &[u8]) -> StaticCallSite {
        StaticCallSite { site: i32::from_le_bytes(field(bytes, 0)), key: i32::from_le_bytes(field(bytes, 4)) }
    }
}

#[cfg(test)]
mod tests {
    use super::{Param, Partial, Record, Records, Rela};

    #[test]
    fn a_rela_is_read_field_by_field() {
        let mut bytes = Vec::new();
        bytes.extend(0x1122_u64.to_le_bytes());
        bytes.extend(((7_u64 << 32) | 4).to_le_bytes());
        bytes.extend((-4_i64).to_le_bytes());
        let relas = Records::<Rela>::new(&bytes).unwrap();
        assert_eq!(relas.iter().collect::<Vec<_>>(), [Rela { offset: 0x1122, kind: 4, symbol: 7, addend: -4 }]);
    }

    #[test]
    fn half_a_record_is_refused() {
        let refused = Records::<Rela>::new(&[0; 30]).unwrap_err();
        assert_eq!(refused, Partial { bytes: 30, record: 24 });
    }

    #[test]
    fn a_param_has_a_hole_before_its_argument() {
        let bytes: Vec<u8> = (0..40).collect();
        let param = Param::read(&bytes);
        assert_eq!(param.perm, 0x1918);
        assert_eq!((param.level, param.flags), (0x1a, 0x1b));
        assert_eq!(param.arg, 0x2726_2524_2322_2120);
    }
}
