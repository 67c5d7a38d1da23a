//! Facts about another machine that affect a module's bytes, parsed from text.

use std::collections::HashMap;
use std::sync::Arc;

use modload_abi::section;
use modload_alternatives::{Facts, Features, Processors, Profile, Returns};
use modload_edit::Addr;
use modload_paravirt::{Operations, ParavirtOperation};
use thiserror::Error;

use crate::vocabulary::escape::escaped;
use crate::vocabulary::rewriting::Rewriting;

/// A line that cannot be read.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("line {line}: {problem}")]
pub struct MachineError {
    /// Which, from 1.
    pub line: usize,
    /// The problem of the line.
    pub problem: String,
}

fn at_line(line: usize, problem: impl Into<String>) -> MachineError {
    MachineError { line: line + 1, problem: problem.into() }
}

/// The symbols of a running kernel, as in `/proc/kallsyms`.
#[derive(Clone, Default, Debug)]
pub struct Kallsyms {
    /// All symbols of a name: address, scope, module (empty: the kernel).
    by_name: HashMap<Box<[u8]>, Vec<KnownSymbol>>,
}

#[derive(Clone, Debug)]
struct KnownSymbol {
    addr: Addr,
    scope: KernelScope,
    module: Box<[u8]>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum KernelScope {
    Local,
    Global,
}

impl Kallsyms {
    /// Reads lines of `HEXADDRESS TYPE NAME [MODULE]`.
    ///
    /// # Errors
    /// [`MachineError`]: the first line that does not have this form.
    pub fn parse(text: &[u8]) -> Result<Kallsyms, MachineError> {
        let mut symbols = Kallsyms::default();
        for (number, line) in text.split(|&byte| byte == b'\n').enumerate().filter(|(_, line)| !line.is_empty()) {
            let mut words = line.split(|byte| byte.is_ascii_whitespace()).filter(|word| !word.is_empty());
            let (Some(addr), Some(kind), Some(name)) = (words.next(), words.next(), words.next()) else {
                return Err(at_line(number, "expected HEXADDRESS TYPE NAME [MODULE]"));
            };
            let addr = hexadecimal(addr).ok_or_else(|| at_line(number, format!("{} is no address", escaped(addr))))?;
            let module = words.next().unwrap_or_default();
            let module = module.strip_prefix(b"[").and_then(|module| module.strip_suffix(b"]")).unwrap_or(module);
            let scope = if kind.iter().all(u8::is_ascii_uppercase) { KernelScope::Global } else { KernelScope::Local };
            symbols.by_name.entry(name.into()).or_default().push(KnownSymbol { addr, scope, module: module.into() });
        }
        Ok(symbols)
    }

    /// Returns, for each symbol with the prefix `from`, the address of the symbol and the address of the same owner's
    /// symbol with the prefix `to`. Several modules may have the same name.
    pub fn pairs<'s>(&'s self, from: &'s str, to: &'s str) -> impl Iterator<Item = (Addr, Addr)> + 's {
        let named = self.by_name.iter().filter_map(move |(name, all)| Some((name.strip_prefix(from.as_bytes())?, all)));
        let others =
            named.filter_map(move |(rest, all)| Some((all, self.by_name.get(&[to.as_bytes(), rest].concat()[..])?)));
        others.flat_map(|(all, others)| {
            let of = move |known: &KnownSymbol| {
                others.iter().find(|other| other.module == known.module).map(|other| other.addr)
            };
            all.iter().filter_map(move |known| Some((known.addr, of(known)?)))
        })
    }

    /// Returns the address to which a module's reference resolves: the symbol whose owner exports this name (by a
    /// `__ksymtab_NAME`), else a global symbol, else any.
    #[must_use]
    pub fn exported(&self, name: &[u8]) -> Option<Addr> {
        let all = self.by_name.get(name)?;
        let table = [b"__ksymtab_", name].concat();
        let owner = self.by_name.get(&table[..]).and_then(|tables| tables.first()).map(|table| &table.module);
        let of_owner = || all.iter().find(|known| Some(&known.module) == owner);
        let global = || all.iter().find(|known| known.scope == KernelScope::Global);
        of_owner().or_else(global).or_else(|| all.first()).map(|known| known.addr)
    }
}

/// A machine.
#[derive(Clone, Debug)]
pub struct Machine {
    pub(super) symbols: Arc<Kallsyms>,
    pub(super) rewriting: Rewriting,
}

impl Machine {
    /// A machine with these symbols and features; everything else is as compiled.
    #[must_use]
    pub fn new(symbols: Arc<Kallsyms>, features: Features) -> Machine {
        let address = |name: &str| symbols.exported(name.as_bytes());
        let facts = Facts {
            features,
            processors: Processors::Several,
            indirect_thunks: address("__x86_indirect_thunk_array"),
            returns: Returns {
                compiled: address(section::RETURN_THUNK_SYMBOL),
                thunk: address(section::RETURN_THUNK_SYMBOL),
                its: address("its_return_thunk"),
            },
        };
        let operations = Operations { base: address(section::PV_OPS_SYMBOL), ..Operations::default() };
        Machine {
            rewriting: Rewriting { facts, profile: Profile::Linux61, operations, host_operations: None },
            symbols,
        }
    }

    /// Returns the facts for rewriting.
    #[must_use]
    pub fn facts(&self) -> &Facts {
        &self.rewriting.facts
    }

    /// Returns the address of a word: `0x..`, 0, or a symbol.
    #[must_use]
    pub fn address(&self, word: &str) -> Option<Addr> {
        match word.strip_prefix("0x") {
            Some(digits) => hexadecimal(digits.as_bytes()),
            None if word == "0" => Some(Addr::NULL),
            None => self.symbols.exported(word.as_bytes()),
        }
    }

    /// Parses a fact, given as the words of a line: `smp 0|1`, `return_thunk TARGET` or `pv_op N TARGET`.
    ///
    /// # Errors
    /// A description of the problem.
    pub fn take_fact(&mut self, words: &[&str]) -> Result<(), String> {
        let address = |word: &str| self.address(word).ok_or_else(|| format!("there is no symbol {word:?}"));
        match *words {
            ["smp", "0"] => self.rewriting.facts.processors = Processors::One,
            ["smp", "1"] => self.rewriting.facts.processors = Processors::Several,
            ["return_thunk", target] => self.rewriting.facts.returns.thunk = Some(address(target)?),
            ["pv_op", op, target] => {
                let number = op.parse().map_err(|_| format!("{op:?} is no number of an operation"))?;
                let target = address(target)?;
                self.rewriting.operations.operations.insert(number, self.operation(target));
            }
            _ => return Err(format!("{:?} is no fact", words.join(" "))),
        }
        Ok(())
    }

    /// Returns Linux's replacement for a call through the `pv_ops` entry with this function.
    fn operation(&self, target: Addr) -> ParavirtOperation {
        if target == Addr::NULL {
            return self.symbols.exported(b"paravirt_BUG").map_or(ParavirtOperation::Leave, ParavirtOperation::Call);
        }
        match self.symbols.exported(b"_paravirt_nop") {
            Some(nop) if nop == target => ParavirtOperation::Nop,
            _ => ParavirtOperation::Call(target),
        }
    }
}

/// An address in hexadecimal digits, without 0x.
#[must_use]
pub fn hexadecimal(digits: &[u8]) -> Option<Addr> {
    let digits = std::str::from_utf8(digits).ok().filter(|digits| !digits.starts_with('+'))?;
    u64::from_str_radix(digits, 16).ok().map(Addr::new)
}
