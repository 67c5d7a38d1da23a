//! A call that does not reach its function uses a PLT entry, which jumps to the function's address in the GOT.

use crate::module::Module;
use crate::tools::{Layout, assemble, link};

const SOURCE: &str = "
        .text
        .globl  _start
_start: call    far
        call    far@PLT
        jmp     far
        jne     far
        .long   far@PLT
        .long   far@GOTPCREL
";

/// ld makes PLT entries only for symbols that the dynamic loader resolves, so the test gives ld a shared library and no
/// address. If the code also refers to the symbol's slot, the entry has the layout of this crate: an ENDBR and a jump
/// through that slot. The bytes after the jump never run; ld pads with a NOP, this crate with INT3.
#[test]
fn calls_and_entries_are_those_of_a_shared_library() {
    let sections = [(".text", 0x10_0000), (".plt", 0x10_8000), (".plt.got", 0x11_0000), (".got", 0x12_0000)];
    let object = assemble(SOURCE);
    let theirs = link(&object, &Layout::new("-shared -z ibtplt", &sections, &[])).unwrap();

    let layout = Layout::new("", &sections, &[("far", 0x7fff_1234_5678)]);
    let ours = Module::new(&object, &layout).relocate(3).unwrap();
    assert_eq!(ours.sections[".text"], theirs[".text"]);
    assert_eq!(ours.counts.through_plt, 5);
    assert_eq!(ours.sections[".plt.got"][..10], theirs[".plt.got"][..10]);
    assert_eq!(ours.sections[".plt.got"][10..], [0xcc; 6]);
    assert_eq!(ours.sections[".got"], 0x7fff_1234_5678_u64.to_le_bytes());
}

/// With the function in reach the entry exists (it was counted before addresses were known), but no call uses it.
#[test]
fn what_is_in_reach_is_called_directly_as_in_a_static_link() {
    let sections = [(".text", 0x10_0000), (".plt.got", 0x11_0000), (".got", 0x12_0000)];
    let layout = Layout::new("-static --no-relax", &sections, &[("far", 0x7000_0000)]);
    let object = assemble(SOURCE);
    let theirs = link(&object, &layout).unwrap();
    let ours = Module::new(&object, &layout).relocate(3).unwrap();
    assert_eq!(ours.sections[".text"], theirs[".text"]);
    assert_eq!((ours.counts.through_plt, ours.slots.entries().len()), (0, 1));
}
