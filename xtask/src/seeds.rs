//! The initial inputs of fuzzing: objects of the fixtures, an archive and, if available, small modules of Debian.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use modload_fixtures::{Fixture, Kernel, archive};

use crate::Result;

/// The maximum size of a file in bytes. Larger files would only make the runs slow.
const LARGEST: u64 = 8 << 10;

/// Converts a file to inputs of a target.
type Wrap = fn(&Seed) -> io::Result<Vec<Vec<u8>>>;

/// The fuzz targets.
pub(crate) const TARGETS: &[(&str, Wrap)] =
    &[("inspect", plain), ("load", plain), ("function", named), ("file", packed), ("klp_link", plain)];

/// A file, and the name of a function in it.
pub(crate) struct Seed {
    function: String,
    bytes: Vec<u8>,
}

/// Returns all seeds.
pub(crate) fn all() -> Result<Vec<Seed>> {
    let mut files = Vec::new();
    for fixture in Fixture::all()? {
        let Some(case) = fixture.cases()?.into_iter().next() else { continue };
        let function = case.expect.calls.first().map_or("init_module", |call| &call.symbol);
        let language = fixture.language()?;
        for compiler in case.compilers.iter().filter(|it| it.find_for(language).is_some()) {
            files.push((function.to_owned(), fixture.object_of(&case, *compiler)?));
        }
    }
    let is_small = |path: &PathBuf| path.metadata().is_ok_and(|data| data.len() <= LARGEST);
    files.retain(|(_, path)| is_small(path));
    let members: Vec<_> = files.iter().take(3).map(|(_, path)| path.clone()).collect();
    files.push(("init_module".into(), archive("seeds", &members)?));
    let modules = Kernel::find().map_or(Ok(Vec::new()), |kernel| kernel.modules())?;
    files.extend(modules.into_iter().filter(is_small).take(8).map(|path| ("init_module".into(), path)));
    let seed = |(function, path)| Ok(Seed { function, bytes: fs::read(path)? });
    files.into_iter().map(seed).collect()
}

/// Writes the seeds of one target to a folder.
pub(crate) fn write(seeds: &[Seed], wrap: Wrap, folder: &Path) -> Result<()> {
    fs::create_dir_all(folder)?;
    for (number, seed) in seeds.iter().enumerate() {
        for (way, input) in wrap(seed)?.iter().enumerate() {
            fs::write(folder.join(format!("{number}-{way}")), input)?;
        }
    }
    Ok(())
}

fn plain(seed: &Seed) -> io::Result<Vec<Vec<u8>>> {
    Ok(vec![seed.bytes.clone()])
}

fn named(seed: &Seed) -> io::Result<Vec<Vec<u8>>> {
    Ok(vec![[seed.function.as_bytes(), &[0], &seed.bytes].concat()])
}

fn packed(seed: &Seed) -> io::Result<Vec<Vec<u8>>> {
    let bytes = &seed.bytes[..];
    let (mut gzip, mut xz) = (Vec::new(), Vec::new());
    flate2::read::GzEncoder::new(bytes, flate2::Compression::fast()).read_to_end(&mut gzip)?;
    liblzma::read::XzEncoder::new(bytes, 1).read_to_end(&mut xz)?;
    Ok(vec![gzip, xz, zstd::stream::encode_all(bytes, 1)?])
}
