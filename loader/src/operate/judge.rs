//! The rules of the host's policy, applied to one module.

use std::borrow::Cow;
use std::cell::Cell;

use modload_abi::{Records, Version, modinfo, section};

use crate::elf::error::ObjectError;
use crate::elf::file::File;
use crate::elf::modinfo::Modinfo;
use crate::modules::recorder::Recorder;
use crate::modules::timeline::EventKind;
use crate::operate::error::Error;
use crate::prepare::policy::{Check, Policy, Rule, Verdict};
use crate::vocabulary::escape::escaped;
use crate::vocabulary::sentence::sentence;

/// A symbol that a module wants to use, as described by the exporter.
pub(crate) struct WantedUse<'a> {
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
    /// Whether a broken rule was allowed.
    forced: Cell<bool>,
}

impl<'a> Judge<'a> {
    pub(crate) fn new(policy: &'a Policy, file: &File<'a>, info: &'a Modinfo<'a>) -> Result<Judge<'a>, ObjectError> {
        let bad = |_| ObjectError::BadRecord {
            section: section::VERSIONS,
            record: 0,
            problem: "its size is no multiple of 64",
        };
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
    pub(crate) fn symbol(&self, recorder: Recorder<'_>, wanted: &WantedUse<'_>) -> Result<(), Error> {
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

    /// Applies a rule, unless the check is off. `broken` returns how the module breaks the rule.
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
        let reason = sentence(&error);
        recorder.record(|| EventKind::Policy { rule, verdict, reason: Some(reason.clone()) });
        if verdict == Verdict::Refused {
            return Err(error);
        }
        self.forced.set(true);
        recorder.warn(reason);
        Ok(())
    }

    /// Returns the taint letters of the module, as in Linux: P for a licence that is not compatible with the GPL, F for
    /// a broken rule that was allowed, K for a live patch.
    pub(crate) fn taint(&self) -> String {
        let info = self.info;
        let letters = [('P', !info.is_gpl_compatible()), ('F', self.forced.get()), ('K', info.is_live_patch())];
        letters.into_iter().filter(|(_, set)| *set).map(|(letter, _)| letter).collect()
    }
}
