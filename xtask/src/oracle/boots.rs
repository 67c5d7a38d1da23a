//! The machines that are booted, one per row. They differ in the way in which Linux rewrites modules for them.

use crate::Result;

/// One way to boot.
#[derive(Debug)]
pub(crate) struct Boot {
    pub(crate) name: &'static str,
    /// The name of QEMU's CPU model.
    pub(crate) cpu: &'static str,
    pub(crate) cpus: u8,
    /// Additional arguments of the kernel's command line.
    pub(crate) arguments: &'static str,
    /// A description of the machine.
    pub(crate) about: &'static str,
}

/// All machines.
pub(crate) const BOOTS: &[Boot] = &[
    Boot {
        name: "max",
        cpu: "max",
        cpus: 2,
        arguments: "",
        about: "every feature that QEMU has; retpolines, which are left as they were compiled, and plain returns",
    },
    Boot {
        name: "plain",
        cpu: "max",
        cpus: 2,
        arguments: "spectre_v2=off",
        about: "like max, with plain indirect branches",
    },
    Boot {
        name: "epyc-unret",
        cpu: "EPYC",
        cpus: 2,
        arguments: "retbleed=unret spec_rstack_overflow=off",
        about: "returns go through the thunk that untrained return prediction needs",
    },
    Boot {
        name: "epyc-lfence",
        cpu: "EPYC",
        cpus: 2,
        arguments: "spectre_v2=retpoline,lfence",
        about: "an LFENCE before each indirect branch, and the return thunk of \"safe RET\"",
    },
    Boot {
        name: "its",
        cpu: "Cascadelake-Server",
        cpus: 2,
        arguments: "indirect_target_selection=force",
        about: "returns in the lower half of a cache line go through a thunk; branches keep their retpolines",
    },
    Boot {
        name: "uniprocessor",
        cpu: "max",
        cpus: 1,
        arguments: "nosmp maxcpus=1 mitigations=off",
        about: "one CPU: lock prefixes are taken away, and nothing is mitigated",
    },
];

/// The machine for live patching. Log lines shall appear soon, and on one CPU only the requesting process runs.
pub(crate) const LIVE_PATCHING: Boot =
    Boot { name: "klp", cpu: "max", cpus: 1, arguments: "", about: "one CPU, on which live patches come and go" };

/// Returns the machine of this name.
pub(crate) fn named(name: &str) -> Result<&'static Boot> {
    let known = || BOOTS.iter().map(|boot| format!("\n  {}: {}", boot.name, boot.about)).collect::<String>();
    BOOTS
        .iter()
        .find(|boot| boot.name == name)
        .ok_or_else(|| format!("no such boot: {name}; there are{}", known()).into())
}
