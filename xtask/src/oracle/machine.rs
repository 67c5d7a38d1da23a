//! The facts on which the bytes of every module depend: the state of the kernel that loaded them.

use super::btf::{Btf, BtfMember};
use super::dump::KernelMemory;
use super::facts::target_word;
use super::symbols::GuestSymbols;
use crate::Result;

/// The state of a kernel.
#[derive(Debug)]
pub(crate) struct KernelState {
    /// `boot_cpu_data.x86_capability`: features, then bugs.
    pub(crate) capabilities: Vec<u32>,
    /// Whether lock prefixes are unchanged.
    pub(crate) is_smp: bool,
    /// The value of the variable `x86_return_thunk`.
    pub(crate) return_thunk: u64,
    /// The slots of `pv_ops`.
    pub(crate) pv_ops: Vec<u64>,
}

impl KernelState {
    pub(crate) fn read(memory: &KernelMemory, symbols: &GuestSymbols<'_>) -> Result<KernelState> {
        let (start, end) = (symbols.kernel("__start_BTF")?, symbols.kernel("__stop_BTF")?);
        let btf = Btf::parse(memory.bytes(start, end - start).ok_or("the dump has no BTF")?)?;
        let missing = |name: &'static str| move || format!("the dump has no {name}");

        let BtfMember { offset, elements } = btf.member("cpuinfo_x86", "x86_capability")?;
        let words = elements.ok_or("x86_capability is no array")?;
        let first = symbols.kernel("boot_cpu_data")? + offset;
        let capabilities = (0..words).map(|word| memory.u32_at(first + u64::from(word) * 4));
        let capabilities = capabilities.collect::<Option<_>>().ok_or_else(missing("boot_cpu_data"))?;

        let (first, slots) = (symbols.kernel("pv_ops")?, btf.size("paravirt_patch_template")? / 8);
        let pv_ops = (0..slots).map(|slot| memory.u64_at(first + slot * 8)).collect::<Option<_>>();

        let is_uniprocessor =
            memory.bytes(symbols.kernel("uniproc_patched")?, 1).ok_or_else(missing("uniproc_patched"))?;
        let return_thunk =
            memory.u64_at(symbols.kernel("x86_return_thunk")?).ok_or_else(missing("x86_return_thunk"))?;
        let pv_ops = pv_ops.ok_or_else(missing("pv_ops"))?;
        Ok(KernelState { capabilities, is_smp: is_uniprocessor == [0], return_thunk, pv_ops })
    }

    /// Returns the capabilities in the format of `modhost image --cpu-caps`.
    pub(crate) fn caps_file(&self) -> String {
        self.capabilities.iter().map(|word| format!("{word:08x}\n")).collect()
    }

    /// Returns the facts for every module, in the format of `modhost image --facts`.
    pub(crate) fn facts_file(&self) -> String {
        let mut text = format!("smp {}\nreturn_thunk {:#x}\n", u8::from(self.is_smp), self.return_thunk);
        for (slot, target) in self.pv_ops.iter().enumerate() {
            text.push_str(&format!("pv_op {slot} {}\n", target_word(*target)));
        }
        text
    }

    /// Returns a line that characterises the boot.
    pub(crate) fn summary(&self, symbols: &GuestSymbols<'_>) -> String {
        let thunk = symbols.name_at(self.return_thunk).unwrap_or("somewhere without a name");
        let cpus = if self.is_smp { "lock prefixes kept" } else { "lock prefixes taken away" };
        format!(
            "return thunk {thunk}, {cpus}, {} capability words, {} pv_ops",
            self.capabilities.len(),
            self.pv_ops.len()
        )
    }

    /// Returns the names of the set features, from the kernel's own tables, as /proc/cpuinfo prints them. This shows
    /// that the words are the right ones.
    pub(crate) fn names(
        &self,
        memory: &KernelMemory,
        symbols: &GuestSymbols<'_>,
    ) -> Result<(Vec<String>, Vec<String>)> {
        let (flags, bugs) = (symbols.kernel("x86_cap_flags")?, symbols.kernel("x86_bug_flags")?);
        // The last two words hold bugs.
        let features = self.capabilities.len() - 2;
        let (first, last) = self.capabilities.split_at(features);
        Ok((names_of(first, memory, flags), names_of(last, memory, bugs)))
    }
}

/// Returns the names of the set bits. `table` is a table of pointers to strings, with NULL for a bit without a name.
fn names_of(words: &[u32], memory: &KernelMemory, table: u64) -> Vec<String> {
    let bits = words.iter().flat_map(|word| (0..32).map(move |bit| word >> bit & 1 == 1));
    let set = bits.zip(0_u64..).filter(|(is_set, _)| *is_set);
    let names = set.filter_map(|(_, bit)| memory.string_at(memory.u64_at(table + bit * 8).filter(|it| *it != 0)?));
    names.collect()
}
