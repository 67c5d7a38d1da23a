//! Decodes the names of a live patch's symbols and of its sections of relocations, as
//! Documentation/livepatch/module-elf-format.rst of Linux 6.1 defines them.

use crate::section::{KLP_RELA_PREFIX, KLP_SYMBOL_PREFIX};

/// The name of the object that stands for the host itself.
pub const VMLINUX: &[u8] = b"vmlinux";

/// The maximum length of an object's name in bytes: Linux's `MODULE_NAME_LEN` without the NUL.
pub const MAX_OBJECT: usize = 55;

/// A symbol that belongs to an object: `.klp.sym.OBJECT.NAME,POSITION`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KlpSymbol<'a> {
    /// The object.
    pub object: &'a [u8],
    /// The symbol's own name.
    pub name: &'a [u8],
    /// The position among the object's symbols of that name, from 1, in the order of the object's symbol table. 0 if
    /// there must be only one.
    pub position: u64,
}

impl<'a> KlpSymbol<'a> {
    /// Decodes a name of the symbol table. Returns `None` if the name has another form.
    #[must_use]
    pub fn parse(name: &'a [u8]) -> Option<KlpSymbol<'a>> {
        let (object, rest) = object(name.strip_prefix(KLP_SYMBOL_PREFIX.as_bytes())?)?;
        let comma = rest.iter().rposition(|byte| *byte == b',')?;
        let (name, position) = (&rest[..comma], &rest[comma + 1..]);
        let digits = !position.is_empty() && position.iter().all(u8::is_ascii_digit);
        let position = std::str::from_utf8(position).ok().filter(|_| digits)?.parse().ok()?;
        (!name.is_empty() && !name.contains(&b',')).then_some(KlpSymbol { object, name, position })
    }
}

/// Returns the object whose coming applies a section of relocations: `.klp.rela.OBJECT.SECTION`.
#[must_use]
pub fn object_of_relocations(section: &[u8]) -> Option<&[u8]> {
    object(section.strip_prefix(KLP_RELA_PREFIX.as_bytes())?).map(|(object, _)| object)
}

/// Splits at the next dot: returns the object's name and the rest after the dot.
fn object(rest: &[u8]) -> Option<(&[u8], &[u8])> {
    let dot = rest.iter().position(|byte| *byte == b'.')?;
    (1..=MAX_OBJECT).contains(&dot).then(|| (&rest[..dot], &rest[dot + 1..]))
}

#[cfg(test)]
mod tests {
    use super::{KlpSymbol, object_of_relocations};

    #[test]
    fn symbols_are_read_as_linux_reads_them() {
        let read = |name: &'static str| {
            let symbol = KlpSymbol::parse(name.as_bytes())?;
            let text = |bytes| std::str::from_utf8(bytes).unwrap();
            Some((text(symbol.object), text(symbol.name), symbol.position))
        };
        assert_eq!(read(".klp.sym.vmlinux.printk,0"), Some(("vmlinux", "printk", 0)));
        assert_eq!(read(".klp.sym.ext4.step.isra.0,12"), Some(("ext4", "step.isra.0", 12)));
        let long = ["", "m"].map(|more| format!(".klp.sym.{}{more}.f,1", "m".repeat(55)));
        assert!(KlpSymbol::parse(long[0].as_bytes()).is_some() && KlpSymbol::parse(long[1].as_bytes()).is_none());
        for none in [
            "printk",
            ".klp.sym.",
            ".klp.sym.vmlinux",
            ".klp.sym.vmlinux.printk",
            ".klp.sym..printk,0",
            ".klp.sym.vmlinux.,0",
            ".klp.sym.vmlinux.printk,",
            ".klp.sym.vmlinux.printk,+1",
            ".klp.sym.vmlinux.printk,1x",
            ".klp.sym.vmlinux.a,b,0",
            ".klp.sym.vmlinux.printk,18446744073709551616",
        ] {
            assert_eq!(read(none), None, "{none}");
        }
    }

    #[test]
    fn sections_name_their_object() {
        assert_eq!(object_of_relocations(b".klp.rela.ext4.text.ext4_attr_store"), Some(&b"ext4"[..]));
        assert_eq!(object_of_relocations(b".klp.rela.ext4"), None);
        assert_eq!(object_of_relocations(b".klp.rela..text"), None);
        assert_eq!(object_of_relocations(b".rela.text"), None);
    }
}
