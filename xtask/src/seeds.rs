//! What fuzzing starts from: objects of the fixtures, an archive and, if they are there, small modules of Debian's.

use std::fs;
use std::io::{self, Read};
use std::path::Path;

use modload_fixtures::{Fixture, Kernel, archive};

use crate::Result;

/// Larger files would only make the runs slow.
const LARGEST: usize = 8 << 10;

/// How a target takes a file, by target: the inputs made of it.
type Wrap = fn(&Seed) -> io::Result<Vec<Vec<u8>>>;

/// The fuzz targets, and how each takes a file.
pub(crate) const TARGETS: &[(&str, Wrap)] =
    &[("inspect", plain), ("load", plain), ("function", named), ("file", packed)];

/// A file, and the name of a function in it.
pub(crate) struct Seed {
    function: String,
    bytes: Vec<u8>,
}

/// All seeds.
pub(crate) fn all() -> Result<Vec<Seed>> {
    let mut seeds = Vec::new();
    let mut members = Vec::new();
    for fixture in Fixture::all()? {
        let Some(case) = fixture.cases()?.into_iter().next() else { continue };
        let function = case.expect.calls.first().map_or_else(|| "init_module".into(), |call| call.symbol.clone());
        let language = fixture.language()?;
        for compiler in case.compilers.iter().filter(|it| it.find_for(language).is_some()) {
            let object = fixture.object_of(&case, *compiler)?;
            seeds.push(Seed { function: function.clone(), bytes: fs::read(&object)? });
            members.push(object);
        }
    }
    members.truncate(3);
    seeds.push(Seed { function: "init_module".into(), bytes: fs::read(archive("seeds", &members)?)? });
    if let Some(kernel) = Kernel::find() {
        for path in kernel.modules()?.iter().step_by(100) {
            seeds.push(Seed { function: "init_module".into(), bytes: fs::read(path)? });
        }
    }
    seeds.retain(|seed| seed.bytes.len() <= LARGEST);
    Ok(seeds)
}

/// Writes the seeds of one target into a folder.
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
