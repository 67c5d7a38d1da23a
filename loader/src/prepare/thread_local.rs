//! The thread-local variables to which a module refers: its own, and those of libraries.

use std::collections::HashMap;

use modload_edit::Addr;
use modload_relocs::{RelocSymbol, RelocSymbolKind, TlsBlock, TlsBlocks, relaxes_local_dynamic};
use modload_tls::{DESCRIPTOR_RESOLVER, LibraryVariable, ThreadLocalBlock, TlsError};

use crate::elf::file::{File, Relas};
use crate::prepare::layout::ModuleLayout;
use crate::prepare::memory::Staging;

/// The blocks of the variables, collected while symbols are resolved.
#[derive(Debug)]
pub(crate) struct ThreadLocals {
    pub(crate) blocks: TlsBlocks,
    /// The blocks of libraries, which live as long as the module.
    pub(crate) library_blocks: Vec<ThreadLocalBlock>,
    /// By the C library's number of a library: the number among `blocks`.
    libraries: HashMap<usize, u32>,
}

impl ThreadLocals {
    /// Starts with the module's own block, which is number 0 even if the module has no variables.
    pub(crate) fn of(file: &File<'_>, layout: &ModuleLayout, memory: &Staging) -> ThreadLocals {
        let own = memory.own_block();
        let number = own.map_or(0, ThreadLocalBlock::number);
        let from_thread_pointer = own.and_then(ThreadLocalBlock::thread_pointer_offset);
        let is_relaxed = |relas: &Relas<'_>| {
            let section = file.section(relas.target).filter(|section| section.kept);
            section.is_none_or(|section| relaxes_local_dynamic(section.data, relas.records))
        };
        let get_addr = layout.resolvers.map_or(Addr::NULL, |spot| memory.addr(spot));
        let blocks = TlsBlocks {
            blocks: vec![TlsBlock { number, from_thread_pointer }],
            get_addr,
            resolver: get_addr + DESCRIPTOR_RESOLVER,
            relax_local: from_thread_pointer.is_some() && file.relas.iter().all(is_relaxed),
        };
        ThreadLocals { blocks, library_blocks: Vec::new(), libraries: HashMap::new() }
    }

    /// Returns the symbol for the start of the module's block. Relaxed local dynamic accesses add a variable's offset from
    /// the thread pointer to it, so that its own must be 0.
    pub(crate) fn module_base(&self) -> RelocSymbol {
        let own = self.blocks.blocks.first().and_then(|own| own.from_thread_pointer);
        let offset = own.filter(|_| self.blocks.relax_local).unwrap_or(0).wrapping_neg();
        RelocSymbol { addr: Addr::NULL.offset(offset), size: 0, kind: RelocSymbolKind::ThreadLocal(0) }
    }

    /// Returns a variable that is not there yet, for checks and explanations: one that every access reaches.
    pub(crate) fn somewhere(&mut self, size: u64) -> RelocSymbol {
        self.of_module(Addr::NULL, TlsBlock { number: 0, from_thread_pointer: Some(0) }, size)
    }

    /// Returns a variable of another module as relocations see it.
    pub(crate) fn of_module(&mut self, offset: Addr, block: TlsBlock, size: u64) -> RelocSymbol {
        let blocks = &mut self.blocks.blocks;
        // Number 0 stands for the module's own block, even if it has none.
        let known = blocks.iter().skip(1).position(|known| *known == block).map(|at| at + 1);
        let at = known.unwrap_or_else(|| {
            blocks.push(block);
            blocks.len() - 1
        });
        RelocSymbol { addr: offset, size, kind: RelocSymbolKind::ThreadLocal(u32::try_from(at).unwrap_or(u32::MAX)) }
    }

    /// Returns a variable of a library as relocations see it.
    pub(crate) fn of_library(&mut self, found: &LibraryVariable, size: u64) -> Result<RelocSymbol, TlsError> {
        let number = match self.libraries.get(&found.library) {
            Some(number) => *number,
            None => {
                let block = ThreadLocalBlock::of_library(found.library)?;
                let number = u32::try_from(self.blocks.blocks.len()).unwrap_or(u32::MAX);
                let of = TlsBlock { number: block.number(), from_thread_pointer: found.from_thread_pointer };
                self.blocks.blocks.push(of);
                self.library_blocks.push(block);
                self.libraries.insert(found.library, number);
                number
            }
        };
        Ok(RelocSymbol { addr: Addr::new(found.offset), size, kind: RelocSymbolKind::ThreadLocal(number) })
    }
}
