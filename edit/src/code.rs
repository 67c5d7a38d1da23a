//! The memory that an engine works on: bytes at addresses, which an engine reads and edits in turn.

use crate::{Addr, Edit, Rejected, Sink, Window, index, wide};

/// Bytes at addresses, with all edits so far applied.
pub trait Code: Sink {
    /// Returns `len` bytes from `at` on, of text or data. Returns `None` if not all of them are present.
    fn bytes(&self, at: Addr, len: usize) -> Option<&[u8]>;

    /// Returns bytes of text only. Returns fewer than `len` bytes if the text ends before, and `None` instead of no
    /// bytes.
    fn text(&self, at: Addr, len: usize) -> Option<&[u8]>;
}

/// The kind of the bytes in a piece.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PieceKind {
    /// Machine code.
    Text,
    /// All other bytes.
    Data,
}

/// Pieces of memory, each in a buffer of its own. Every piece is addressed by its final address.
#[derive(Clone, Default, Debug)]
pub struct CodeBuffers {
    /// Sorted by address. No piece overlaps another.
    pieces: Vec<BufferedPiece>,
}

#[derive(Clone, Debug)]
struct BufferedPiece {
    at: Addr,
    kind: PieceKind,
    bytes: Vec<u8>,
}

impl BufferedPiece {
    fn offset(&self, at: Addr) -> Option<usize> {
        at.checked_offset_from(self.at).map(index).filter(|offset| *offset < self.bytes.len())
    }
}

impl CodeBuffers {
    /// Adds a piece. A piece without bytes is not recorded.
    ///
    /// # Errors
    /// Returns the bytes if they overlap another piece, or reach beyond the end of the address space.
    pub fn add(&mut self, at: Addr, kind: PieceKind, bytes: Vec<u8>) -> Result<(), Vec<u8>> {
        if bytes.is_empty() {
            return Ok(());
        }
        let Some(last) = at.get().checked_add(wide(bytes.len()) - 1) else { return Err(bytes) };
        let place = self.pieces.partition_point(|piece| piece.at < at);
        let before = place.checked_sub(1).is_some_and(|before| self.pieces[before].offset(at).is_some());
        let behind = self.pieces.get(place).is_some_and(|behind| behind.at.get() <= last);
        if before || behind {
            return Err(bytes);
        }
        self.pieces.insert(place, BufferedPiece { at, kind, bytes });
        Ok(())
    }

    /// Returns the start and the bytes of the text piece that holds an address.
    #[must_use]
    pub fn text_around(&self, at: Addr) -> Option<(Addr, &[u8])> {
        let piece = self.holds(at).filter(|piece| piece.kind == PieceKind::Text)?;
        Some((piece.at, &piece.bytes))
    }

    fn holds(&self, at: Addr) -> Option<&BufferedPiece> {
        let before = self.pieces.partition_point(|piece| piece.at <= at).checked_sub(1)?;
        Some(&self.pieces[before]).filter(|piece| piece.offset(at).is_some())
    }
}

impl Sink for CodeBuffers {
    fn edit(&mut self, edit: Edit<'_>) -> Result<(), Rejected> {
        let before = self.pieces.partition_point(|piece| piece.at <= edit.at).checked_sub(1);
        match before.and_then(|before| self.pieces.get_mut(before)) {
            Some(piece) => Window::new(piece.at, &mut piece.bytes).edit(edit),
            None => Window::new(Addr::NULL, &mut []).edit(edit),
        }
    }
}

impl Code for CodeBuffers {
    fn bytes(&self, at: Addr, len: usize) -> Option<&[u8]> {
        let piece = self.holds(at)?;
        let start = piece.offset(at)?;
        piece.bytes.get(start..start.checked_add(len)?)
    }

    fn text(&self, at: Addr, len: usize) -> Option<&[u8]> {
        let piece = self.holds(at).filter(|piece| piece.kind == PieceKind::Text)?;
        let rest = &piece.bytes[piece.offset(at)?..];
        Some(&rest[..len.min(rest.len())])
    }
}

#[cfg(test)]
mod tests {
    use super::{Code, CodeBuffers, PieceKind};
    use crate::{Addr, Edit, EditOrigin, Engine, Rejected, Sink};

    fn space() -> CodeBuffers {
        let mut space = CodeBuffers::default();
        space.add(Addr::new(0x2000), PieceKind::Data, vec![7; 8]).unwrap();
        space.add(Addr::new(0x1000), PieceKind::Text, vec![0x90; 16]).unwrap();
        space
    }

    #[test]
    fn pieces_are_found_and_do_not_overlap() {
        let mut space = space();
        assert_eq!(space.bytes(Addr::new(0x2004), 4), Some(&[7; 4][..]));
        assert_eq!(space.bytes(Addr::new(0x2004), 5), None);
        assert_eq!(space.bytes(Addr::new(0x1800), 1), None);
        assert_eq!(space.text(Addr::new(0x100e), 5), Some(&[0x90; 2][..]));
        assert_eq!(space.text(Addr::new(0x2000), 1), None);
        for at in [0xff8, 0x1000, 0x100f, 0x1ff9, u64::MAX - 3] {
            assert!(space.add(Addr::new(at), PieceKind::Data, vec![0; 9]).is_err(), "{at:#x}");
        }
        space.add(Addr::new(0x1010), PieceKind::Data, vec![]).unwrap();
        assert_eq!(space.bytes(Addr::new(0x1010), 0), None);
    }

    #[test]
    fn edits_are_stored_where_they_belong() {
        let mut space = space();
        let why = EditOrigin { engine: Engine::Alternative, section: 1, record: 0 };
        space.edit(Edit { at: Addr::new(0x1002), old: &[0x90; 2], new: &[0x66, 0x90], why }).unwrap();
        assert_eq!(space.bytes(Addr::new(0x1001), 4), Some(&[0x90, 0x66, 0x90, 0x90][..]));
        for at in [0xfff, 0x100f, 0x1800] {
            let refused = space.edit(Edit { at: Addr::new(at), old: &[0x90; 2], new: &[0; 2], why }).unwrap_err();
            assert!(matches!(refused, Rejected::Outside { .. }), "{refused}");
        }
    }
}
