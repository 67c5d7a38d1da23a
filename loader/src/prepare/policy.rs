//! The rules of a host, and the consequence of breaking a rule: nothing, a warning, or a refusal.

use std::collections::BTreeSet;
use std::fmt;

#[cfg(feature = "serde")]
use serde::{Serialize, Serializer};

use crate::vocabulary::rewriting::Rewriting;

/// The consequence for a module that breaks a rule.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Check {
    /// The rule is not checked.
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
    /// A symbol of a namespace is used only by modules that import that namespace.
    Namespaces,
    /// The licence is compatible with the GPL.
    License,
    /// The module's name is not on the blocklist.
    Blocklist,
}

impl Rule {
    /// All rules.
    pub const ALL: [Rule; 5] = [Rule::Versions, Rule::Vermagic, Rule::Namespaces, Rule::License, Rule::Blocklist];

    /// Name of the rule in timelines.
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

#[cfg(feature = "serde")]
impl Serialize for Rule {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// The result of a check.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum Verdict {
    /// The module keeps the rule.
    Kept,
    /// The module breaks the rule and is loaded anyway.
    Warned,
    /// The module breaks the rule and is not loaded.
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
    /// The symbols that the module exports: `EXPORT_SYMBOL`.
    #[default]
    Declared,
    /// If the module exports none: all global functions, variables and numbers that are not hidden.
    GlobalsOfPlainObjects,
}

/// The policy of a host. ARCHITECTURE.md gives the reasons for the defaults.
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
    /// The required `vermagic=`.
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
    /// The proof that no thread is in a module's code when the module is freed.
    pub proof: Proof,
    /// The target of code rewriting.
    pub rewriting: Rewriting,
}

/// A proof that no thread is in a module's code when the module is freed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Proof {
    /// By every thread's stack.
    Stacks,
    /// By a promise of the author of the images.
    Promise,
}

/// Linux's `CONFIG_MODULE_FORCE_UNLOAD`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ForcedUnload {
    /// A held module stays.
    Refused,
    /// A held module can be unloaded by force.
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
    /// Returns the check of a rule.
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

    /// Returns the check of a rule, to be changed.
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

#[cfg(test)]
mod tests {
    use super::{Policy, Rule};

    #[test]
    fn each_rule_is_listed_and_documented_with_its_default() {
        let source = include_str!("policy.rs").split("pub enum Rule {").nth(1).unwrap();
        let variants = source.lines().take_while(|line| *line != "}").filter(|line| line.ends_with(','));
        assert_eq!(variants.count(), Rule::ALL.len());
        let decisions = include_str!("../../../docs/decisions.md");
        for rule in Rule::ALL {
            let default = format!("{:?}", Policy::default().check(rule)).to_lowercase();
            assert!(decisions.contains(&format!("\n| {rule} | {default} | ")), "{rule}: {default}");
        }
    }
}
