//! The contents of the guest's disk: files, and ranges of memory.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use crate::Result;

/// The block size of the disk.
const BLOCK: usize = 512;

/// The first word of each chunk's header.
const MAGIC: &str = "ORACLE1";

/// The whole contents of the disk.
#[derive(Default)]
pub(crate) struct Dump {
    files: BTreeMap<String, Vec<u8>>,
    pub(crate) memory: KernelMemory,
}

/// Ranges of a kernel's memory, by address.
#[derive(Default)]
pub(crate) struct KernelMemory(BTreeMap<u64, Vec<u8>>);

impl Dump {
    pub(crate) fn read(disk: &Path) -> Result<Dump> {
        let mut disk = BufReader::with_capacity(1 << 20, File::open(disk)?);
        let mut dump = Dump::default();
        loop {
            let mut header = [0; BLOCK];
            disk.read_exact(&mut header)?;
            let header = String::from_utf8_lossy(&header);
            let mut words = header.lines().next().unwrap_or_default().splitn(3, ' ');
            let magic = words.next().filter(|word| *word == MAGIC);
            let (Some(_), Some(length), Some(name)) = (magic, words.next(), words.next()) else {
                return Err("the disk has no valid chunk where one must be: the guest has not finished writing".into());
            };
            if name == "end" {
                return Ok(dump);
            }
            let length: usize = length.parse()?;
            let to = match name.strip_prefix("memory ") {
                Some(address) => dump.memory.0.entry(u64::from_str_radix(address, 16)?).or_default(),
                None => dump.files.entry(name.to_owned()).or_default(),
            };
            let start = to.len();
            to.resize(start + length.next_multiple_of(BLOCK), 0);
            disk.read_exact(&mut to[start..])?;
            to.truncate(start + length);
        }
    }

    /// Returns a file of the guest.
    pub(crate) fn file(&self, path: &str) -> Result<String> {
        let bytes = self.files.get(path).ok_or_else(|| format!("the guest wrote no {path}"))?;
        Ok(String::from_utf8(bytes.clone())?)
    }
}

impl KernelMemory {
    /// Returns the bytes at an address, or `None` if the dump does not have all of them.
    pub(crate) fn bytes(&self, address: u64, length: u64) -> Option<&[u8]> {
        let (start, range) = self.0.range(..=address).next_back()?;
        let from = usize::try_from(address - start).ok()?;
        range.get(from..from.checked_add(usize::try_from(length).ok()?)?)
    }

    pub(crate) fn u64_at(&self, address: u64) -> Option<u64> {
        Some(u64::from_le_bytes(*self.bytes(address, 8)?.first_chunk()?))
    }

    pub(crate) fn u32_at(&self, address: u64) -> Option<u32> {
        Some(u32::from_le_bytes(*self.bytes(address, 4)?.first_chunk()?))
    }

    pub(crate) fn i32_at(&self, address: u64) -> Option<i32> {
        Some(i32::from_le_bytes(*self.bytes(address, 4)?.first_chunk()?))
    }

    /// Reads a string that ends with a NUL, of at most 256 bytes.
    pub(crate) fn string_at(&self, address: u64) -> Option<String> {
        let bytes: Vec<u8> =
            (0..256).map_while(|at| Some(self.bytes(address + at, 1)?[0])).take_while(|it| *it != 0).collect();
        String::from_utf8(bytes).ok()
    }

    /// Returns the number of bytes.
    pub(crate) fn size(&self) -> usize {
        self.0.values().map(Vec::len).sum()
    }
}
