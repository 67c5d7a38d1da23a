//! Static archives: the members, and the symbols that they define.

use std::collections::HashMap;

use object::read::archive::{ArchiveFile, ArchiveKind};

use crate::elf::error::ObjectError;
use crate::elf::file::{File, SymbolPlace};
use crate::elf::link::crel;
use crate::elf::link::object::{NAMES_LIMIT, UnitObject, inside};
use crate::vocabulary::escape::escaped;

use modload_edit::wide;
use object::elf;

const MAGIC: &[u8] = b"!<arch>\n";
const THIN_MAGIC: &[u8] = b"!<thin>\n";

pub(super) fn is_archive(bytes: &[u8]) -> bool {
    bytes.starts_with(MAGIC) || bytes.starts_with(THIN_MAGIC)
}

/// A parsed archive.
pub(super) struct StaticArchive<'a> {
    /// The members in order; `None` once taken.
    members: Vec<Option<ArchiveMember<'a>>>,
    /// Symbols in the order of the members and of their symbol tables, as in the index of ranlib.
    index: Vec<Offer<'a>>,
    /// Positions of each name in the index.
    places: HashMap<&'a [u8], Vec<usize>>,
}

/// A member after conversion of compact relocations; `None` if the member has none. `Err` holds the size limit with
/// which the conversion failed, so that [`StaticArchive::read`] can report the error if the member is needed.
pub(super) type PlainMember = Result<Option<Vec<u8>>, u64>;

/// Converts the compact relocations of all members. Returns nothing for bytes that are no archive; [`StaticArchive::read`]
/// reports those.
pub(super) fn written_out(bytes: &[u8], limit: u64) -> Vec<PlainMember> {
    let Ok(archive) = ArchiveFile::parse(bytes) else { return Vec::new() };
    let members = archive.members().map_while(Result::ok);
    let plain = |data: &[u8]| crel::written_out(data, limit).map_err(|_| limit);
    members.map(|member| member.data(bytes).map_or(Ok(None), plain)).collect()
}

/// A symbol that a member defines.
#[derive(Clone, Copy)]
pub(super) struct Offer<'a> {
    pub(super) name: &'a [u8],
    pub(super) kind: OfferKind,
    member: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum OfferKind {
    /// A COMMON symbol or a weak definition: gives way to others.
    Soft,
    Definition,
}

/// A member. An invalid member is an error only if it is needed.
struct ArchiveMember<'a> {
    name: String,
    file: Result<File<'a>, ObjectError>,
}

impl<'a> StaticArchive<'a> {
    /// Reads an archive. `name` is used in error messages; `plain` holds the converted members.
    pub(super) fn read(
        name: &str,
        bytes: &'a [u8],
        plain: &'a [PlainMember],
    ) -> Result<StaticArchive<'a>, ObjectError> {
        let damaged = |_| ObjectError::NotAnObject("a damaged archive");
        let archive = ArchiveFile::parse(bytes).map_err(damaged)?;
        if archive.is_thin() {
            return Err(ObjectError::NotAnObject(
                "a thin archive, which only names its members; make one that holds them",
            ));
        }
        if matches!(archive.kind(), ArchiveKind::AixBig | ArchiveKind::Zos | ArchiveKind::Coff) {
            return Err(ObjectError::NotAnObject("an archive of another system"));
        }
        let mut found = StaticArchive { members: Vec::new(), index: Vec::new(), places: HashMap::new() };
        let mut names = 0;
        for (number, member) in archive.members().enumerate() {
            let member = member.map_err(damaged)?;
            let data = member.data(bytes).map_err(damaged)?;
            let file = match plain.get(number) {
                Some(Ok(Some(plain))) => File::validate(plain),
                Some(Err(limit)) => crel::written_out(data, *limit).and_then(|_| File::validate(data)),
                Some(Ok(None)) | None => File::validate(data),
            };
            if let Ok(file) = &file {
                let at = found.members.len();
                let global = file.symbols().skip(1).filter(|(_, symbol)| symbol.bind != elf::STB_LOCAL);
                for (_, symbol) in global {
                    let kind = match symbol.place {
                        SymbolPlace::Undefined | SymbolPlace::Livepatch => continue,
                        SymbolPlace::Common => OfferKind::Soft,
                        _ if symbol.bind == elf::STB_WEAK => OfferKind::Soft,
                        SymbolPlace::Absolute | SymbolPlace::Section(_) => OfferKind::Definition,
                    };
                    let name = symbol.name();
                    names += wide(name.len());
                    if names > NAMES_LIMIT {
                        return Err(ObjectError::TooLarge { bytes: names, limit: NAMES_LIMIT });
                    }
                    found.places.entry(name).or_default().push(found.index.len());
                    found.index.push(Offer { name, kind, member: at });
                }
            }
            let member = escaped(member.name());
            let name = if name.is_empty() { member } else { format!("{name}({member})") };
            found.members.push(Some(ArchiveMember { name, file }));
        }
        Ok(found)
    }

    pub(super) fn defines(&self, name: &[u8]) -> bool {
        self.places.contains_key(name)
    }

    /// Returns the positions of a name in the index.
    pub(super) fn places(&self, name: &[u8]) -> &[usize] {
        self.places.get(name).map_or(&[], Vec::as_slice)
    }

    /// Returns the symbol at a position of the index.
    pub(super) fn offer(&self, place: usize) -> Option<Offer<'a>> {
        self.index.get(place).copied()
    }

    /// Takes the member that defines a symbol, unless that member is already taken.
    pub(super) fn take(&mut self, offer: Offer<'a>) -> Option<UnitObject<'a>> {
        let ArchiveMember { name, file } = self.members.get_mut(offer.member)?.take()?;
        // Only valid members are in the index.
        Some(UnitObject { name, file: file.ok()? })
    }

    /// All members.
    pub(super) fn into_objects(self) -> Result<Vec<UnitObject<'a>>, ObjectError> {
        let all = self.members.into_iter().flatten();
        all.map(|ArchiveMember { name, file }| match file {
            Ok(file) => Ok(UnitObject { name, file }),
            Err(error) => Err(inside(&name, error)),
        })
        .collect()
    }
}
