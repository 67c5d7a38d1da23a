//! Stage *link*: merges several objects, and the archive members that these objects need, into one relocatable object,
//! as `ld -r` does. A single object is not changed.

mod archive;
mod crel;
mod merge;
mod object;
mod output;
mod symbols;
mod write;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::{BTreeSet, HashSet};

use crate::elf::error::ObjectError;
use crate::elf::file::File;
use crate::elf::link::archive::StaticArchive;
pub(crate) use crate::elf::link::object::NAMES_LIMIT;
use crate::elf::link::object::{UnitObject, inside};
use crate::elf::link::symbols::GlobalSymbols;
use crate::elf::sections::check_sections;
use crate::vocabulary::escape::escaped;

use modload_abi::section;

/// A file of a link unit: a relocatable object or a static archive.
#[derive(Clone, Debug)]
pub struct Input<'a> {
    /// The name for error messages: that of the file. May be empty if there is only one input.
    pub name: String,
    /// The contents of the file.
    pub bytes: Cow<'a, [u8]>,
}

/// The object from which a module is loaded.
#[derive(Clone, Debug)]
pub(crate) struct MergedObject<'a> {
    /// One relocatable object.
    pub(crate) bytes: Cow<'a, [u8]>,
    /// The names of the linked objects; empty if there was one object only.
    pub(crate) objects: Vec<String>,
}

/// Links the objects that are needed: every input object, and archive members by the rule of GNU ld. An archive is
/// searched in the order of the inputs, for symbols that are undefined at that point. `wanted` counts as undefined from
/// the beginning. Without any object among the inputs, `init_module` and `cleanup_module` count as undefined too; if no
/// archive defines any of these, all members are linked.
pub(crate) fn link<'a>(
    inputs: &'a [Input<'a>],
    wanted: &[String],
    limit: u64,
) -> Result<MergedObject<'a>, ObjectError> {
    match inputs {
        [Input { bytes, .. }] if !archive::is_archive(bytes) => {
            let bytes = crel::written_out(bytes, limit)?.map_or(Cow::Borrowed(&**bytes), Cow::Owned);
            return Ok(MergedObject { bytes, objects: Vec::new() });
        }
        _ => {}
    }
    let plain: Vec<PlainInput> = inputs.iter().map(|input| PlainInput::of(input, limit)).collect::<Result<_, _>>()?;
    let sources = inputs.iter().zip(&plain).map(|(input, plain)| Source::read(input, plain));
    let sources: Vec<Source<'_>> = sources.collect::<Result<_, _>>()?;
    let LinkUnit { objects, symbols, .. } = select(sources, wanted)?;
    if objects.is_empty() {
        return Err(ObjectError::NotAnObject("an archive without any object"));
    }
    let bytes = merge::merge(&objects, &symbols, limit)?;
    let objects = objects.into_iter().map(|object| object.name).collect();
    Ok(MergedObject { bytes: Cow::Owned(bytes), objects })
}

/// The objects of an input after conversion of compact relocations.
enum PlainInput {
    Object(Option<Vec<u8>>),
    /// By member.
    Archive(Vec<archive::PlainMember>),
}

impl PlainInput {
    fn of(input: &Input<'_>, limit: u64) -> Result<PlainInput, ObjectError> {
        if archive::is_archive(&input.bytes) {
            return Ok(PlainInput::Archive(archive::written_out(&input.bytes, limit)));
        }
        let name = escaped(input.name.as_bytes());
        crel::written_out(&input.bytes, limit).map(PlainInput::Object).map_err(|error| inside(&name, error))
    }
}

enum Source<'a> {
    Object(UnitObject<'a>),
    Archive(StaticArchive<'a>),
}

impl<'a> Source<'a> {
    fn read(input: &'a Input<'_>, plain: &'a PlainInput) -> Result<Source<'a>, ObjectError> {
        let name = escaped(input.name.as_bytes());
        let read = match plain {
            PlainInput::Archive(members) => StaticArchive::read(&name, &input.bytes, members).map(Source::Archive),
            PlainInput::Object(plain) => File::validate(plain.as_deref().unwrap_or(&input.bytes))
                .map(|file| Source::Object(UnitObject { name: name.clone(), file })),
        };
        read.map_err(|error| inside(&name, error))
    }
}

/// The objects and symbols that are linked so far.
#[derive(Default)]
struct LinkUnit<'a> {
    objects: Vec<UnitObject<'a>>,
    symbols: GlobalSymbols<'a>,
    /// The signatures of all COMDAT groups.
    groups: HashSet<&'a [u8]>,
    /// The names of all `.gnu.linkonce.` sections, the older form of groups.
    linkonce: HashSet<&'a [u8]>,
}

impl<'a> LinkUnit<'a> {
    fn add(&mut self, mut object: UnitObject<'a>) -> Result<(), ObjectError> {
        let groups = std::mem::take(&mut object.file.groups).into_iter();
        let repeated: Vec<_> = groups.filter(|group| !self.groups.insert(group.signature)).collect();
        repeated.iter().for_each(|group| object.file.drop_group(group.members));
        let linkonce = object.file.drop_repeated_linkonce(&mut self.linkonce);
        if linkonce || !repeated.is_empty() {
            object.file.drop_linked();
        }
        // Checked before merging: merging drops sections, and moves the others into another object.
        check_sections(&object.file).map_err(|error| object.failed(error))?;
        self.symbols.add(&self.objects, &object)?;
        self.objects.push(object);
        Ok(())
    }
}

/// Returns the needed objects, in link order, with their symbols.
fn select<'a>(sources: Vec<Source<'a>>, wanted: &'a [String]) -> Result<LinkUnit<'a>, ObjectError> {
    let no_objects = !sources.iter().any(|source| matches!(source, Source::Object(_)));
    let entries = [section::INIT_SYMBOL, section::EXIT_SYMBOL].into_iter().filter(|_| no_objects);
    let roots: Vec<&[u8]> = entries.chain(wanted.iter().map(String::as_str)).map(str::as_bytes).collect();
    let defines_root = |source: &Source<'_>| match source {
        Source::Archive(archive) => roots.iter().any(|root| archive.defines(root)),
        Source::Object(_) => false,
    };
    let whole = no_objects && !sources.iter().any(defines_root);
    let mut unit = LinkUnit::default();
    roots.iter().for_each(|root| unit.symbols.want(root));
    for source in sources {
        match source {
            Source::Object(object) => unit.add(object)?,
            Source::Archive(archive) if whole => {
                for object in archive.into_objects()? {
                    unit.add(object)?;
                }
            }
            Source::Archive(archive) => search(archive, &mut unit)?,
        }
    }
    Ok(unit)
}

/// Adds archive members as long as one of them defines an undefined symbol. GNU ld scans the index of the archive
/// repeatedly. This function takes the same members in the same order, but looks only at names that have become
/// undefined.
fn search<'a>(mut archive: StaticArchive<'a>, unit: &mut LinkUnit<'a>) -> Result<(), ObjectError> {
    let mut promising: BTreeSet<usize> = BTreeSet::new();
    let mut from = 0;
    loop {
        for name in unit.symbols.newly_undefined() {
            promising.extend(archive.places(name));
        }
        let Some(&at) = promising.range(from..).next().or_else(|| promising.first()) else { break };
        promising.remove(&at);
        from = at + 1;
        if let Some(offer) = archive.offer(at).filter(|offer| unit.symbols.takes(offer))
            && let Some(object) = archive.take(offer)
        {
            unit.add(object)?;
        }
    }
    // The next archive is searched for all symbols that are still undefined.
    unit.symbols.ask_again();
    Ok(())
}
