//! What a host allows, and what it does about a module that breaks a rule: nothing, a warning, or a refusal.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Serialize, Serializer};

use crate::vocabulary::rewriting::Rewriting;

/// What is done about a module that breaks a rule.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Check {
    /// The rule is not looked at.
    Off,
    /// The module loads, with a warning and the taint F.
    Warn,
    /// The module is refused.
    Enforce,
}

/// The rules that have a policy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rule {
    /// A symbol's CRC is the one the module was built against (`__versions`, `__kcrctab`).
    Versions,
    /// `vermagic=` is the host's.
    Vermagic,
    /// A symbol of a namespace is used only by modules that import it.
    Namespaces,
    /// The licence is compatible with the GPL.
    License,
    /// The module's name is not on the blocklist.
    Blocklist,
}

impl Rule {
    /// Its name in timelines.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Rule::Versions => "versions",
            Rule::Vermagic => "vermagic",
            Rule::Namespaces => "namespaces",
            Rule::License => "license",
            Rule::Blocklist => "blocklist",
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Serialize for Rule {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// What came of a rule.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The module keeps it.
    Kept,
    /// The module breaks it and is loaded all the same.
    Warned,
    /// The module breaks it and is not loaded.
    Refused,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Verdict::Kept => "kept",
            Verdict::Warned => "warned",
            Verdict::Refused => "refused",
        })
    }
}

/// Which symbols of a module others may use.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Exports {
    /// Those it exports: `EXPORT_SYMBOL`.
    #[default]
    Declared,
    /// If it declares none: all its global functions, variables and numbers that are not hidden.
    GlobalsOfPlainObjects,
}

/// What a host allows and how it reports. Why the defaults are what they are stands in ARCHITECTURE.md.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Which symbols of modules others may use.
    pub exports: Exports,
    /// The largest size of a module in memory, in bytes.
    pub size_limit: u64,
    /// The file descriptor that takes the report of a call into text that is not there.
    pub trap_descriptor: i32,
    /// [`Rule::Versions`].
    pub versions: Check,
    /// [`Rule::Vermagic`], if there is one to compare with.
    pub vermagic: Check,
    /// What `vermagic=` must be.
    pub expected_vermagic: Option<String>,
    /// [`Rule::Namespaces`].
    pub namespaces: Check,
    /// [`Rule::License`]. Symbols that are exported for GPL-compatible modules only are kept from others in any case.
    pub license: Check,
    /// [`Rule::Blocklist`].
    pub blocklist: Check,
    /// Names of modules that are not wanted.
    pub blocked: BTreeSet<String>,
    /// Whether modules that are held may be unloaded.
    pub forced_unload: ForcedUnload,
    /// How it is known that nobody is in a module's code when it goes.
    pub proof: Proof,
    /// What code is made for.
    pub rewriting: Rewriting,
}

/// How it is known that nobody is in a module's code when it goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Proof {
    /// By every thread's stack.
    Stacks,
    /// By whoever vouches for the images.
    Promise,
}

/// Linux's `CONFIG_MODULE_FORCE_UNLOAD`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ForcedUnload {
    /// What is held stays.
    Refused,
    /// What is held can be unloaded by force.
    Allowed,
}

impl Default for Policy {
    fn default() -> Policy {
        Policy {
            exports: Exports::Declared,
            size_limit: 1 << 30,
            trap_descriptor: 2,
            versions: Check::Enforce,
            vermagic: Check::Enforce,
            expected_vermagic: None,
            namespaces: Check::Enforce,
            license: Check::Off,
            blocklist: Check::Enforce,
            blocked: BTreeSet::new(),
            forced_unload: ForcedUnload::Refused,
            proof: Proof::Stacks,
            rewriting: Rewriting::default(),
        }
    }
}

impl Policy {
    /// What is done about a rule.
    #[must_use]
    pub fn check(&self, rule: Rule) -> Check {
        match rule {
            Rule::Versions => self.versions,
            Rule::Vermagic => self.vermagic,
            Rule::Namespaces => self.namespaces,
            Rule::License => self.license,
            Rule::Blocklist => self.blocklist,
        }
    }

    /// Where a rule's check stands.
    pub fn check_mut(&mut self, rule: Rule) -> &mut Check {
        match rule {
            Rule::Versions => &mut self.versions,
            Rule::Vermagic => &mut self.vermagic,
            Rule::Namespaces => &mut self.namespaces,
            Rule::License => &mut self.license,
            Rule::Blocklist => &mut self.blocklist,
        }
    }
}
