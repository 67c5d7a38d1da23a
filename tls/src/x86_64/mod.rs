//! Thread-local storage of x86-64: the word that points to a thread's table, the code that finds a variable, and the
//! entries of the slow path.
//!
//! Another processor has to provide: a word of static thread-local memory that points to an empty table in each new
//! thread, the resolvers that modules call, and entries of the slow path that preserve the registers of its ABI.

use std::arch::global_asm;
use std::ffi::c_void;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use modload_edit::INT3;

use crate::sizes::{RESERVE_ALIGN, RESERVE_SIZE, TABLE_SIZE};

global_asm!(
    r#"
    .pushsection .bss.modload_tls_empty, "aw", @nobits
    .balign 64
    .hidden modload_tls_empty
    .globl modload_tls_empty
    .type modload_tls_empty, @object
    .size modload_tls_empty, {size}
modload_tls_empty:
    .zero {size}
    .popsection

    .pushsection .tdata.modload_tls_table, "awT", @progbits
    .balign 8
    .hidden modload_tls_table
    .globl modload_tls_table
    .type modload_tls_table, @object
    .size modload_tls_table, 8
modload_tls_table:
    .quad modload_tls_empty
    .popsection

    .pushsection .tdata.modload_tls_reserve, "awT", @progbits
    .balign {reserve_align}
    .hidden modload_tls_reserve
    .globl modload_tls_reserve
    .type modload_tls_reserve, @object
    .size modload_tls_reserve, {reserve_size}
modload_tls_reserve:
    // Not zero, so that the reserve is part of the template from which the C library makes new threads.
    .fill {reserve_align}, 1, 0xa5
    .zero {reserve_size} - {reserve_align}
    .popsection

    .pushsection .text.modload_tls, "ax", @progbits
    .balign 16
    .hidden modload_tls_own_reserve
    .globl modload_tls_own_reserve
    .type modload_tls_own_reserve, @function
// By the general dynamic model, which works wherever the reserve is; the others would forbid to dlopen this code.
modload_tls_own_reserve:
    .cfi_startproc
    sub rsp, 8
    .cfi_def_cfa_offset 16
    .byte 0x66
    lea rdi, [rip + modload_tls_reserve@TLSGD]
    .value 0x6666
    rex64
    call __tls_get_addr@PLT
    add rsp, 8
    .cfi_def_cfa_offset 8
    ret
    .cfi_endproc
    .size modload_tls_own_reserve, . - modload_tls_own_reserve

    .balign 16
    .hidden modload_tls_own_table
    .globl modload_tls_own_table
    .type modload_tls_own_table, @function
modload_tls_own_table:
    .cfi_startproc
    mov rax, qword ptr [rip + modload_tls_table@GOTTPOFF]
    add rax, qword ptr fs:[0]
    ret
    .cfi_endproc
    .size modload_tls_own_table, . - modload_tls_own_table

    .hidden modload_tls_table_offset
    .globl modload_tls_table_offset
    .type modload_tls_table_offset, @function
modload_tls_table_offset:
    .cfi_startproc
    mov rax, qword ptr [rip + modload_tls_table@GOTTPOFF]
    ret
    .cfi_endproc
    .size modload_tls_table_offset, . - modload_tls_table_offset

    .hidden modload_tls_thread_pointer
    .globl modload_tls_thread_pointer
    .type modload_tls_thread_pointer, @function
modload_tls_thread_pointer:
    .cfi_startproc
    mov rax, qword ptr fs:[0]
    ret
    .cfi_endproc
    .size modload_tls_thread_pointer, . - modload_tls_thread_pointer

// Calls `find` of `table.rs` with the lower half of rax, and returns the block in rax. All other registers are preserved. The vector
// registers go to an area of the size and with the components that `measure_registers` has found.
.macro modload_tls_call_find
    push rbp
    .cfi_def_cfa_offset 16
    .cfi_offset rbp, -16
    mov rbp, rsp
    .cfi_def_cfa_register rbp
    push rax
    push rcx
    push rdx
    push rsi
    push rdi
    push r8
    push r9
    push r10
    push r11
    mov edi, eax
    sub rsp, qword ptr [rip + {area_size}]
    and rsp, -64
    mov rcx, qword ptr [rip + {components}]
    test rcx, rcx
    jz 2f
    // XRSTOR requires zeros where XSAVE does not write.
    xor eax, eax
    .irp number, 0, 1, 2, 3, 4, 5, 6, 7
    mov qword ptr [rsp + 512 + 8 * \number], rax
    .endr
    mov eax, ecx
    mov rdx, rcx
    shr rdx, 32
    xsave64 [rsp]
    call modload_tls_find
    mov rdi, rax
    mov rcx, qword ptr [rip + {components}]
    mov eax, ecx
    mov rdx, rcx
    shr rdx, 32
    xrstor64 [rsp]
    jmp 3f
2:
    fxsave64 [rsp]
    call modload_tls_find
    mov rdi, rax
    fxrstor64 [rsp]
3:
    mov rax, rdi
    lea rsp, [rbp - 72]
    pop r11
    pop r10
    pop r9
    pop r8
    pop rdi
    pop rsi
    pop rdx
    pop rcx
    add rsp, 8
    pop rbp
    .cfi_def_cfa rsp, 8
    .cfi_restore rbp
.endm

    .balign 16
    .hidden modload_tls_slow_pair
    .globl modload_tls_slow_pair
    .type modload_tls_slow_pair, @function
modload_tls_slow_pair:
    .cfi_startproc
    endbr64
    mov rax, rdx
    modload_tls_call_find
    add rax, qword ptr [rdi + 8]
    ret
    .cfi_endproc
    .size modload_tls_slow_pair, . - modload_tls_slow_pair

    .balign 16
    .hidden modload_tls_slow_descriptor
    .globl modload_tls_slow_descriptor
    .type modload_tls_slow_descriptor, @function
modload_tls_slow_descriptor:
    .cfi_startproc
    endbr64
    // The resolver has left the descriptor, and rdx, in the red zone.
    mov rax, qword ptr [rsp - 16]
    mov rdx, qword ptr [rsp - 8]
    mov rax, qword ptr [rax + 8]
    push rdx
    .cfi_def_cfa_offset 16
    push rax
    .cfi_def_cfa_offset 24
    call modload_tls_slow_preserving
    pop rdx
    .cfi_def_cfa_offset 16
    shr rdx, 32
    add rax, rdx
    sub rax, qword ptr fs:[0]
    pop rdx
    .cfi_def_cfa_offset 8
    ret
    .cfi_endproc
    .size modload_tls_slow_descriptor, . - modload_tls_slow_descriptor

    .balign 16
    .type modload_tls_slow_preserving, @function
modload_tls_slow_preserving:
    .cfi_startproc
    modload_tls_call_find
    ret
    .cfi_endproc
    .size modload_tls_slow_preserving, . - modload_tls_slow_preserving
    .popsection
"#,
    size = const TABLE_SIZE,
    reserve_size = const RESERVE_SIZE,
    reserve_align = const RESERVE_ALIGN,
    area_size = sym AREA_SIZE,
    components = sym COMPONENTS,
);

unsafe extern "C" {
    static modload_tls_empty: u8;
    static modload_tls_slow_pair: u8;
    static modload_tls_slow_descriptor: u8;
    /// Returns the address of the word that points to this thread's table.
    #[link_name = "modload_tls_own_table"]
    safe fn own_table_word() -> *const c_void;
    /// Returns the distance of this word from the thread pointer.
    #[link_name = "modload_tls_table_offset"]
    safe fn table_offset() -> i64;
    /// Returns the address of this thread's reserve.
    #[link_name = "modload_tls_own_reserve"]
    pub(crate) safe fn own_reserve() -> *mut u8;
    /// Returns this thread's thread pointer.
    #[link_name = "modload_tls_thread_pointer"]
    pub(crate) safe fn thread_pointer() -> usize;
}

/// The size of the area for vector registers: at first that of FXSAVE.
static AREA_SIZE: AtomicU64 = AtomicU64::new(512);
/// The components that XSAVE saves; 0 where only FXSAVE can be used.
static COMPONENTS: AtomicU64 = AtomicU64::new(0);

/// Returns the word that points to this thread's table.
pub(crate) fn own_table() -> &'static AtomicPtr<c_void> {
    // SAFETY: eight aligned bytes of this thread's memory. Only this thread uses the reference, and does not keep it.
    unsafe { &*own_table_word().cast::<AtomicPtr<c_void>>() }
}

/// Returns the table with which each thread begins.
pub(crate) fn empty_table() -> *mut c_void {
    (&raw const modload_tls_empty).cast::<c_void>().cast_mut()
}

/// Finds how much memory the vector registers need.
pub(crate) fn measure_registers() {
    use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};

    /// Reads the components that the system has enabled.
    #[target_feature(enable = "xsave")]
    fn enabled() -> u64 {
        // SAFETY: register 0 exists wherever XSAVE is enabled, which the caller has checked.
        unsafe { _xgetbv(0) }
    }

    /// CPUID leaf 1, ECX: the system has enabled XSAVE.
    const OSXSAVE: u32 = 1 << 27;
    /// The tiles of AMX, which no caller of a resolver has in use: their state must be free at every call.
    const TILES: u64 = 3 << 17;
    /// The components of FXSAVE, and the header of XSAVE.
    const LEGACY: u64 = 512 + 64;

    if __cpuid(1).ecx & OSXSAVE == 0 {
        return;
    }
    // SAFETY: the processor has XSAVE.
    let components = unsafe { enabled() } & !TILES;
    let ends = (2..63).filter(|component| components >> component & 1 != 0).map(|component| {
        let leaf = __cpuid_count(0xd, component);
        u64::from(leaf.ebx) + u64::from(leaf.eax)
    });
    // The size comes first: a larger area is never wrong.
    AREA_SIZE.store(ends.max().unwrap_or(0).max(LEGACY).next_multiple_of(64), Ordering::Relaxed);
    COMPONENTS.store(components, Ordering::Release);
}

/// The size of the code of [`resolvers`] in bytes.
pub const RESOLVERS_SIZE: u64 = 128;
/// The offset of the descriptors' resolver in the code. `__tls_get_addr` is at offset 0.
pub const DESCRIPTOR_RESOLVER: u64 = 48;

/// Returns the code of `__tls_get_addr` and of the function in TLS descriptors, for the modules of this process. It can
/// lie anywhere. Within it, the stack pointer is that of the entry.
#[must_use]
pub fn resolvers() -> [u8; 128] {
    let mut code = [INT3; 128];
    let mut at = 0;
    let mut put = |bytes: &[u8]| {
        code[at..at + bytes.len()].copy_from_slice(bytes);
        at += bytes.len();
    };
    // The psABI puts static thread-local memory less than 2 GiB below the thread pointer.
    let table = i32::try_from(table_offset()).unwrap_or(0).to_le_bytes();
    let pair = (&raw const modload_tls_slow_pair).expose_provenance().to_le_bytes();
    let descriptor = (&raw const modload_tls_slow_descriptor).expose_provenance().to_le_bytes();
    // __tls_get_addr
    put(&[0xf3, 0x0f, 0x1e, 0xfa]); // endbr64
    put(&[0x64, 0x48, 0x8b, 0x04, 0x25]); // mov %fs:table,%rax
    put(&table);
    put(&[0x48, 0x8b, 0x17]); // mov (%rdi),%rdx
    put(&[0x48, 0x8b, 0x04, 0x10]); // mov (%rax,%rdx),%rax
    put(&[0x48, 0x85, 0xc0]); // test %rax,%rax
    put(&[0x74, 5]); // je 1f
    put(&[0x48, 0x03, 0x47, 0x08]); // add 8(%rdi),%rax
    put(&[0xc3]); // ret
    put(&[0xff, 0x25, 4, 0, 0, 0]); // 1: jmp *2f(%rip)
    put(&[INT3; 4]);
    put(&pair); // 2:
    // The function in a descriptor, whose address is in %rax. The red zone keeps what the slow path needs.
    put(&[0xf3, 0x0f, 0x1e, 0xfa]); // endbr64
    put(&[0x48, 0x89, 0x54, 0x24, 0xf8]); // mov %rdx,-8(%rsp)
    put(&[0x48, 0x89, 0x44, 0x24, 0xf0]); // mov %rax,-16(%rsp)
    put(&[0x48, 0x8b, 0x50, 0x08]); // mov 8(%rax),%rdx
    put(&[0x89, 0xd0]); // mov %edx,%eax
    put(&[0x48, 0xc1, 0xea, 0x20]); // shr $32,%rdx
    put(&[0x64, 0x48, 0x03, 0x04, 0x25]); // add %fs:table,%rax
    put(&table);
    put(&[0x48, 0x8b, 0x00]); // mov (%rax),%rax
    put(&[0x48, 0x85, 0xc0]); // test %rax,%rax
    put(&[0x74, 18]); // je 1f
    put(&[0x48, 0x01, 0xd0]); // add %rdx,%rax
    put(&[0x64, 0x48, 0x2b, 0x04, 0x25, 0, 0, 0, 0]); // sub %fs:0,%rax
    put(&[0x48, 0x8b, 0x54, 0x24, 0xf8]); // mov -8(%rsp),%rdx
    put(&[0xc3]); // ret
    put(&[0xff, 0x25, 7, 0, 0, 0]); // 1: jmp *2f(%rip)
    put(&[INT3; 7]);
    put(&descriptor); // 2:
    code
}
