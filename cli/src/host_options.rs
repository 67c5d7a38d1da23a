//! What the hosts that these commands make offer and allow.

use modload::error::UnknownFeature;
use modload::{Check, Features, Host, HostBuilder, Rule};

use crate::failure::Failure;

/// What a host that this program makes offers and allows.
#[derive(clap::Args, Debug)]
pub(crate) struct HostOptions {
    /// Let modules use all global symbols of objects that declare no exports.
    #[arg(long)]
    export_globals: bool,

    /// Do not offer the process's own symbols (libc, libm) to modules.
    #[arg(long)]
    no_process_symbols: bool,

    /// What to do about modules that break a rule. RULE is versions, vermagic, namespaces, license or blocklist, CHECK
    /// is off, warn or enforce. May be repeated.
    #[arg(long, value_name = "RULE=CHECK", value_parser = policy)]
    policy: Vec<(Rule, Check)>,

    /// What a module's vermagic must be.
    #[arg(long, value_name = "TEXT")]
    vermagic: Option<String>,

    /// A module that must not be loaded. May be repeated.
    #[arg(long, value_name = "NAME")]
    block: Vec<String>,

    /// Make modules' code for these processor features (names of Linux's cpufeatures.h, separated by commas) instead of
    /// all that this machine has. It must have them.
    #[arg(long, value_name = "FEATURES", value_parser = cpu)]
    cpu: Option<Box<Features>>,

    /// Tell gdb of each module: names, lines, breakpoints.
    #[arg(long)]
    gdb: bool,

    /// Write modules' functions down for perf report, into /tmp/perf-PID.map.
    #[arg(long)]
    perf_map: bool,
}

impl HostOptions {
    /// A host as they say.
    pub(crate) fn builder(&self) -> Result<HostBuilder, Failure> {
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

    /// The first one that was given.
    pub(crate) fn given(&self) -> Option<&'static str> {
        let given = [
            (self.export_globals, "--export-globals"),
            (self.no_process_symbols, "--no-process-symbols"),
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

/// Parses `RULE=CHECK`.
fn policy(text: &str) -> Result<(Rule, Check), String> {
    const RULES: [Rule; 5] = [Rule::Versions, Rule::Vermagic, Rule::Namespaces, Rule::License, Rule::Blocklist];
    let (rule, check) = text.split_once('=').ok_or("a policy is RULE=CHECK")?;
    let known = RULES.into_iter().find(|known| known.name() == rule);
    let rule = known.ok_or_else(|| {
        format!("\"{rule}\" is none of the rules versions, vermagic, namespaces, license and blocklist")
    })?;
    let check = match check {
        "off" => Check::Off,
        "warn" => Check::Warn,
        "enforce" => Check::Enforce,
        other => return Err(format!("\"{other}\" is none of off, warn and enforce")),
    };
    Ok((rule, check))
}
