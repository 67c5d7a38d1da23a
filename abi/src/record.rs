//! Record layouts. Each follows a table of the System V ABI or a struct in the headers of Linux 6.1.

use thiserror::Error;

/// A record of fixed size.
pub trait FixedRecord: Sized {
    /// The size of a record in bytes.
    const SIZE: usize;

    /// Decodes a record from exactly [`FixedRecord::SIZE`] bytes.
    fn read(bytes: &[u8]) -> Self;
}

/// The size of a section is not a multiple of the size of its records.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("{bytes} bytes are no whole number of {record}-byte records")]
pub struct Partial {
    /// The size of the section in bytes.
    pub bytes: usize,
    /// The size of one record in bytes.
    pub record: usize,
}

/// The records of a section, in order. Cheap to copy. Each record is decoded when the iterator reaches it.
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

impl<'a, R: FixedRecord> Records<'a, R> {
    /// Wraps the records that fill `bytes`.
    ///
    /// # Errors
    /// [`Partial`] if the last record is incomplete.
    pub fn new(bytes: &'a [u8]) -> Result<Records<'a, R>, Partial> {
        if bytes.len().is_multiple_of(R::SIZE) {
            return Ok(Records { bytes, record: std::marker::PhantomData });
        }
        Err(Partial { bytes: bytes.len(), record: R::SIZE })
    }

    /// Returns the number of records.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len() / R::SIZE
    }

    /// Returns whether there are no records.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Returns the records, from the first to the last.
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
    /// The offset of the place within the section that is relocated.
    pub offset: u64,
    /// The relocation's number: the low half of `r_info`.
    pub kind: u32,
    /// The index of the symbol: the high half of `r_info`.
    pub symbol: u32,
    /// The constant addend.
    pub addend: i64,
}

impl FixedRecord for Rela {
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
/// from the field itself to the thing it refers to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ExportedSymbol {
    /// The distance from byte 0 of the record to the symbol.
    pub value: i32,
    /// The distance from byte 4 of the record to the symbol's name.
    pub name: i32,
    /// The distance from byte 8 of the record to the symbol's namespace. 0 if the symbol has none.
    pub namespace: i32,
}

impl FixedRecord for ExportedSymbol {
    const SIZE: usize = 12;

    fn read(bytes: &[u8]) -> ExportedSymbol {
        ExportedSymbol {
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
    /// The symbol's name, padded with NULs.
    pub name: [u8; 56],
}

impl Version {
    /// Returns whether this record is for the symbol of this name.
    #[must_use]
    pub fn is_for(&self, name: &[u8]) -> bool {
        self.name.starts_with(name) && self.name[name.len()..].iter().all(|&byte| byte == 0)
    }
}

impl FixedRecord for Version {
    const SIZE: usize = 64;

    fn read(bytes: &[u8]) -> Version {
        Version { crc: u64::from_le_bytes(field(bytes, 0)), name: field(bytes, 8) }
    }
}

/// A module parameter: Linux's `struct kernel_param`, 40 bytes. The loader reads the record after its pointers have
/// been relocated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KernelParam {
    /// The address of the parameter's name.
    pub name: u64,
    /// The address of the module to which the parameter belongs.
    pub module: u64,
    /// The address of the operations of the parameter's type (`param_ops_int`).
    pub ops: u64,
    /// The permission bits, as for a file.
    pub perm: u16,
    /// The initcall level. -1 in a module.
    pub level: i8,
    /// `KERNEL_PARAM_FL_*`.
    pub flags: u8,
    /// The address of the variable, or of a [`KparamArray`] or [`KparamString`].
    pub arg: u64,
}

impl FixedRecord for KernelParam {
    const SIZE: usize = 40;

    fn read(bytes: &[u8]) -> KernelParam {
        KernelParam {
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

/// The target of `arg` for a parameter of type string: Linux's `struct kparam_string`, 16 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KparamString {
    /// The size of the buffer in bytes, including the closing NUL.
    pub maxlen: u32,
    /// The address of the buffer.
    pub string: u64,
}

impl FixedRecord for KparamString {
    const SIZE: usize = 16;

    fn read(bytes: &[u8]) -> KparamString {
        KparamString { maxlen: u32::from_le_bytes(field(bytes, 0)), string: u64::from_le_bytes(field(bytes, 8)) }
    }
}

/// The target of `arg` for a parameter of type array: Linux's `struct kparam_array`, 32 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KparamArray {
    /// The number of elements that fit into the array.
    pub max: u32,
    /// The size of one element in bytes.
    pub elemsize: u32,
    /// The address of an `unsigned int` that receives the number of elements given. 0 if there is none.
    pub num: u64,
    /// The address of the operations of the elements' type.
    pub ops: u64,
    /// The address of the first element.
    pub elem: u64,
}

impl FixedRecord for KparamArray {
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

/// An alternative for a piece of code: Linux 6.1's `struct alt_instr`, 12 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AltInstr {
    /// The distance from byte 0 of the record to the site.
    pub site: i32,
    /// The distance from byte 4 of the record to the replacement.
    pub replacement: i32,
    /// The number of the processor feature. [`AltInstr::NOT`] is set if the feature must be absent.
    pub feature: u16,
    /// The length of the site in bytes.
    pub site_len: u8,
    /// The length of the replacement in bytes.
    pub replacement_len: u8,
}

impl AltInstr {
    /// A bit of `feature`: the site is replaced if the feature is absent. `ALTINSTR_FLAG_INV`.
    pub const NOT: u16 = 1 << 15;
}

impl FixedRecord for AltInstr {
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

/// An alternative since Linux 6.3, 14 bytes: the flags have a field of their own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AltInstr63 {
    /// The distance from byte 0 of the record to the site.
    pub site: i32,
    /// The distance from byte 4 of the record to the replacement.
    pub replacement: i32,
    /// The number of the processor feature.
    pub feature: u16,
    /// [`AltInstr63::NOT`] and [`AltInstr63::DIRECT_CALL`].
    pub flags: u16,
    /// The length of the site in bytes.
    pub site_len: u8,
    /// The length of the replacement in bytes.
    pub replacement_len: u8,
}

impl AltInstr63 {
    /// The site is replaced if the feature is absent. `ALT_FLAG_NOT`.
    pub const NOT: u16 = 1 << 0;
    /// The site is an indirect call through a pointer and becomes a direct call. `ALT_FLAG_DIRECT_CALL`.
    pub const DIRECT_CALL: u16 = 1 << 1;
}

impl FixedRecord for AltInstr63 {
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
    /// The address of the site.
    pub site: u64,
    /// The operation: its offset in `pv_ops`, divided by 8.
    pub op: u8,
    /// The length of the site in bytes.
    pub len: u8,
}

impl FixedRecord for ParavirtSite {
    const SIZE: usize = 16;

    fn read(bytes: &[u8]) -> ParavirtSite {
        ParavirtSite { site: u64::from_le_bytes(field(bytes, 0)), op: bytes[8], len: bytes[9] }
    }
}

/// A piece of code, given by its distance from the record: 4 bytes. `.retpoline_sites`, `.return_sites`, `.smp_locks`,
/// `.ibt_endbr_seal`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RelativeSite {
    /// The distance from the record to the site.
    pub site: i32,
}

impl FixedRecord for RelativeSite {
    const SIZE: usize = 4;

    fn read(bytes: &[u8]) -> RelativeSite {
        RelativeSite { site: i32::from_le_bytes(field(bytes, 0)) }
    }
}

/// A piece of code, given by its address: 8 bytes. `__mcount_loc`, `__patchable_function_entries`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AddressSite {
    /// The address of the site.
    pub site: u64,
}

impl FixedRecord for AddressSite {
    const SIZE: usize = 8;

    fn read(bytes: &[u8]) -> AddressSite {
        AddressSite { site: u64::from_le_bytes(field(bytes, 0)) }
    }
}

/// A branch that a static key controls: Linux's `struct jump_entry`, 16 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct JumpEntry {
    /// The distance from byte 0 of the record to the site.
    pub code: i32,
    /// The distance from byte 4 of the record to the branch's target.
    pub target: i32,
    /// The distance from byte 8 of the record to the key. Bit 0: the branch is likely. Bit 1: the site is init code.
    pub key: i64,
}

impl FixedRecord for JumpEntry {
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
    /// The distance from byte 0 of the record to the site.
    pub site: i32,
    /// The distance from byte 4 of the record to the key. Two bits of the resulting address are flags: bit 0 for a tail
    /// call, bit 1 for a site in init code.
    pub key: i32,
}

impl FixedRecord for StaticCallSite {
    const SIZE: usize = 8;

    fn read(bytes: &[u8]) -> StaticCallSite {
        StaticCallSite { site: i32::from_le_bytes(field(bytes, 0)), key: i32::from_le_bytes(field(bytes, 4)) }
    }
}

#[cfg(test)]
mod tests {
    use super::{FixedRecord, KernelParam, Partial, Records, Rela};

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
        let param = KernelParam::read(&bytes);
        assert_eq!(param.perm, 0x1918);
        assert_eq!((param.level, param.flags), (0x1a, 0x1b));
        assert_eq!(param.arg, 0x2726_2524_2322_2120);
    }
}
