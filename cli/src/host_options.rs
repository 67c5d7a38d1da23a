//! The options of the hosts that these commands create.

use std::ffi::OsString;

use modload::error::UnknownFeature;
use modload::{Check, Features, Host, HostBuilder, Rule};

use crate::failure::CommandFailure;

/// The options of a host inside this process.
#[derive(clap::Args, Debug)]
pub(crate) struct HostOptions {
    /// Let modules use all global symbols of objects that declare no exports.
    #[arg(long)]
    export_globals: bool,

    /// Do not offer the symbols of this process (libc, libm) to modules.
    #[arg(long)]
    no_process_symbols: bool,

    /// Open a shared library and offer its symbols to modules, for example libstdc++.so.6. It is found as dlopen(3)
    /// finds it, and stays open. May be repeated.
    #[arg(long, value_name = "LIBRARY")]
    library: Vec<OsString>,

    /// How to treat modules that break a rule. RULE is versions, vermagic, namespaces, license or blocklist. CHECK is
    /// off, warn or enforce. May be repeated.
    #[arg(long, value_name = "RULE=CHECK", value_parser = policy)]
    policy: Vec<(Rule, Check)>,

    /// The vermagic that every module must have.
    #[arg(long, value_name = "TEXT")]
    vermagic: Option<String>,

    /// Refuse a module of this name. May be repeated.
    #[arg(long, value_name = "NAME")]
    block: Vec<String>,

    /// Adapt the code of modules to these processor features (names of Linux's cpufeatures.h, separated by commas)
    /// instead of all features of this machine. The machine must have them.
    #[arg(long, value_name = "FEATURES", value_parser = cpu)]
    cpu: Option<Box<Features>>,

    /// Tell gdb about each module: names, lines, breakpoints.
    #[arg(long)]
    gdb: bool,

    /// Write the functions of modules for perf report to /tmp/perf-PID.map.
    #[arg(long)]
    perf_map: bool,
}

impl HostOptions {
    /// Returns the libraries to open.
    pub(crate) fn libraries(&self) -> &[OsString] {
        &self.library
    }

    /// Returns a builder of a host with these options, except the libraries: [`crate::run::builder`] opens them.
    pub(crate) fn builder(&self) -> Result<HostBuilder, CommandFailure> {
        let mut builder = Host::builder().linux_operations();
        if !self.no_process_symbols {
            builder = builder.process_symbols();
        }
        if self.export_globals {
            builder = builder.export_globals();
        }
        if self.gdb {
            builder = builder.debugger();
        }
        if self.perf_map {
            builder = builder.perf_map()?;
        }
        builder = self.policy.iter().fold(builder, |builder, &(rule, check)| builder.policy(rule, check));
        builder = self.block.iter().fold(builder, HostBuilder::block);
        if let Some(vermagic) = &self.vermagic {
            builder = builder.vermagic(vermagic);
        }
        match &self.cpu {
            Some(features) => Ok(builder.cpu(**features)?),
            None => Ok(builder),
        }
    }

    /// Returns the first option that was given.
    pub(crate) fn given(&self) -> Option<&'static str> {
        let given = [
            (self.export_globals, "--export-globals"),
            (self.no_process_symbols, "--no-process-symbols"),
            (!self.library.is_empty(), "--library"),
            (!self.policy.is_empty(), "--policy"),
            (self.vermagic.is_some(), "--vermagic"),
            (!self.block.is_empty(), "--block"),
            (self.cpu.is_some(), "--cpu"),
            (self.gdb, "--gdb"),
            (self.perf_map, "--perf-map"),
        ];
        given.into_iter().find(|(given, _)| *given).map(|(_, name)| name)
    }
}

fn cpu(names: &str) -> Result<Box<Features>, UnknownFeature> {
    Features::named(names).map(Box::new)
}

/// Returns the names of all rules, as a part of a sentence.
fn rules() -> String {
    let [names @ .., last] = &Rule::ALL.map(Rule::name);
    format!("{} or {last}", names.join(", "))
}

/// Parses `RULE=CHECK`.
fn policy(text: &str) -> Result<(Rule, Check), String> {
    let (rule, check) = text.split_once('=').ok_or("a policy has the form RULE=CHECK")?;
    let known = Rule::ALL.into_iter().find(|known| known.name() == rule);
    let rule = known.ok_or_else(|| format!("\"{rule}\" is not a rule: use {}", rules()))?;
    let check = match check {
        "off" => Check::Off,
        "warn" => Check::Warn,
        "enforce" => Check::Enforce,
        other => return Err(format!("\"{other}\" is not a check: use off, warn or enforce")),
    };
    Ok((rule, check))
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_help_names_all_rules() {
        let [modload, ..] = crate::commands();
        let policy = modload.get_arguments().find(|argument| argument.get_id() == "policy").unwrap();
        let help = policy.get_help().unwrap().to_string();
        assert!(help.contains(&format!("RULE is {}.", super::rules())), "{help}");
    }
}
