//! Reads module files, and decompresses `.gz`, `.xz` and `.zst` files, up to a maximum size.
//!
//! ```
//! use modload::file::{ModuleFile, SIZE_LIMIT};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = tempfile::tempdir()?;
//! # let path = folder.path().join("adder.o");
//! # let object = modload_fixtures::c_object("int add(int a, int b) { return a + b; }")?;
//! # std::fs::write(&path, object)?;
//! let file = ModuleFile::read(&path, SIZE_LIMIT)?;
//! assert_eq!((file.name.as_str(), file.stem.as_str()), ("adder.o", "adder"));
//! assert!(file.bytes.starts_with(b"\x7fELF"));
//! # Ok(())
//! # }
//! ```

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use modload_loader::{Input, sentence};
use thiserror::Error;

/// The maximum size of a module file in bytes, decompressed.
pub const SIZE_LIMIT: u64 = 1 << 30;

/// A module file cannot be read.
#[derive(Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The file cannot be read.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The compressed bytes are damaged.
    #[error("its {format} data cannot be decompressed")]
    Damaged {
        /// The compression format.
        format: Compression,
        /// The reason.
        source: io::Error,
    },
    /// The file is compressed, and this build of the crate decompresses nothing.
    #[error(
        "its data is compressed with {format}, and this program was built without the feature \"compressed\"; decompress the file"
    )]
    Compressed {
        /// How the file is compressed.
        format: Compression,
    },
    /// The file is larger than the limit.
    #[error("it holds more than {limit} bytes")]
    TooLarge {
        /// The limit in bytes.
        limit: u64,
    },
}

impl fmt::Debug for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&sentence(self))
    }
}

/// A file whose author is trusted cannot be read: [`read_trusted`](crate::read_trusted).
#[derive(Error)]
#[error("{}", .path.display())]
#[non_exhaustive]
pub struct TrustedFileError {
    /// The file.
    pub path: PathBuf,
    /// The reason.
    pub source: ReadError,
}

impl fmt::Debug for TrustedFileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&sentence(self))
    }
}

/// The compression format of a module file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Compression {
    /// RFC 1952. There may be several members.
    Gzip,
    /// The .xz format.
    Xz,
    /// RFC 8878. There may be several frames.
    Zstd,
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Compression::Gzip => "gzip",
            Compression::Xz => "xz",
            Compression::Zstd => "zstd",
        })
    }
}

impl Compression {
    /// Recognises the format by the first bytes. The name of the file does not matter.
    fn of(bytes: &[u8]) -> Option<Compression> {
        match bytes {
            [0x1f, 0x8b, ..] => Some(Compression::Gzip),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Some(Compression::Xz),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Some(Compression::Zstd),
            _ => None,
        }
    }
}

/// The contents of a module file. For examination only: see [`crate::inspect::Inspection`]. Running needs an
/// [`Image`](crate::Image).
#[derive(Clone, Debug)]
pub struct ModuleFile {
    /// The object or the archive, decompressed.
    pub bytes: Vec<u8>,
    /// The file's name.
    pub name: String,
    /// The file's name without `.o`, `.ko` or `.a`, and without `.gz`, `.xz` or `.zst`.
    pub stem: String,
}

impl ModuleFile {
    /// Reads a file of at most `limit` bytes, compressed and decompressed.
    ///
    /// # Errors
    /// [`ReadError`]: the file cannot be read or decompressed, or is too large.
    pub fn read(path: &Path, limit: u64) -> Result<ModuleFile, ReadError> {
        let file = File::open(path)?;
        ModuleFile::read_all(&file, file.metadata()?.len(), path, limit)
    }

    /// Like [`ModuleFile::read`], for an open regular file. Reads from the beginning regardless of the file offset and
    /// does not change the offset, which other processes may share. Only the file name of `path` is used.
    ///
    /// # Errors
    /// [`ReadError`]: the file cannot be read or decompressed, or is too large.
    pub fn read_open(file: &File, path: &Path, limit: u64) -> Result<ModuleFile, ReadError> {
        ModuleFile::read_all(FromStart { file, at: 0 }, file.metadata()?.len(), path, limit)
    }

    fn read_all(file: impl Read, len: u64, path: &Path, limit: u64) -> Result<ModuleFile, ReadError> {
        // Allocates memory for an ordinary file once, if possible. A special file has length 0.
        let mut bytes = Vec::new();
        let _ = bytes.try_reserve_exact(modload_edit::index(len.min(limit).saturating_add(1)));
        let bytes = bounded(bytes, file, limit, ReadError::Io)?;
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        Ok(ModuleFile { bytes: unpack(bytes, limit)?, stem: stem(&name), name })
    }

    /// Converts the file to an input of a link unit.
    #[must_use]
    pub fn into_input(self) -> Input<'static> {
        Input { name: self.name, bytes: self.bytes.into() }
    }
}

/// A reader that does not change the file offset.
struct FromStart<'a> {
    file: &'a File,
    at: u64,
}

impl Read for FromStart<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read_at(bytes, self.at)?;
        self.at += modload_edit::wide(count);
        Ok(count)
    }
}

/// Decompresses bytes, if they are compressed. Does this only once.
fn unpack(bytes: Vec<u8>, limit: u64) -> Result<Vec<u8>, ReadError> {
    let Some(format) = Compression::of(&bytes) else { return Ok(bytes) };
    unpack_as(format, &bytes, limit)
}

/// Fails: this build decompresses nothing.
#[cfg(not(feature = "compressed"))]
fn unpack_as(format: Compression, _packed: &[u8], _limit: u64) -> Result<Vec<u8>, ReadError> {
    Err(ReadError::Compressed { format })
}

/// Decompresses bytes of this format.
#[cfg(feature = "compressed")]
fn unpack_as(format: Compression, packed: &[u8], limit: u64) -> Result<Vec<u8>, ReadError> {
    use liblzma::stream::{CONCATENATED, Stream};

    /// The most memory in bytes that decompressing .xz may take. The file says how much it needs: 65 MiB for `xz -9`.
    const XZ_MEMORY: u64 = 128 << 20;

    let damaged = |source| ReadError::Damaged { format, source };
    match format {
        Compression::Gzip => bounded(Vec::new(), flate2::read::MultiGzDecoder::new(packed), limit, damaged),
        Compression::Xz => {
            let stream = Stream::new_stream_decoder(XZ_MEMORY, CONCATENATED).map_err(|error| damaged(error.into()))?;
            bounded(Vec::new(), liblzma::read::XzDecoder::new_stream(packed, stream), limit, damaged)
        }
        Compression::Zstd => {
            let decoder = zstd::stream::read::Decoder::with_buffer(packed).map_err(damaged)?;
            bounded(Vec::new(), decoder, limit, damaged)
        }
    }
}

/// Reads to the end into an empty buffer. Fails after more than `limit` bytes.
fn bounded(
    mut bytes: Vec<u8>,
    from: impl Read,
    limit: u64,
    failed: impl Fn(io::Error) -> ReadError,
) -> Result<Vec<u8>, ReadError> {
    let read = from.take(limit.saturating_add(1)).read_to_end(&mut bytes).map_err(failed)?;
    if modload_edit::wide(read) > limit {
        return Err(ReadError::TooLarge { limit });
    }
    Ok(bytes)
}

fn stem(name: &str) -> String {
    let packed = [".gz", ".xz", ".zst"].iter().find_map(|end| name.strip_suffix(end));
    let plain = Path::new(packed.unwrap_or(name));
    plain.file_stem().map_or_else(|| "module".into(), |stem| stem.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{ModuleFile, ReadError, stem};

    const LIMIT: u64 = 1 << 20;

    #[test]
    fn no_limit_is_a_limit() {
        let path = std::env::current_exe().unwrap();
        assert_eq!(ModuleFile::read(&path, u64::MAX).unwrap().bytes, std::fs::read(&path).unwrap());
        assert!(matches!(ModuleFile::read(&path, 100), Err(ReadError::TooLarge { limit: 100 })));
    }

    #[test]
    fn a_file_is_called_by_its_stem() {
        for (path, expected) in [
            ("greet.o", "greet"),
            ("greet.ko.xz", "greet"),
            ("greet.o.zst", "greet"),
            ("a.b.o.gz", "a.b"),
            ("greet", "greet"),
            ("libgreet.a", "libgreet"),
            ("", "module"),
        ] {
            assert_eq!(stem(path), expected, "{path}");
        }
    }

    #[test]
    fn a_file_larger_than_the_limit_is_not_read_to_its_end() {
        let refused = ModuleFile::read(Path::new("/dev/zero"), LIMIT).unwrap_err();
        assert!(matches!(refused, ReadError::TooLarge { limit: LIMIT }), "{refused}");
    }

    #[cfg(not(feature = "compressed"))]
    #[test]
    fn without_the_feature_compressed_files_are_refused_by_their_format() {
        for (magic, name) in [(&b"\x1f\x8b"[..], "gzip"), (b"\xfd7zXZ\0", "xz"), (b"\x28\xb5\x2f\xfd", "zstd")] {
            let refused = super::unpack([magic, &[0; 64]].concat(), LIMIT).unwrap_err().to_string();
            assert!(refused.contains(name) && refused.contains("compressed"), "{refused}");
        }
    }
}

#[cfg(all(test, feature = "compressed"))]
mod tests_of_compression {
    use std::io::Write;

    use super::{ReadError, unpack};

    const LIMIT: u64 = 1 << 20;

    type Pack = fn(&[u8]) -> Vec<u8>;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn xz(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 6);
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn zst(bytes: &[u8]) -> Vec<u8> {
        zstd::stream::encode_all(bytes, 3).unwrap()
    }

    #[test]
    fn each_format_is_known_by_its_first_bytes() {
        let bytes: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
        for packed in [bytes.clone(), gzip(&bytes), xz(&bytes), zst(&bytes)] {
            assert_eq!(unpack(packed, LIMIT).unwrap(), bytes);
        }
    }

    #[test]
    fn several_members_are_one_file() {
        for pack in [gzip, xz, zst] {
            let packed = [pack(b"one"), pack(b"two")].concat();
            assert_eq!(unpack(packed, LIMIT).unwrap(), b"onetwo");
        }
    }

    #[test]
    fn a_bomb_stops_at_the_limit() {
        let zeros = vec![0; 8 << 20];
        for pack in [gzip, xz, zst] {
            let bomb = pack(&zeros);
            assert!(bomb.len() < 100_000);
            assert!(matches!(unpack(bomb, LIMIT), Err(ReadError::TooLarge { limit: LIMIT })));
        }
    }

    #[test]
    fn damaged_data_is_an_error_that_names_its_format() {
        let bytes: Vec<u8> = (0..10_000_u32).flat_map(u32::to_le_bytes).collect();
        let formats: [(Pack, &str); 3] = [(gzip, "gzip"), (xz, "xz"), (zst, "zstd")];
        for (pack, name) in formats {
            let packed = pack(&bytes);
            for len in [8, packed.len() / 2, packed.len() - 1] {
                let error = unpack(packed[..len].to_vec(), LIMIT).unwrap_err().to_string();
                assert_eq!(error, format!("its {name} data cannot be decompressed"), "{len} bytes");
            }
        }
    }
}
