//! What a host allows, and what it does about a module that breaks a rule: nothing, a warning, or a refusal.

use std::borrow::Cow;
use std::cell::Cell;
use std::collections::BTreeSet;
use std::fmt;

use modload_abi::{Records, Version, modinfo, section};
use serde::{Serialize, Serializer};

use crate::elf::file::File;
use crate::elf::modinfo::Modinfo;
use crate::modules::timeline::{EventKind, Recorder};
use crate::vocabulary::error::Error;
use crate::vocabulary::escape::escaped;
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

/// A symbol that a module wants to use, with what its owner says of it.
pub(crate) struct Wanted<'a> {
    pub(crate) symbol: &'a [u8],
    pub(crate) owner: &'a str,
    pub(crate) gpl_only: bool,
    pub(crate) namespace: &'a [u8],
    pub(crate) crc: Option<u32>,
}

/// Judges one module.
pub(crate) struct Judge<'a> {
    policy: &'a Policy,
    info: &'a Modinfo<'a>,
    versions: Cow<'a, [u8]>,
    /// Whether a rule was broken and the module is loaded all the same.
    forced: Cell<bool>,
}

impl<'a> Judge<'a> {
    pub(crate) fn new(policy: &'a Policy, file: &File<'a>, info: &'a Modinfo<'a>) -> Result<Judge<'a>, Error> {
        let bad =
            |_| Error::BadRecord { section: section::VERSIONS, record: 0, problem: "its size is no multiple of 64" };
        let versions = file.contents(section::VERSIONS);
        Records::<Version>::new(&versions).map_err(bad)?;
        Ok(Judge { policy, info, versions, forced: Cell::new(false) })
    }

    /// The rules that concern the module as a whole.
    pub(crate) fn module(&self, recorder: Recorder<'_>) -> Result<(), Error> {
        if !self.policy.blocked.is_empty() {
            let is_blocked = self.policy.blocked.iter().any(|name| modinfo::is_same_name(name, &self.info.name));
            let blocked = || is_blocked.then_some(Error::Blocked);
            self.rule(recorder, Rule::Blocklist, blocked)?;
        }
        if let Some(expected) = &self.policy.expected_vermagic {
            let vermagic = self.info.vermagic();
            let error = || Error::Vermagic {
                found: vermagic.map_or_else(|| "none".into(), |found| format!("\"{}\"", escaped(found))),
                expected: expected.clone(),
            };
            self.rule(recorder, Rule::Vermagic, || (vermagic != Some(expected.as_bytes())).then(error))?;
        }
        let error = || Error::License { license: self.info.license_for_people() };
        self.rule(recorder, Rule::License, || (!self.info.is_gpl_compatible()).then(error))
    }

    /// The rules that concern the use of one symbol.
    pub(crate) fn symbol(&self, recorder: Recorder<'_>, wanted: &Wanted<'_>) -> Result<(), Error> {
        let symbol = || escaped(wanted.symbol);
        let owner = || wanted.owner.to_owned();
        if wanted.gpl_only && !self.info.is_gpl_compatible() {
            let license = self.info.license_for_people();
            return Err(Error::GplOnly { symbol: symbol(), owner: owner(), license });
        }
        if !wanted.namespace.is_empty() {
            let error = || Error::Namespace { symbol: symbol(), owner: owner(), namespace: escaped(wanted.namespace) };
            self.rule(recorder, Rule::Namespaces, || (!self.info.imports(wanted.namespace)).then(error))?;
        }
        if let Some(exported) = wanted.crc {
            let version = || {
                let built_against = self.built_against(wanted.symbol);
                let error = || Error::Version { symbol: symbol(), owner: owner(), exported, built_against };
                (built_against != Some(exported.into())).then(error)
            };
            self.rule(recorder, Rule::Versions, version)?;
        }
        Ok(())
    }

    /// The CRC of a symbol in the module's `__versions`.
    fn built_against(&self, symbol: &[u8]) -> Option<u64> {
        let mut versions = Records::<Version>::new(&self.versions).into_iter().flat_map(|versions| versions.iter());
        versions.find(|version| version.is_for(symbol)).map(|version| version.crc)
    }

    /// Looks at a rule, unless its check is off: `broken` says how the module breaks it.
    fn rule(&self, recorder: Recorder<'_>, rule: Rule, broken: impl FnOnce() -> Option<Error>) -> Result<(), Error> {
        let check = self.policy.check(rule);
        if check == Check::Off {
            return Ok(());
        }
        let Some(error) = broken() else {
            recorder.record(|| EventKind::Policy { rule, verdict: Verdict::Kept, reason: None });
            return Ok(());
        };
        let verdict = if check == Check::Warn { Verdict::Warned } else { Verdict::Refused };
        let reason = error.to_string();
        recorder.record(|| EventKind::Policy { rule, verdict, reason: Some(reason.clone()) });
        if verdict == Verdict::Refused {
            return Err(error);
        }
        self.forced.set(true);
        recorder.warn(reason);
        Ok(())
    }

    /// What the module taints its host with, in Linux's letters: P for a licence that is not compatible with the GPL,
    /// F for a rule that was broken and let pass, K for a live patch.
    pub(crate) fn taint(&self) -> String {
        let info = self.info;
        let letters = [('P', !info.is_gpl_compatible()), ('F', self.forced.get()), ('K', info.is_live_patch())];
        letters.into_iter().filter(|(_, set)| *set).map(|(letter, _)| letter).collect()
    }
}
