//! Marks: `.modload.klp.OBJECT.NAME.POSITION`, the names that the SDK's `KLP_SYMBOL` gives to symbols. An object's name
//! has no dot, and a position is a number, so the symbol's name between them may contain dots.

use modload_abi::livepatch::MAX_OBJECT;
use modload_abi::section::{KLP_MARK_PREFIX, KLP_SYMBOL_PREFIX, SHN_LIVEPATCH};
use modload_edit::index;
use object::LittleEndian as LE;
use object::elf;

use super::error::{PatchLinkError, shown};
use super::tables::{Tables, until_nul};

/// Linux 6.1's KSYM_NAME_LEN, less the closing NUL: Linux reads `%511[^,]`.
const LONGEST_NAME: usize = 511;
/// The number of digits of the largest position, which is Linux's unsigned long.
const LONGEST_POSITION: usize = 20;
/// The length of the longest valid mark. Names may overlap in the string table, so the search in each name ends here.
const LONGEST: usize = KLP_MARK_PREFIX.len() + MAX_OBJECT + 1 + LONGEST_NAME + 1 + LONGEST_POSITION;

/// A marked symbol.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mark<'a> {
    /// The symbol's index in the symbol table.
    pub(super) symbol: usize,
    pub(super) object: &'a [u8],
    pub(super) name: &'a [u8],
    pub(super) position: u64,
}

/// Returns all marked symbols, in the symbol table's order.
pub(super) fn find<'a>(tables: &Tables<'a>) -> Result<Vec<Mark<'a>>, PatchLinkError> {
    let mut marks = Vec::new();
    for (at, symbol) in tables.symbols.iter().enumerate() {
        let rest = tables.strings.get(index(symbol.st_name.get(LE).into())..).unwrap_or_default();
        if rest.starts_with(KLP_MARK_PREFIX.as_bytes()) {
            let name = until_nul(rest.get(..=LONGEST).unwrap_or(rest));
            let mark = parse(name, at)?;
            check(name, &mark, symbol)?;
            marks.push(mark);
        }
    }
    Ok(marks)
}

fn parse(symbol: &[u8], at: usize) -> Result<Mark<'_>, PatchLinkError> {
    let wrong = |problem, form| Err(PatchLinkError::Mark { symbol: shown(symbol), problem, form });
    let too_long = |what, bytes, limit| Err(PatchLinkError::TooLong { symbol: shown(symbol), what, bytes, limit });
    let rest = &symbol[KLP_MARK_PREFIX.len()..];
    let Some(dot) = rest.iter().position(|&byte| byte == b'.') else {
        return match rest.len() {
            // The name may be cut off.
            bytes if bytes > MAX_OBJECT => too_long("object's name", bytes, MAX_OBJECT),
            _ => wrong("it names an object alone", "a name and a position, too"),
        };
    };
    let (object, rest) = (&rest[..dot], &rest[dot + 1..]);
    if object.is_empty() {
        return wrong("it names no object", "a module's name or vmlinux");
    }
    if object.len() > MAX_OBJECT {
        return too_long("object's name", object.len(), MAX_OBJECT);
    }
    if symbol.len() > LONGEST {
        return too_long("symbol's name", rest.len(), LONGEST_NAME);
    }
    let Some(dot) = rest.iter().rposition(|&byte| byte == b'.') else {
        return wrong("it has no position", "0, or which of several symbols of that name");
    };
    let (name, position) = (&rest[..dot], &rest[dot + 1..]);
    if name.is_empty() {
        return wrong("it names no symbol", "the name that the object's symbol table has");
    }
    if name.len() > LONGEST_NAME {
        return too_long("symbol's name", name.len(), LONGEST_NAME);
    }
    if name.contains(&b',') {
        return wrong(
            "there is a comma in its name",
            "names without one, for a position follows behind a comma in Linux's",
        );
    }
    match number(position) {
        Some(position) => Ok(Mark { symbol: at, object, name, position }),
        None => wrong("its position is no number", "plain decimal positions, as 0 or 2"),
    }
}

/// Returns a decimal number. Only the number's canonical form is accepted.
fn number(digits: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(digits).ok()?;
    let number: u64 = text.parse().ok()?;
    (number.to_string() == text).then_some(number)
}

/// Checks that the symbol is a reference to another object.
fn check(name: &[u8], mark: &Mark<'_>, symbol: &elf::Sym64<LE>) -> Result<(), PatchLinkError> {
    let wrong = |problem| Err(PatchLinkError::NoReference { symbol: shown(name), problem });
    if symbol.st_shndx.get(LE) != elf::SHN_UNDEF {
        return wrong("is defined in this object, but its mark names another object: only declare it");
    }
    if symbol.st_type() == elf::STT_TLS {
        return Err(thread_local(name, mark));
    }
    if symbol.st_bind() == elf::STB_LOCAL {
        return wrong("is a local symbol that nothing defines: no compiler makes such an object");
    }
    Ok(())
}

fn thread_local(name: &[u8], mark: &Mark<'_>) -> PatchLinkError {
    PatchLinkError::ThreadLocal { symbol: shown(name), object: shown(mark.object) }
}

impl Mark<'_> {
    /// Returns Linux's name for the symbol.
    fn linked_name(&self) -> Vec<u8> {
        let position = format!(",{}", self.position);
        [KLP_SYMBOL_PREFIX.as_bytes(), self.object, b".", self.name, position.as_bytes()].concat()
    }

    /// Turns the symbol into one that live patching resolves.
    pub(super) fn write(&self, tables: &mut Tables<'_>) -> Result<(), PatchLinkError> {
        let name = tables.add_string(&self.linked_name())?;
        if let Some(symbol) = tables.symbols.get_mut(self.symbol) {
            symbol.st_name.set(LE, name);
            symbol.st_info = elf::SymbolInfo::new(elf::STB_GLOBAL, elf::STT_NOTYPE);
            symbol.st_other = elf::SymbolOther(elf::STV_DEFAULT.0);
            symbol.st_shndx.set(LE, elf::SymbolSection(SHN_LIVEPATCH));
            symbol.st_value.set(LE, 0);
            symbol.st_size.set(LE, 0);
        }
        Ok(())
    }
}
