//! The modules that are loaded, in load order: each after the modules that it needs.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use modload::inspect::Catalog;
use modload_fixtures::Kernel;

use super::guest::InitramfsArchive;
use crate::Result;

/// The modules that the guest needs for its disk, and algorithms that other modules request from the kernel by name at
/// init, which no file says: without crc32c a hundred modules would refuse.
const FIRST: &[&str] = &["virtio_pci", "virtio_blk", "crc32c_generic", "pcbc", "fcrypt"];

/// Modules that are included in every selection: they switch their own keys or calls at init, define static calls, have
/// paravirt sites in loops of a hypervisor, or are large.
const NAMED: &[&str] = &[
    "kvm",
    "kvm_amd",
    "kvm_intel",
    "aesni_intel",
    "chacha_x86_64",
    "poly1305_x86_64",
    "curve25519_x86_64",
    "crct10dif_pclmul",
    "sha256_ssse3",
    "ipvlan",
    "qla2xxx",
    "ext4",
    "xfs",
    "btrfs",
    "nfsd",
    "overlay",
    "fuse",
    "nf_tables",
    "nf_conntrack",
    "openvswitch",
    "sctp",
    "tipc",
    "mac80211",
    "bluetooth",
    "xen_netfront",
    "hv_vmbus",
    "vmw_balloon",
    "zram",
    "raid456",
    "dm_crypt",
    "nvme",
    "e1000e",
    "ixgbe",
    "amdgpu",
    "i915",
    "snd_hda_intel",
    "usb_storage",
    "intel_rapl_common",
    "msr",
    "binfmt_misc",
];

/// Modules that are loaded only if named, with the reason.
const LEFT_OUT: &[(&str, &str)] = &[("test_bpf", "it runs its tests at init, for minutes")];

/// The modules for the guest.
pub(crate) struct Choice {
    /// The modules that are loaded first. They are compared too.
    pub(crate) before: Vec<PathBuf>,
    pub(crate) modules: Vec<PathBuf>,
}

impl Choice {
    /// Adds the modules and the lists of their paths to the guest's initial file system.
    pub(crate) fn pack(&self, archive: &mut InitramfsArchive) -> Result<()> {
        for (list, modules) in [("before", &self.before), ("modules", &self.modules)] {
            let mut lines = String::new();
            for path in modules {
                let name = path.file_name().ok_or("a module without a name")?.to_string_lossy();
                archive.copy(&format!("ko/{name}"), path)?;
                lines.push_str(&format!("/ko/{name}\n"));
            }
            archive.file(list, lines.as_bytes())?;
        }
        Ok(())
    }

    /// Selects modules. `wanted` is a number, `all`, or names separated by commas.
    pub(crate) fn of(kernel: &Path, wanted: &str, scratch: &Path) -> Result<Choice> {
        let files = modules_by_name(kernel)?;
        let catalog = catalog(&files, scratch)?;
        let left_out = |name: &&str| LEFT_OUT.iter().all(|(left_out, _)| left_out != name);
        let names: Vec<&str> = files.keys().map(String::as_str).filter(left_out).collect();
        let names = if wanted == "all" {
            names
        } else if let Ok(count) = wanted.parse() {
            spread(&names, &files, count)
        } else {
            wanted.split(',').collect()
        };
        let order = |wanted: &[&str]| -> Result<Vec<PathBuf>> {
            catalog.order(wanted)?.into_iter().map(|(name, _)| Ok(files[name].clone())).collect()
        };
        let before = order(FIRST)?;
        let mut modules = order(&names)?;
        modules.retain(|path| !before.contains(path));
        Ok(Choice { before, modules })
    }
}

/// Selects the named modules, and others evenly distributed in the order of their paths, which is an order by
/// subsystem.
fn spread<'n>(names: &[&'n str], files: &BTreeMap<String, PathBuf>, count: usize) -> Vec<&'n str> {
    let (mut chosen, mut others): (Vec<&str>, Vec<&str>) = names.iter().partition(|name| NAMED.contains(*name));
    others.sort_by_key(|name| &files[*name]);
    chosen.truncate(count);
    let more = (count - chosen.len()).min(others.len());
    chosen.extend((0..more).map(|number| others[number * others.len() / more]));
    chosen
}

/// Returns the modules of the package by name, with their paths.
fn modules_by_name(kernel: &Path) -> Result<BTreeMap<String, PathBuf>> {
    let named = |path: PathBuf| Some((path.file_stem()?.to_str()?.replace('-', "_"), path));
    Ok(Kernel::at(kernel).modules()?.into_iter().filter_map(named).collect())
}

/// Reads the catalog. A catalog needs one folder, so this makes a folder of symbolic links.
fn catalog(files: &BTreeMap<String, PathBuf>, scratch: &Path) -> Result<Catalog> {
    let folder = scratch.join("links");
    fs::create_dir_all(&folder)?;
    let there: BTreeSet<_> = fs::read_dir(&folder)?.filter_map(|entry| Some(entry.ok()?.file_name())).collect();
    for (name, path) in files {
        let link = format!("{name}.ko");
        if !there.contains(OsStr::new(&link)) {
            symlink(path, folder.join(link))?;
        }
    }
    Ok(Catalog::read(&folder)?)
}
