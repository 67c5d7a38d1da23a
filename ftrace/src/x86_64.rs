//! The entries of functions that can be traced, for x86-64.
//!
//! Another processor has to provide: the instruction at an entry that is there for branch tracking ([`LANDING_PAD`],
//! [`landing_pad_len`]), the lengths and the forms of a site ([`site_len`], [`host_site_len`], [`LONGEST_SITE`]), the
//! branches at a site ([`write_call`], [`write_jump`], [`reaches`]), and whether code may use the widest vector
//! registers ([`may_use_zmm`]). `trampoline/x86_64/` has the code to which a site leads.

use modload_edit::{Addr, InstructionEffect, NOP, NOPS, wide};

/// endbr64
pub(crate) const LANDING_PAD: [u8; 4] = [0xf3, 0x0f, 0x1e, 0xfa];

/// The lengths of sites in bytes.
const SITE_LENGTHS: [usize; 2] = [5, 6];

/// The length of the longest site.
pub(crate) const LONGEST_SITE: usize = 6;

/// The bytes that are read of an entry: an ENDBR64, and the longest site.
pub(crate) const LONGEST_ENTRY: usize = LANDING_PAD.len() + LONGEST_SITE;

/// Returns the length of the ENDBR64 at an entry, or 0.
pub(crate) fn landing_pad_len(code: &[u8]) -> usize {
    if code.starts_with(&LANDING_PAD) { LANDING_PAD.len() } else { 0 }
}

/// Returns the length of a site if code begins with its NOP.
pub(crate) fn site_len(code: &[u8]) -> Option<u8> {
    let len = SITE_LENGTHS.into_iter().find(|len| code.starts_with(NOPS[len - 1]));
    len.and_then(|len| u8::try_from(len).ok())
}

/// Returns the length of a site of the host's own code, which begins at `at`: a call of `__fentry__`, a NOP, or five
/// NOPs.
pub(crate) fn host_site_len(at: Addr, site: &[u8]) -> Option<usize> {
    let is_site = |len: usize| match InstructionEffect::of(at, &site[..len]) {
        Some(InstructionEffect::Call { .. } | InstructionEffect::CallThrough { .. } | InstructionEffect::Next(_)) => {
            true
        }
        _ => len == 5 && site.starts_with(&[NOP; 5]),
    };
    SITE_LENGTHS.into_iter().find(|len| is_site(*len))
}

/// Returns whether a site that ends at `behind` can jump to `to`.
pub(crate) fn reaches(behind: Addr, to: Addr) -> bool {
    i32::try_from(to - behind).is_ok()
}

/// Makes the site at `at` a call of `to`, which is in reach.
pub(crate) fn write_call(site: &mut [u8], at: Addr, to: Addr) {
    write_branch(0xe8, site, at, to);
}

/// Makes the site at `at` a jump to `to`, which is in reach.
pub(crate) fn write_jump(site: &mut [u8], at: Addr, to: Addr) {
    write_branch(0xe9, site, at, to);
}

fn write_branch(opcode: u8, site: &mut [u8], at: Addr, to: Addr) {
    let distance = i32::try_from(to - (at + wide(site.len()))).unwrap_or_default();
    let len = site.len();
    // A spare byte becomes the prefix addr32, which a branch ignores.
    site[0] = 0x67;
    site[len - 5] = opcode;
    site[len - 4..].copy_from_slice(&distance.to_le_bytes());
}

/// Returns whether code may have an instruction that uses vector registers of 512 bits (an EVEX prefix: 0x62, and two
/// fixed bits).
pub(crate) fn may_use_zmm(text: &[u8]) -> bool {
    memchr::memchr_iter(0x62, text).any(|at| matches!(text[at..], [_, p0, p1, ..] if p0 & 0x08 == 0 && p1 & 0x04 != 0))
}
