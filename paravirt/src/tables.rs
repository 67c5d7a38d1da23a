//! Linux 6.1's operations, numbered as by a kernel with `CONFIG_PARAVIRT_XXL`, and two tables for them: how Linux
//! rewrites the calls on bare metal, and how this loader rewrites them for a process.

use std::collections::BTreeMap;

use modload_edit::Addr;

use crate::{Operations, ParavirtOperation, x86_64};

/// An operation on bare metal, without a hypervisor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Native {
    /// The operation does nothing.
    Nop,
    /// The operation returns its argument.
    Identity,
    /// The operation is this function.
    Function(&'static str),
}

/// An operation in a process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum User {
    /// The operation does nothing.
    Nop,
    /// The operation is these instructions.
    Code(&'static [u8]),
    /// The operation has no equivalent in user space.
    Nothing,
}

use Native::{Function, Identity, Nop};

/// An operation of Linux.
struct OperationRow {
    /// The name as a member of Linux's `struct paravirt_patch_template`.
    name: &'static str,
    native: Native,
    user: User,
}

const fn row(name: &'static str, native: Native, user: User) -> OperationRow {
    OperationRow { name, native, user }
}

const IDENTITY: User = User::Code(x86_64::IDENTITY);
const STORE: User = User::Code(x86_64::STORE);
const FLAGS: User = User::Code(x86_64::FLAGS);
const ZERO: User = User::Code(x86_64::ZERO);
const PAUSE: User = User::Code(x86_64::PAUSE);
const UNLOCK: User = User::Code(x86_64::UNLOCK);

/// The operations by number.
#[rustfmt::skip]
const ROWS: &[OperationRow] = &[
    row("cpu.io_delay", Function("native_io_delay"), User::Nop),
    row("cpu.get_debugreg", Function("pv_native_get_debugreg"), User::Nothing),
    row("cpu.set_debugreg", Function("pv_native_set_debugreg"), User::Nothing),
    row("cpu.read_cr0", Function("native_read_cr0"), User::Nothing),
    row("cpu.write_cr0", Function("native_write_cr0"), User::Nothing),
    row("cpu.write_cr4", Function("native_write_cr4"), User::Nothing),
    row("cpu.load_tr_desc", Function("native_load_tr_desc"), User::Nothing),
    row("cpu.load_gdt", Function("native_load_gdt"), User::Nothing),
    row("cpu.load_idt", Function("native_load_idt"), User::Nothing),
    row("cpu.set_ldt", Function("native_set_ldt"), User::Nothing),
    row("cpu.store_tr", Function("native_store_tr"), User::Nothing),
    row("cpu.load_tls", Function("native_load_tls"), User::Nothing),
    row("cpu.load_gs_index", Function("native_load_gs_index"), User::Nothing),
    row("cpu.write_ldt_entry", Function("native_write_ldt_entry"), User::Nothing),
    row("cpu.write_gdt_entry", Function("native_write_gdt_entry"), User::Nothing),
    row("cpu.write_idt_entry", Function("native_write_idt_entry"), User::Nothing),
    row("cpu.alloc_ldt", Nop, User::Nop),
    row("cpu.free_ldt", Nop, User::Nop),
    row("cpu.load_sp0", Function("native_load_sp0"), User::Nothing),
    row("cpu.invalidate_io_bitmap", Function("native_tss_invalidate_io_bitmap"), User::Nothing),
    row("cpu.update_io_bitmap", Function("native_tss_update_io_bitmap"), User::Nothing),
    row("cpu.wbinvd", Function("native_wbinvd"), User::Nop),
    row("cpu.cpuid", Function("native_cpuid"), User::Nothing),
    row("cpu.read_msr", Function("native_read_msr"), User::Nothing),
    row("cpu.write_msr", Function("native_write_msr"), User::Nothing),
    row("cpu.read_msr_safe", Function("native_read_msr_safe"), User::Nothing),
    row("cpu.write_msr_safe", Function("native_write_msr_safe"), User::Nothing),
    row("cpu.read_pmc", Function("native_read_pmc"), User::Nothing),
    row("cpu.start_context_switch", Nop, User::Nop),
    row("cpu.end_context_switch", Nop, User::Nop),
    row("irq.save_fl", Function("native_save_fl"), FLAGS),
    row("irq.irq_disable", Function("pv_native_irq_disable"), User::Nop),
    row("irq.irq_enable", Function("pv_native_irq_enable"), User::Nop),
    row("irq.safe_halt", Function("native_safe_halt"), PAUSE),
    row("irq.halt", Function("native_halt"), PAUSE),
    row("mmu.flush_tlb_user", Function("native_flush_tlb_local"), User::Nop),
    row("mmu.flush_tlb_kernel", Function("native_flush_tlb_global"), User::Nop),
    row("mmu.flush_tlb_one_user", Function("native_flush_tlb_one_user"), User::Nop),
    row("mmu.flush_tlb_multi", Function("native_flush_tlb_multi"), User::Nop),
    row("mmu.tlb_remove_table", Function("tlb_remove_page"), User::Nothing),
    row("mmu.exit_mmap", Nop, User::Nop),
    row("mmu.notify_page_enc_status_changed", Nop, User::Nop),
    row("mmu.read_cr2", Function("pv_native_read_cr2"), User::Nothing),
    row("mmu.write_cr2", Function("pv_native_write_cr2"), User::Nothing),
    row("mmu.read_cr3", Function("__native_read_cr3"), User::Nothing),
    row("mmu.write_cr3", Function("native_write_cr3"), User::Nothing),
    row("mmu.activate_mm", Nop, User::Nop),
    row("mmu.dup_mmap", Nop, User::Nop),
    row("mmu.pgd_alloc", Function("__paravirt_pgd_alloc"), ZERO),
    row("mmu.pgd_free", Nop, User::Nop),
    row("mmu.alloc_pte", Nop, User::Nop),
    row("mmu.alloc_pmd", Nop, User::Nop),
    row("mmu.alloc_pud", Nop, User::Nop),
    row("mmu.alloc_p4d", Nop, User::Nop),
    row("mmu.release_pte", Nop, User::Nop),
    row("mmu.release_pmd", Nop, User::Nop),
    row("mmu.release_pud", Nop, User::Nop),
    row("mmu.release_p4d", Nop, User::Nop),
    row("mmu.set_pte", Function("native_set_pte"), STORE),
    row("mmu.set_pmd", Function("native_set_pmd"), STORE),
    row("mmu.ptep_modify_prot_start", Function("__ptep_modify_prot_start"), User::Nothing),
    row("mmu.ptep_modify_prot_commit", Function("__ptep_modify_prot_commit"), User::Nothing),
    row("mmu.pte_val", Identity, IDENTITY),
    row("mmu.make_pte", Identity, IDENTITY),
    row("mmu.pgd_val", Identity, IDENTITY),
    row("mmu.make_pgd", Identity, IDENTITY),
    row("mmu.set_pud", Function("native_set_pud"), STORE),
    row("mmu.pmd_val", Identity, IDENTITY),
    row("mmu.make_pmd", Identity, IDENTITY),
    row("mmu.pud_val", Identity, IDENTITY),
    row("mmu.make_pud", Identity, IDENTITY),
    row("mmu.set_p4d", Function("native_set_p4d"), STORE),
    row("mmu.p4d_val", Identity, IDENTITY),
    row("mmu.make_p4d", Identity, IDENTITY),
    row("mmu.set_pgd", Function("native_set_pgd"), STORE),
    row("mmu.lazy_mode.enter", Nop, User::Nop),
    row("mmu.lazy_mode.leave", Nop, User::Nop),
    row("mmu.lazy_mode.flush", Nop, User::Nop),
    row("mmu.set_fixmap", Function("native_set_fixmap"), User::Nothing),
    row("lock.queued_spin_lock_slowpath", Function("native_queued_spin_lock_slowpath"), User::Nothing),
    row("lock.queued_spin_unlock", Function("__raw_callee_save___native_queued_spin_unlock"), UNLOCK),
    row("lock.wait", Nop, User::Nop),
    row("lock.kick", Nop, User::Nop),
    row("lock.vcpu_is_preempted", Function("__raw_callee_save___native_vcpu_is_preempted"), ZERO),
];

/// The number of operations of Linux 6.1.
pub const LINUX_OPERATIONS: usize = ROWS.len();

fn by_number(operation: impl Fn(&OperationRow) -> Option<ParavirtOperation>) -> BTreeMap<u8, ParavirtOperation> {
    (0..).zip(ROWS).filter_map(|(number, row)| Some((number, operation(row)?))).collect()
}

impl Operations {
    /// Returns Linux's table for bare metal: direct calls of the native functions, whose addresses `address` returns,
    /// and NOPs for operations that do nothing. `base` is the address of `pv_ops`. A function without an address stays
    /// a call through the table.
    #[must_use]
    pub fn native(base: Option<Addr>, address: impl Fn(&str) -> Option<Addr>) -> Operations {
        let call = |name| address(name).map(ParavirtOperation::Call);
        let operations = by_number(|row| match row.native {
            Native::Nop => Some(ParavirtOperation::Nop),
            Native::Identity => call("_paravirt_ident_64"),
            Native::Function(name) => call(name),
        });
        Operations { base, operations }
    }

    /// Returns the table for a process. Flags are those of user space. Interrupts and caches do not belong to the
    /// process, so their operations do nothing. Page tables are plain memory. Operations that only a kernel can do are
    /// refused by name.
    #[must_use]
    pub fn user(base: Option<Addr>) -> Operations {
        let operations = by_number(|row| {
            Some(match row.user {
                User::Nop => ParavirtOperation::Nop,
                User::Code(code) => ParavirtOperation::Inline(code.to_vec()),
                User::Nothing => ParavirtOperation::Refuse(row.name),
            })
        });
        Operations { base, operations }
    }
}

#[cfg(test)]
mod tests {
    use super::{LINUX_OPERATIONS, Operations, ParavirtOperation, ROWS};
    use modload_edit::{Addr, disassembled};

    #[test]
    fn every_operation_has_its_number_and_fits_a_call() {
        // Measured: pv_ops of Linux 6.1 on x86-64 has 84 slots.
        assert_eq!(LINUX_OPERATIONS, 84);
        let number = |name: &str| ROWS.iter().position(|row| row.name == name);
        assert_eq!(number("irq.save_fl"), Some(30));
        assert_eq!(number("mmu.set_pte"), Some(58));
        assert_eq!(number("lock.vcpu_is_preempted"), Some(83));
        for operation in Operations::user(None).operations.values() {
            if let ParavirtOperation::Inline(code) = operation {
                assert!(code.len() <= 6 && !disassembled(Addr::NULL, code).contains("(bad)"), "{code:02x?}");
            }
        }
    }

    #[test]
    fn native_functions_are_called_and_the_rest_goes() {
        let native = Operations::native(None, |name| (name == "native_write_cr2").then_some(Addr::new(7)));
        assert_eq!(native.operations.get(&16), Some(&ParavirtOperation::Nop));
        assert_eq!(native.operations.get(&43), None);
        let native = Operations::native(None, |name| (name == "pv_native_write_cr2").then_some(Addr::new(7)));
        assert_eq!(native.operations.get(&43), Some(&ParavirtOperation::Call(Addr::new(7))));
    }
}
