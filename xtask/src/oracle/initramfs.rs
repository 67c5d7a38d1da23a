//! The initial file system of the guest: an uncompressed archive in cpio's "newc" format.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

/// `S_IFDIR`, `S_IFCHR` and `S_IFREG` with their permissions.
const FOLDER: u32 = 0o040_755;
const DEVICE: u32 = 0o020_600;
const FILE: u32 = 0o100_755;

/// An archive that is being written.
pub(crate) struct Initramfs<W> {
    to: W,
    entries: u32,
}

impl<W: Write> Initramfs<W> {
    /// Starts an archive with the folders for mounts, and a console.
    pub(crate) fn new(to: W) -> io::Result<Initramfs<W>> {
        let mut archive = Initramfs { to, entries: 0 };
        for folder in ["dev", "proc", "sys", "ko"] {
            archive.entry(folder, FOLDER, (0, 0), &[])?;
        }
        archive.entry("dev/console", DEVICE, (5, 1), &[])?;
        Ok(archive)
    }

    pub(crate) fn file(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.entry(name, FILE, (0, 0), bytes)
    }

    pub(crate) fn copy(&mut self, name: &str, from: &Path) -> io::Result<()> {
        self.file(name, &fs::read(from)?)
    }

    /// Writes the trailer.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        self.entry("TRAILER!!!", 0, (0, 0), &[])?;
        self.to.flush()
    }

    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), bytes: &[u8]) -> io::Result<()> {
        self.entries += 1;
        let length = |bytes: usize| u32::try_from(bytes).map_err(io::Error::other);
        let (size, name_size) = (length(bytes.len())?, length(name.len() + 1)?);
        // inode, mode, uid, gid, links, mtime, size, device, device of a special file, length of the name, check
        let fields = [self.entries, mode, 0, 0, 1, 0, size, 0, 0, device.0, device.1, name_size, 0];
        let header: String = fields.iter().map(|field| format!("{field:08x}")).collect();
        self.padded(&[b"070701", header.as_bytes(), name.as_bytes(), &[0]].concat())?;
        self.padded(bytes)
    }

    /// Names and contents are padded to a multiple of four bytes.
    fn padded(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.to.write_all(bytes)?;
        self.to.write_all(&[0; 3][..bytes.len().wrapping_neg() % 4])
    }
}

#[cfg(test)]
mod tests {
    use super::Initramfs;

    #[test]
    fn every_entry_begins_at_a_multiple_of_four() {
        let mut bytes = Vec::new();
        let mut archive = Initramfs::new(&mut bytes).unwrap();
        archive.file("init", b"12345").unwrap();
        archive.finish().unwrap();
        let starts: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at..].starts_with(b"070701")).collect();
        assert!(starts.len() == 7 && starts.iter().all(|start| start % 4 == 0), "{starts:?}");
        assert!(bytes[starts[5] + 110..].starts_with(b"init\0") && bytes.len() % 4 == 0);
        assert!(bytes[starts[6] + 110..].starts_with(b"TRAILER!!!\0"));
    }
}
