//! Stages *allocate*, *copy* and *publish*: a module's memory, with a separate type for each state of the memory.

use std::io;
use std::sync::Arc;

use modload_edit::{Addr, Code, Edit, Rejected, Sink, Window, index, wide};
use modload_text::{
    Arena, Describe, INT3, ModuleData, NewData, OutOfMemory, ProtectedData, PublishFailed, Published, Staged, TextLock,
};
use modload_tls::ThreadLocalBlock;

use crate::elf::file::File;
use crate::prepare::error::PrepareError;
use crate::prepare::frames::{self, Frames};
use crate::prepare::layout::{MemoryPart, ModuleLayout, PartSpace, Spot, ThreadLocalLayout};
use crate::prepare::resolved::Resolved;
use crate::prepare::x86_64::{THUNK, THUNKS, thunk_code};
use crate::vocabulary::externals::ModuleLibrary;
use crate::vocabulary::kept::{AllShown, Kept};
use crate::vocabulary::rewriting::HostOperations;

/// What a module keeps until all of its memory is freed.
#[derive(Debug)]
#[expect(dead_code, reason = "each field is held for its drop")]
struct Lasting {
    /// Copies of constant objects of the process.
    near: Option<Published>,
    /// Dropped last.
    libraries: Vec<Arc<dyn ModuleLibrary>>,
}

/// Memory of a module that is UNFORMED: everything is writable, and only data is at the final place.
#[derive(Debug)]
pub(crate) struct Staging {
    text: Option<Staged>,
    init_text: Option<Staged>,
    read_only: Option<Staged>,
    init_read_only: Option<Staged>,
    data: Option<NewData>,
    init_data: Option<NewData>,
    ro_after_init: Option<NewData>,
    /// The module's own block of thread-local variables, and those of libraries.
    blocks: Vec<ThreadLocalBlock>,
    /// Copies of constant objects of the process.
    near: Option<Staged>,
    libraries: Vec<Arc<dyn ModuleLibrary>>,
    /// Start of each part, by [`MemoryPart::slot`]. An empty part has an address too, for symbols of empty sections: the
    /// start of the first part that is not empty.
    bases: [Addr; MemoryPart::COUNT],
}

/// Memory of a formed module: read-only data is published, text is still staged.
#[derive(Debug)]
pub(crate) struct Formed {
    text: Option<Staged>,
    init_text: Option<Staged>,
    blocks: Vec<ThreadLocalBlock>,
    read_only: Option<Published>,
    init_read_only: Option<Published>,
    data: Option<ModuleData>,
    init_data: Option<ModuleData>,
    ro_after_init: Option<ModuleData>,
    lasting: Lasting,
    frames: frames::FramesPlan,
}

/// Text that can run. The frames are dropped first: no unwinder may use rows of text that is about to be unpublished.
#[derive(Debug)]
struct RunningText {
    #[expect(dead_code, reason = "held for its drop")]
    frames: Frames,
    text: Published,
}

/// Memory of a module whose code can run.
#[derive(Debug)]
pub(crate) struct Installed {
    shown: Vec<Box<dyn Kept>>,
    text: Option<RunningText>,
    blocks: Vec<ThreadLocalBlock>,
    read_only: Option<Published>,
    data: Option<ModuleData>,
    pub(crate) init: Init,
    ro_after_init: Option<ModuleData>,
    lasting: Lasting,
}

/// Memory that is dropped when `init` has returned.
#[derive(Debug)]
#[expect(dead_code, reason = "each field is held for its drop")]
pub(crate) struct Init {
    shown: Vec<Box<dyn Kept>>,
    text: Option<RunningText>,
    read_only: Option<Published>,
    data: Option<ModuleData>,
}

/// Memory of a LIVE module. Dropped in this order: first the data of onlookers, then the text, and then the data that
/// the text uses, beginning with the threads' copies of thread-local variables.
#[derive(Debug)]
pub(crate) struct Core {
    #[expect(dead_code, reason = "held for its drop")]
    shown: Vec<Box<dyn Kept>>,
    text: Option<RunningText>,
    #[expect(dead_code, reason = "held for its drop")]
    blocks: Vec<ThreadLocalBlock>,
    #[expect(dead_code, reason = "held for its drop")]
    read_only: Option<Published>,
    data: Option<ModuleData>,
    ro_after_init: Option<ProtectedData>,
    #[expect(dead_code, reason = "held for its drop")]
    lasting: Lasting,
}

/// The first address and the size of each part, by [`MemoryPart::slot`]; size 0 for one that is not there.
pub(crate) type PartRanges = [(Addr, u64); MemoryPart::COUNT];

/// Allocates memory for every part that is not empty.
pub(crate) fn allocate(arena: &'static Arena, layout: &ModuleLayout) -> Result<Staging, PrepareError> {
    let take = |part: MemoryPart| Some(layout.parts[part.slot()]).filter(|space| space.size != 0);
    let text = |PartSpace { size, align }| arena.stage_text(size, align.max(16));
    let read_only = |PartSpace { size, align }| arena.stage_read_only(size, align);
    let data = |PartSpace { size, align }| arena.allocate_data(size, align);
    let late = |PartSpace { size, align }| arena.allocate_ro_after_init(size, align);
    let block = |of: &ThreadLocalLayout| {
        let PartSpace { size, align } = of.space;
        match of.is_fixed {
            true => ThreadLocalBlock::new_fixed(size, align),
            false => ThreadLocalBlock::new_cheapest(size, align, of.image_size == 0),
        }
    };
    let mut memory = Staging {
        text: take(MemoryPart::Text).map(text).transpose()?,
        init_text: take(MemoryPart::InitText).map(text).transpose()?,
        read_only: take(MemoryPart::ReadOnly).map(read_only).transpose()?,
        init_read_only: take(MemoryPart::InitReadOnly).map(read_only).transpose()?,
        data: take(MemoryPart::Data).map(data).transpose()?,
        init_data: take(MemoryPart::InitData).map(data).transpose()?,
        ro_after_init: take(MemoryPart::RoAfterInit).map(late).transpose()?,
        near: None,
        libraries: Vec::new(),
        blocks: layout.thread_local.iter().map(block).collect::<Result<_, _>>()?,
        bases: [Addr::NULL; MemoryPart::COUNT],
    };
    let first = MemoryPart::ALL.into_iter().find_map(|part| memory.own_base(part)).unwrap_or(Addr::NULL);
    memory.bases = MemoryPart::ALL.map(|part| memory.own_base(part).unwrap_or(first));
    Ok(memory)
}

/// How much was copied.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Copied {
    pub(crate) bytes: u64,
}

/// Copies every section to the place of the section. Gaps are filled with INT3 in text and zeros elsewhere.
pub(crate) fn copy(
    file: &File<'_>,
    layout: &ModuleLayout,
    operations: Option<&HostOperations>,
    memory: &mut Staging,
) -> Copied {
    let mut copied = Copied { bytes: 0 };
    let mut filled = [0_usize; MemoryPart::COUNT];
    for (section, spot) in file.sections.iter().zip(&layout.sections) {
        let Some(Spot { part, offset }) = *spot else { continue };
        let fill = if part.is_text() { INT3 } else { 0 };
        let bytes = memory.bytes_mut(part);
        let start = index(offset);
        // Sections of a part are mostly in the order of their offsets. For other sections, the gap was filled before.
        let gap = filled[part.slot()]..start;
        if let Some(gap) = bytes.get_mut(gap).filter(|gap| !gap.is_empty()) {
            gap.fill(fill);
        }
        let end = start + section.data.len();
        bytes[start..end].copy_from_slice(section.data);
        let behind = start + index(section.size);
        if end < behind {
            bytes[end..behind].fill(0);
        }
        filled[part.slot()] = filled[part.slot()].max(behind);
        copied.bytes += wide(section.data.len());
    }
    for part in MemoryPart::ALL {
        let fill = if part.is_text() { INT3 } else { 0 };
        let rest = memory.bytes_mut(part).get_mut(filled[part.slot()]..);
        // A masked store of no bytes at the dangling address of an empty slice takes the processor 100 ns.
        if let Some(rest) = rest.filter(|rest| !rest.is_empty()) {
            rest.fill(fill);
        }
    }
    if let (Some((_, Spot { part, offset })), Some(operations)) = (layout.operations, operations) {
        let table = &mut memory.bytes_mut(part)[index(offset)..];
        for (entry, function) in table.chunks_exact_mut(8).zip(&operations.entries) {
            entry.copy_from_slice(&function.get().to_le_bytes());
        }
    }
    if let Some(Spot { part, offset }) = layout.thunks {
        let thunks = &mut memory.bytes_mut(part)[index(offset)..];
        for (number, thunk) in (0..=THUNKS).zip(thunks.chunks_exact_mut(index(THUNK))) {
            let code = thunk_code(number);
            thunk[..code.len()].copy_from_slice(&code);
        }
    }
    if let Some(Spot { part, offset }) = layout.resolvers {
        let code = modload_tls::resolvers();
        memory.bytes_mut(part)[index(offset)..][..code.len()].copy_from_slice(&code);
    }
    copied
}

impl Staging {
    /// Returns the module's own block of thread-local variables.
    pub(crate) fn own_block(&self) -> Option<&ThreadLocalBlock> {
        self.blocks.first()
    }

    /// Keeps shared libraries as long as the module.
    pub(crate) fn keep_libraries(&mut self, libraries: Vec<Arc<dyn ModuleLibrary>>) {
        self.libraries = libraries;
    }

    /// Makes copies of constant objects, and has the symbols refer to these.
    pub(crate) fn copy_near(&mut self, arena: &'static Arena, resolved: &mut Resolved) -> Result<(), OutOfMemory> {
        /// The alignment of pointers and of the tables of C++ types.
        const ALIGN: usize = 16;
        let size = resolved.near.iter().map(|(_, contents)| contents.len().next_multiple_of(ALIGN)).sum::<usize>();
        if size == 0 {
            return Ok(());
        }
        let mut staged = arena.stage_read_only(wide(size), wide(ALIGN))?;
        let mut at = 0;
        for (symbol, contents) in std::mem::take(&mut resolved.near) {
            staged.bytes_mut()[at..at + contents.len()].copy_from_slice(&contents);
            if let Some(symbol) = resolved.symbols.get_mut(index(symbol.into())) {
                symbol.addr = staged.addr() + wide(at);
            }
            at += contents.len().next_multiple_of(ALIGN);
        }
        self.near = Some(staged);
        Ok(())
    }

    /// Keeps the blocks of libraries as long as the module.
    pub(crate) fn keep_blocks(&mut self, blocks: Vec<ThreadLocalBlock>) {
        self.blocks.extend(blocks);
    }

    /// Where a part begins.
    #[inline]
    pub(crate) fn base(&self, part: MemoryPart) -> Addr {
        self.bases[part.slot()]
    }

    fn own_base(&self, part: MemoryPart) -> Option<Addr> {
        let staged = |staged: &Option<Staged>| staged.as_ref().map(Staged::addr);
        let data = |data: &Option<NewData>| data.as_ref().map(NewData::addr);
        match part {
            MemoryPart::Text => staged(&self.text),
            MemoryPart::InitText => staged(&self.init_text),
            MemoryPart::ReadOnly => staged(&self.read_only),
            MemoryPart::InitReadOnly => staged(&self.init_read_only),
            MemoryPart::Data => data(&self.data),
            MemoryPart::InitData => data(&self.init_data),
            MemoryPart::RoAfterInit => data(&self.ro_after_init),
        }
    }

    pub(crate) fn bytes(&self, part: MemoryPart) -> &[u8] {
        let staged = |staged| Option::map_or(staged, &[][..], Staged::bytes);
        let data = |data| Option::map_or(data, &[][..], NewData::bytes);
        match part {
            MemoryPart::Text => staged(self.text.as_ref()),
            MemoryPart::InitText => staged(self.init_text.as_ref()),
            MemoryPart::ReadOnly => staged(self.read_only.as_ref()),
            MemoryPart::InitReadOnly => staged(self.init_read_only.as_ref()),
            MemoryPart::Data => data(self.data.as_ref()),
            MemoryPart::InitData => data(self.init_data.as_ref()),
            MemoryPart::RoAfterInit => data(self.ro_after_init.as_ref()),
        }
    }

    pub(crate) fn bytes_mut(&mut self, part: MemoryPart) -> &mut [u8] {
        let staged = |staged| Option::map_or(staged, &mut [][..], Staged::bytes_mut);
        let data = |data| Option::map_or(data, &mut [][..], NewData::bytes_mut);
        match part {
            MemoryPart::Text => staged(self.text.as_mut()),
            MemoryPart::InitText => staged(self.init_text.as_mut()),
            MemoryPart::ReadOnly => staged(self.read_only.as_mut()),
            MemoryPart::InitReadOnly => staged(self.init_read_only.as_mut()),
            MemoryPart::Data => data(self.data.as_mut()),
            MemoryPart::InitData => data(self.init_data.as_mut()),
            MemoryPart::RoAfterInit => data(self.ro_after_init.as_mut()),
        }
    }

    /// The address of a place.
    pub(crate) fn addr(&self, spot: Spot) -> Addr {
        self.base(spot.part) + spot.offset
    }

    pub(crate) fn ranges(&self) -> PartRanges {
        MemoryPart::ALL.map(|part| (self.base(part), wide(self.bytes(part).len())))
    }

    /// Returns the part that contains an address, and the bytes from that address on.
    pub(crate) fn at(&self, addr: Addr) -> Option<(MemoryPart, &[u8])> {
        MemoryPart::ALL.into_iter().find_map(|part| {
            let offset = addr.checked_offset_from(self.base(part))?;
            self.bytes(part).get(index(offset)..).filter(|rest| !rest.is_empty()).map(|rest| (part, rest))
        })
    }

    /// The NUL-terminated string at an address.
    pub(crate) fn string(&self, addr: Addr) -> Option<&[u8]> {
        let (_, rest) = self.at(addr)?;
        rest.split(|&byte| byte == 0).next().filter(|string| string.len() < rest.len())
    }

    /// A window for edits of `size` bytes at a place.
    pub(crate) fn window(&mut self, spot: Spot, size: u64) -> Window<'_> {
        let at = self.addr(spot);
        let start = index(spot.offset);
        let bytes = self.bytes_mut(spot.part).get_mut(start..start + index(size));
        Window::new(at, bytes.unwrap_or_default())
    }

    /// Stray calls into the text are reported under these names from here on.
    pub(crate) fn own_text(&mut self, names: Arc<dyn Describe>, init_names: Arc<dyn Describe>) {
        if let Some(text) = &mut self.text {
            text.set_owner(names);
        }
        if let Some(text) = &mut self.init_text {
            text.set_owner(init_names);
        }
    }

    /// Publishes the read-only data and settles the data: the module is formed. The text will be published with these
    /// frames.
    pub(crate) fn form(
        mut self,
        frames: frames::FramesPlan,
        thread_local: Option<&ThreadLocalLayout>,
    ) -> Result<Formed, PrepareError> {
        if let (Some(of), Some(block)) = (thread_local, self.blocks.first_mut()) {
            let (start, size) = (index(of.image.offset), index(of.image_size));
            let image = self.init_read_only.as_ref().and_then(|staged| staged.bytes().get(start..start + size));
            block.set_image(image.unwrap_or_default().into())?;
        }
        let mut lock = TextLock::take();
        let read_only = self.read_only.map(|staged| staged.publish(&mut lock)).transpose()?;
        let init_read_only = self.init_read_only.map(|staged| staged.publish(&mut lock)).transpose()?;
        let near = self.near.map(|staged| staged.publish(&mut lock)).transpose()?;
        Ok(Formed {
            text: self.text,
            init_text: self.init_text,
            read_only,
            init_read_only,
            data: self.data.map(NewData::hand_over),
            init_data: self.init_data.map(NewData::hand_over),
            ro_after_init: self.ro_after_init.map(NewData::hand_over),
            blocks: self.blocks,
            lasting: Lasting { near, libraries: self.libraries },
            frames,
        })
    }
}

/// The memory that the engines of stage *specialise* read and edit.
impl Code for Staging {
    fn bytes(&self, at: Addr, len: usize) -> Option<&[u8]> {
        let (_, rest) = self.at(at)?;
        rest.get(..len)
    }

    fn text(&self, at: Addr, len: usize) -> Option<&[u8]> {
        let (part, rest) = self.at(at)?;
        part.is_text().then(|| &rest[..len.min(rest.len())])
    }
}

impl Sink for Staging {
    fn edit(&mut self, edit: Edit<'_>) -> Result<(), Rejected> {
        let part = self.at(edit.at).map(|(part, _)| part);
        let at = part.map_or(Addr::NULL, |part| self.base(part));
        Window::new(at, part.map_or(&mut [], |part| self.bytes_mut(part))).edit(edit)
    }
}

impl Formed {
    /// Returns the staged texts: those of the module and of init.
    pub(crate) fn texts(&self) -> impl Iterator<Item = &Staged> {
        self.text.iter().chain(&self.init_text)
    }

    pub(crate) fn texts_mut(&mut self) -> impl Iterator<Item = &mut Staged> {
        self.text.iter_mut().chain(&mut self.init_text)
    }

    /// Copies bytes out of the module's data.
    pub(crate) fn read(&self, at: Addr, len: usize) -> Option<Vec<u8>> {
        let read_only = self.read_only.iter().chain(&self.init_read_only);
        let placed = self.data.iter().chain(&self.init_data).chain(&self.ro_after_init);
        read_only.filter_map(|part| part.read(at, len)).chain(placed.filter_map(|part| part.read(at, len))).next()
    }

    /// Publishes the text: Linux's `module_enable_ro`. On failure the text is gone, and the rest is returned for the
    /// subscribers to be told.
    pub(crate) fn publish(mut self) -> Result<Installed, Box<(Formed, PublishFailed)>> {
        let (text, init_text) = {
            let mut lock = TextLock::take();
            let text = self.text.take().map(|staged| staged.publish(&mut lock)).transpose();
            let init_text = self.init_text.take().map(|staged| staged.publish(&mut lock)).transpose();
            // The lock is released first, because dropping published text takes the lock.
            (text, init_text)
        };
        match (text, init_text) {
            (Ok(text), Ok(init_text)) => {
                let running = |text: Option<Published>, frames: Frames| text.map(|text| RunningText { frames, text });
                let [frames, init_frames] = std::mem::take(&mut self.frames).publish();
                Ok(Installed {
                    shown: Vec::new(),
                    text: running(text, frames),
                    read_only: self.read_only,
                    data: self.data,
                    init: Init {
                        shown: Vec::new(),
                        text: running(init_text, init_frames),
                        read_only: self.init_read_only,
                        data: self.init_data,
                    },
                    ro_after_init: self.ro_after_init,
                    blocks: self.blocks,
                    lasting: self.lasting,
                })
            }
            (Err(failed), _) | (_, Err(failed)) => Err(Box::new((self, failed))),
        }
    }
}

impl Installed {
    fn writable(&self) -> impl Iterator<Item = &ModuleData> {
        self.data.iter().chain(&self.init.data).chain(&self.ro_after_init)
    }

    /// Keeps the data of onlookers until the memory is dropped.
    pub(crate) fn keep(&mut self, shown: AllShown) {
        self.shown = shown.until_gone;
        self.init.shown = shown.until_init;
    }

    /// Stores bytes into the module's variables.
    pub(crate) fn write(&self, at: Addr, bytes: &[u8]) -> Option<()> {
        self.writable().find_map(|placed| placed.write(at, bytes))
    }

    /// Makes ro_after_init data read-only, and separates the memory that only `init` needed. On failure nothing has
    /// changed.
    pub(crate) fn protect(mut self) -> Result<(Core, Init), Box<(Installed, io::Error)>> {
        match self.ro_after_init.take().map(ModuleData::protect).transpose() {
            Ok(ro_after_init) => {
                let Installed { shown, text, read_only, data, init, blocks, lasting, .. } = self;
                let core = Core { shown, text, blocks, read_only, data, ro_after_init, lasting };
                Ok((core, init))
            }
            Err((data, error)) => {
                self.ro_after_init = Some(data);
                Err(Box::new((self, error)))
            }
        }
    }
}

impl Core {
    /// Copies bytes out of the module's code.
    pub(crate) fn code(&self, at: Addr, len: usize) -> Option<Vec<u8>> {
        self.text.as_ref()?.text.read(at, len)
    }

    /// Copies bytes out of the module's variables.
    pub(crate) fn read(&self, at: Addr, len: usize) -> Option<Vec<u8>> {
        let variable = self.data.as_ref().and_then(|data| data.read(at, len));
        variable.or_else(|| self.ro_after_init.as_ref()?.read(at, len))
    }

    /// Stores bytes into the module's variables, except variables that are read-only by now.
    pub(crate) fn write(&self, at: Addr, bytes: &[u8]) -> Option<()> {
        self.data.as_ref()?.write(at, bytes)
    }

    /// Returns the reason why a variable cannot be written, if there is one.
    pub(crate) fn why_fixed(&self, at: Addr) -> Option<&'static str> {
        if self.data.as_ref().is_some_and(|data| data.read(at, 1).is_some()) {
            return None;
        }
        let late = self.ro_after_init.as_ref().is_some_and(|late| late.read(at, 1).is_some());
        Some(if late { "is ro_after_init" } else { "was for init only" })
    }
}
