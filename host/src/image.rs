//! The bytes of a module in the memory of another machine, a Linux kernel for example, computed here.
//!
//! ```
//! use std::collections::HashMap;
//! use std::sync::Arc;
//!
//! use modload::Features;
//! use modload::image::{Kallsyms, TargetMachine};
//! use modload::text::Addr;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // The symbols of the other machine, in the form of /proc/kallsyms.
//! let symbols = Kallsyms::parse(b"ffffffff81000000 T printed\n")?;
//! let machine = TargetMachine::new(Arc::new(symbols), Features::NONE);
//!
//! // `object` is the compiled form of: int printed(void); int call(void) { return printed() + 1; }
//! # let object = modload_fixtures::c_object("int printed(void); int call(void) { return printed() + 1; }")?;
//! let names = [".text", ".data", ".bss", ".rodata", ".eh_frame", "__patchable_function_entries"];
//! let addresses = (0_u64..).zip(names).map(|(n, name)| (name.to_owned(), Addr::new(0xffff_ffff_a000_0000 + n * 4096)));
//! let image = machine.image(&object, &addresses.collect::<HashMap<_, _>>(), |_| ())?;
//! let text = image.sections.iter().find(|section| section.name == ".text").ok_or("no text")?;
//! assert!(!text.bytes.is_empty());
//! # Ok(())
//! # }
//! ```

use std::collections::HashMap;
use std::sync::Arc;

use modload_abi::section;
use modload_alternatives::Features;
use modload_edit::{Addr, EditOrigin, Engine};
use modload_loader::{Machine, PrepareError, hexadecimal};
use modload_static_keys::{self as static_keys, CallTarget, KeyState, StaticCalls};

pub use modload_alternatives::{Facts, Processors, Returns};
pub use modload_edit::{CodeBuffers, Ledger};
pub use modload_loader::{
    ImageComing, ImageSection, Kallsyms, Machine as MachineFacts, MachineError, MemoryImage, Placement,
};

use crate::file::SIZE_LIMIT;

/// A machine, described by its symbols, its features and further facts on which a module's bytes depend. Cheap to
/// clone.
#[derive(Clone, Debug)]
pub struct TargetMachine {
    machine: Machine,
    keys: HashMap<Addr, KeyState>,
    calls: HashMap<Addr, CallTarget>,
    /// The key of each trampoline. A module that must not name the key names its trampoline instead, and Linux looks
    /// the key up (`tramp_key_lookup`).
    keys_of_trampolines: Arc<HashMap<Addr, Addr>>,
    return0: Option<Addr>,
    percpu: Option<Addr>,
}

impl TargetMachine {
    /// Makes a machine with these symbols and features. Everything else stays as compiled.
    #[must_use]
    pub fn new(symbols: Arc<Kallsyms>, features: Features) -> TargetMachine {
        let pairs = symbols.pairs(section::STATIC_CALL_TRAMPOLINE_PREFIX, section::STATIC_CALL_KEY_PREFIX);
        let keys_of_trampolines = Arc::new(pairs.collect());
        let machine = Machine::new(symbols, features);
        let return0 = machine.address("__static_call_return0");
        TargetMachine {
            machine,
            keys: HashMap::new(),
            calls: HashMap::new(),
            keys_of_trampolines,
            return0,
            percpu: None,
        }
    }

    /// Adds further facts, one per line: `percpu HEX`, `smp 0|1`, `static_call KEY TARGET` (0: NULL), `static_key KEY
    /// 0|1`, `return_thunk TARGET`, `pv_op N TARGET`. KEY and TARGET are symbols or 0x addresses. A static call's
    /// trampoline may be given instead of its key. Without a fact, code stays as compiled.
    ///
    /// # Errors
    /// [`MachineError`]: the first line of another form.
    pub fn take_facts(&mut self, text: &str) -> Result<(), MachineError> {
        for (number, line) in text.lines().enumerate() {
            let words: Vec<&str> = line.split_whitespace().collect();
            if words.first().is_none_or(|word| word.starts_with('#')) {
                continue;
            }
            let taken = self.take_fact(&words);
            taken.map_err(|problem| MachineError { line: number + 1, problem })?;
        }
        Ok(())
    }

    fn take_fact(&mut self, words: &[&str]) -> Result<(), String> {
        let address = |word: &str| self.machine.address(word).ok_or_else(|| format!("there is no symbol {word:?}"));
        match *words {
            ["percpu", at] => {
                let at = hexadecimal(at.strip_prefix("0x").unwrap_or(at).as_bytes());
                self.percpu = Some(at.ok_or("percpu takes an address")?);
            }
            ["static_key", key, state] => {
                let state = match state {
                    "0" => KeyState::Disabled,
                    "1" => KeyState::Enabled,
                    _ => return Err("a static key is 0 or 1".into()),
                };
                self.keys.insert(address(key)?, state);
            }
            ["static_call", key, target] => {
                let target = match address(target)? {
                    Addr::NULL => CallTarget::Null,
                    function => CallTarget::Function(function),
                };
                let key = address(key)?;
                let key = self.keys_of_trampolines.get(&key).copied().unwrap_or(key);
                self.calls.insert(key, target);
            }
            _ => self.machine.take_fact(words)?,
        }
        Ok(())
    }

    /// Returns the sections of a module in the memory of this machine. `addresses` gives the addresses of the sections
    /// by name. `share` is called with the name of each part of the work after it is done.
    ///
    /// # Errors
    /// [`PrepareError`]: the file is malformed, a symbol or an address is missing, or a stage has failed.
    pub fn image(
        &self,
        bytes: &[u8],
        addresses: &HashMap<String, Addr>,
        share: impl FnMut(&'static str),
    ) -> Result<MemoryImage, PrepareError> {
        let coming = |module: &mut ImageComing<'_, '_>| self.coming(module);
        MemoryImage::of(&self.placement(bytes, addresses), &self.machine, coming, share)
    }

    /// Returns the sections after relocation, before any code is rewritten or any table is sorted.
    ///
    /// # Errors
    /// [`PrepareError`]: the file is malformed, a symbol or an address is missing, or a relocation has failed.
    pub fn relocated(&self, bytes: &[u8], addresses: &HashMap<String, Addr>) -> Result<MemoryImage, PrepareError> {
        MemoryImage::relocated(&self.placement(bytes, addresses), &self.machine)
    }

    fn placement<'a>(&self, bytes: &'a [u8], addresses: &'a HashMap<String, Addr>) -> Placement<'a> {
        Placement { bytes, addresses, percpu: self.percpu, size_limit: SIZE_LIMIT }
    }

    /// Does the work of the subscriber of static keys and static calls for a COMING module.
    fn coming(&self, module: &mut ImageComing<'_, '_>) -> Result<(), PrepareError> {
        if let Some(table) = module.table(section::JUMP_TABLE) {
            let state = |key| self.keys.get(&key).copied().unwrap_or(KeyState::Unknown);
            static_keys::jump_labels(&table, state, module.code)
                .map_err(|error| refused(section::JUMP_TABLE, error))?;
        }
        let calls = StaticCalls { facts: self.machine.facts(), return0: self.return0 };
        let keys: HashMap<Vec<u8>, Addr> = module.symbols(section::STATIC_CALL_KEY_PREFIX).into_iter().collect();
        let trampolines = module.symbols(section::STATIC_CALL_TRAMPOLINE_PREFIX);
        let own = trampolines.iter().filter_map(|(name, at)| Some((*at, *keys.get(name)?)));
        let own: HashMap<Addr, Addr> = own.collect();
        // A fact about the key also applies to sites that name its trampoline.
        let target = |key: Addr| {
            let of_trampoline = || own.get(&key).or_else(|| self.keys_of_trampolines.get(&key));
            let said = self.calls.get(&key).or_else(|| self.calls.get(of_trampoline()?));
            said.copied().unwrap_or(CallTarget::Unknown)
        };
        if let Some(table) = module.table(section::STATIC_CALL_SITES) {
            static_keys::static_calls(&table, calls, target, module.code)
                .map_err(|error| refused(section::STATIC_CALL_SITES, error))?;
        }
        // The module's own trampolines jump to the targets of their keys.
        for (record, (name, at)) in (0..).zip(trampolines) {
            let Some(key) = keys.get(&name) else { continue };
            let why = EditOrigin { engine: Engine::StaticCall, section: module.symbol_table(), record };
            static_keys::trampoline(at, target(*key), calls, why, module.code)
                .map_err(|error| refused(section::STATIC_CALL_TEXT, error))?;
        }
        Ok(())
    }
}

/// Makes the error for a record that cannot be applied.
fn refused(section: &'static str, error: impl std::error::Error + Send + Sync + 'static) -> PrepareError {
    PrepareError::Rewrite { section, error: Box::new(error) }
}
