//! Executable memory within reach of the host's own code.

use std::ffi::CString;
use std::fs;
use std::process::{Command, ExitCode};
use std::ptr;

use modload_edit::{Addr, Edit, EditOrigin, EditSet, Engine, NOPS, Sink, index, wide};
use modload_fixtures::{Compiler, Language, object_from_text};
use modload_tests::{case, in_fork, mappings, peek};
use modload_text::{Annex, AnnexError, INT3, PAGE, PokeError, TextLock, TrapMask, fill, poke};

fn main() -> ExitCode {
    modload_tests::run(&[
        case!(near_the_executable),
        case!(near_a_library).needing("cc"),
        case!(each_byte_reaches_each_byte),
        case!(the_heap_goes_on_growing),
        case!(where_there_is_no_room_that_is_said),
        case!(a_hole_is_found_in_a_crowd),
        case!(only_fill_writes_there_and_within_bounds),
        case!(a_forked_child_has_its_own),
    ])
}

/// mov $VALUE,%eax; ret
const fn returns(value: u8) -> [u8; 6] {
    [0xb8, value, 0, 0, 0, 0xc3]
}

fn one(at: Addr, old: &[u8], new: &[u8]) -> EditSet {
    let mut edits = EditSet::new();
    edits.edit(Edit { at, old, new, why: EditOrigin { engine: Engine::JumpLabel, section: 0, record: 0 } }).unwrap();
    edits
}

fn put(at: Addr, old: &[u8], new: &[u8]) -> Result<u32, PokeError> {
    fill(&mut TextLock::take(), &one(at, old, new))
}

fn call(at: Addr) -> i32 {
    // SAFETY: the tests put `int f(void)` there, or INT3, which ends a forked child.
    let function = unsafe {
        std::mem::transmute::<*const (), extern "C" fn() -> i32>(ptr::with_exposed_provenance(index(at.get())))
    };
    function()
}

/// The mapping that holds an address.
fn mapping(at: Addr) -> Option<(Addr, Addr, String)> {
    let found = mappings().into_iter().find(|mapping| mapping.overlaps(at, 1))?;
    Some((Addr::new(found.start), Addr::new(found.end), found.access))
}

/// This program's code.
fn executable() -> (Addr, Addr) {
    #[expect(clippy::as_conversions, reason = "the only way from a function pointer to its address")]
    let here = executable as *const ();
    let (start, end, access) = mapping(Addr::new(wide(here.expose_provenance()))).unwrap();
    assert!(access == "r-xp" && start.get() > 1 << 32, "these tests are position-independent: {start} {access}");
    (start, end)
}

/// Demands that an instruction in one reaches the other, and the other way round.
fn reach((start, end): (Addr, Addr), annex: &Annex) {
    let (first, last) = (annex.addr(), annex.addr() + (annex.len() - 1));
    for (from, to) in [(start, last), (end.offset(-1), first), (first, end.offset(-1)), (last, start)] {
        for instruction in [1, 15] {
            assert!(i32::try_from(to - (from + instruction)).is_ok(), "{from} to {to}");
        }
    }
}

/// Takes an annex, runs code in the annex, and checks its protection.
fn near(range: (Addr, Addr)) {
    let annex = Annex::near(range.0, range.1, 5000).unwrap();
    reach(range, &annex);
    let at = annex.addr();
    assert_eq!((annex.len(), at.get() % PAGE), (8192, 0));
    assert_eq!(peek(at, 8192), [INT3; 8192]);
    let is_code = || mapping(at).filter(|(_, end, access)| *end >= at + 8192 && access == "r-xp").is_some();
    assert!(is_code());
    let last = at + (8192 - 6);
    assert_eq!(put(at, &[INT3; 6], &returns(7)).unwrap(), 1);
    assert_eq!(put(last, &[INT3; 6], &returns(8)).unwrap(), 1);
    assert_eq!([call(at), call(last)], [7, 8]);
    // Two edits that lie close together are one write.
    let mut both = one(at, &returns(7), &returns(9));
    both.edit(one(at + 64, &[INT3; 6], &returns(10)).iter().next().unwrap()).unwrap();
    assert_eq!(fill(&mut TextLock::take(), &both).unwrap(), 1);
    assert_eq!(([call(at), call(at + 64)], is_code()), ([9, 10], true));
    drop(annex);
    assert_eq!(mapping(at), None);
}

fn near_the_executable() {
    near(executable());
}

fn near_a_library() {
    let text = "int next(int i); int next(int i) { return i + 1; }\n";
    let object = object_from_text("next", Language::C, text, Compiler::Cc, &["-O2", "-fPIC"]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let library = folder.path().join("libnext.so");
    assert!(Command::new("cc").arg("-shared").arg("-o").arg(&library).arg(object).status().unwrap().success());
    let name = CString::new(library.to_str().unwrap()).unwrap();
    // SAFETY: a library of one function, without constructors.
    let library = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW) };
    assert!(!library.is_null());
    // SAFETY: the library is open, and the name ends with NUL.
    let next = unsafe { libc::dlsym(library, c"next".as_ptr()) };
    let (start, end, access) = mapping(Addr::new(wide(next.expose_provenance()))).unwrap();
    assert!(access == "r-xp" && (start - executable().0).abs() > 1 << 32, "out of the executable's reach");
    near((start, end));
}

fn each_byte_reaches_each_byte() {
    let (start, end) = executable();
    // A range that leaves half a gigabyte on each side.
    let range = (start.offset(-(3 << 29)), end);
    let annexes: Vec<_> = (0..16).map(|_| Annex::near(range.0, range.1, 1 << 20).unwrap()).collect();
    for annex in &annexes {
        reach(range, annex);
        let others = annexes.iter().filter(|other| (other.addr() - annex.addr()).abs() < 1 << 20);
        assert_eq!(others.count(), 1, "they do not overlap");
    }
    // Three gigabytes can be reached from their middle, and five from no place.
    let range = (start.offset(-(3 << 30)), end);
    reach(range, &Annex::near(range.0, range.1, PAGE).unwrap());
    let refused = Annex::near(start.offset(-(5 << 30)), end, PAGE).unwrap_err();
    assert!(matches!(refused, AnnexError::NoRoom { longest: 0, .. }), "{refused}");
    for (start, end, len) in [(start, start, 1), (end, start, 1), (start, end, 0)] {
        assert!(matches!(Annex::near(start, end, len), Err(AnnexError::Empty { .. })));
    }
}

/// Returns the end of the heap, as the kernel has it.
fn heap_end() -> Addr {
    // SAFETY: changes nothing, and returns the end of the heap.
    Addr::new(unsafe { libc::syscall(libc::SYS_brk, 0) }.cast_unsigned())
}

fn the_heap_goes_on_growing() {
    let (start, end) = executable();
    let annexes: Vec<_> = (0..64).map(|_| Annex::near(start, end, 1 << 20).unwrap()).collect();
    let heap = heap_end();
    assert!(annexes.iter().all(|annex| annex.addr() < heap), "none where the heap would grow");
    let before = heap_end();
    // By more than these annexes take together.
    // SAFETY: makes the heap longer; no code uses the new memory.
    let grown = unsafe { libc::sbrk(1 << 28) };
    assert_ne!(grown.addr(), usize::MAX, "the heap can grow");
    assert_eq!(heap_end() - before, 1 << 28);
}

fn where_there_is_no_room_that_is_said() {
    let (start, end) = executable();
    let refused = Annex::near(start, end, 8 << 30).unwrap_err();
    let AnnexError::NoRoom { len, longest, .. } = refused else { panic!("{refused}") };
    assert!(len == 8 << 30 && longest > 1 << 30 && longest < 1 << 31, "{longest:#x}");
    assert_eq!(
        refused.to_string(),
        format!(
            "no room for 8589934592 bytes within 2 GiB of all of {start}..{end}: the longest free range there has {longest} \
             bytes; create the annex earlier, before threads and large allocations"
        )
    );
    assert!(matches!(Annex::near(start, end, u64::MAX), Err(AnnexError::NoRoom { .. })));
}

/// Maps all free memory within 2 GiB of a range, except the memory into which the heap and the stack would grow.
fn fill_up(start: Addr, end: Addr) {
    let (low, high) = (start.offset(-(1 << 31)).get(), (end + (1 << 31)).get());
    for _ in 0..4 {
        let maps = fs::read_to_string("/proc/self/maps").unwrap();
        let stack = maps.lines().find(|line| line.ends_with("[stack]")).unwrap();
        let stack = u64::from_str_radix(stack.split('-').next().unwrap(), 16).unwrap();
        let mut from = 0x10_0000;
        for mapping in mappings() {
            let heap = heap_end().get().next_multiple_of(PAGE);
            let to = if (from..=mapping.start).contains(&heap) { heap } else { mapping.start };
            let (at, to) = (from.max(low), to.min(high));
            if at < to && mapping.start != stack {
                let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED_NOREPLACE;
                let hint = ptr::without_provenance_mut(index(at));
                // SAFETY: replaces nothing, and cannot be touched.
                unsafe { libc::mmap(hint, index(to - at), libc::PROT_NONE, flags, -1, 0) };
            }
            from = mapping.end;
        }
    }
}

fn a_hole_is_found_in_a_crowd() {
    let (start, end) = executable();
    // The arena and everything else that is needed, before there is no room.
    drop(Annex::near(start, end, PAGE).unwrap());
    fill_up(start, end);
    let refused = Annex::near(start, end, PAGE).unwrap_err();
    assert!(matches!(refused, AnnexError::NoRoom { longest: 0, .. }), "the heap's space is not taken: {refused}");
    for (distance, pages) in [(3 << 29, 16), (1 << 29, 4)] {
        let hole = Addr::new(start.get() / PAGE * PAGE).offset(-distance);
        let pointer = ptr::with_exposed_provenance_mut(index(hole.get()));
        // SAFETY: a part of the memory that was filled up, which no code uses.
        assert_eq!(unsafe { libc::munmap(pointer, index(pages * PAGE)) }, 0);
        let refused = Annex::near(start, end, 16 * PAGE + 1).unwrap_err();
        assert!(matches!(refused, AnnexError::NoRoom { longest: 0x1_0000, .. }), "{refused}");
        drop(Annex::near(start, end, 16 * PAGE).unwrap());
        let annex = Annex::near(start, end, 4 * PAGE).unwrap();
        assert_eq!(annex.addr() + 4 * PAGE, hole + pages * PAGE, "as near as it can be");
        assert_eq!(put(annex.addr(), &[INT3; 6], &returns(7)).unwrap(), 1);
        assert_eq!(call(annex.addr()), 7);
    }
}

fn only_fill_writes_there_and_within_bounds() {
    let (start, end) = executable();
    let annex = Annex::near(start, end, PAGE).unwrap();
    let (at, behind) = (annex.addr(), annex.addr() + PAGE);
    let poked = poke(&mut TextLock::take(), &one(at, &[INT3; 5], NOPS[4]), TrapMask::Trusted);
    assert!(matches!(poked, Err(PokeError::NotText { .. })), "{poked:?}");
    let wrong = put(at, &returns(1), &returns(2));
    assert!(matches!(wrong, Err(PokeError::Mismatch { .. })), "{wrong:?}");
    for outside in [at.offset(-1), behind.offset(-5), behind] {
        let refused = put(outside, &[INT3; 6], &returns(2));
        assert!(matches!(refused, Err(PokeError::NotText { .. })), "{outside}: {refused:?}");
    }
    assert_eq!(peek(at, index(PAGE)), [INT3; 4096]);
    // A call into unfilled text ends by SIGTRAP, without a report.
    let ended = in_fork(|| assert_eq!(call(at), 0));
    assert_eq!((ended.signal, ended.stderr.as_str()), (Some(libc::SIGTRAP), ""));
    drop(annex);
    assert!(matches!(put(at, &[INT3; 6], &returns(2)), Err(PokeError::NotText { .. })));
}

fn a_forked_child_has_its_own() {
    let (start, end) = executable();
    let annex = Annex::near(start, end, PAGE).unwrap();
    let at = annex.addr();
    put(at, &[INT3; 6], &returns(1)).unwrap();
    let kept = std::mem::ManuallyDrop::new(annex);
    in_fork(|| {
        assert_eq!(call(at), 1);
        put(at, &returns(1), &returns(2)).unwrap();
        assert_eq!(call(at), 2);
        let another = Annex::near(start, end, PAGE).unwrap();
        put(another.addr(), &[INT3; 6], &returns(3)).unwrap();
        assert_eq!(call(another.addr()), 3);
        // SAFETY: the child's copy of the value, which no other code drops in the child.
        drop(unsafe { ptr::read(&raw const *kept) });
        assert_eq!(mapping(at), None);
    })
    .well();
    assert_eq!((call(at), mapping(at).unwrap().2), (1, "r-xp".to_owned()));
    drop(std::mem::ManuallyDrop::into_inner(kept));
    assert_eq!(mapping(at), None);
}
