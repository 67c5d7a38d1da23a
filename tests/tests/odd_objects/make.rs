//! Makes sets of valid but unusual objects. Each set is a function of its seed, and computes a number in `s<SEED>_run`.
//! The contribution of every oddity depends on the layout of sections, the choice of definitions and the relocations.

use modload_edit::wide;
use modload_tests::Chance;

use crate::elf::{
    ADDRSIG, ALLOC, Bind, EXCLUDE, EXEC, Group, Home, IN_GROUP, INIT_ARRAY, LARGE, LINK_ORDER, MERGE, NOBITS, NOTE,
    Object, PROGBITS, RETAIN, Rela, STRINGS, Section, Symbol, WRITE,
};

/// The relocations that are written, by their numbers in the ABI.
mod kind {
    pub(super) const ABS64: u32 = 1;
    pub(super) const PC32: u32 = 2;
    pub(super) const PLT32: u32 = 4;
    pub(super) const GOTPCREL: u32 = 9;
    pub(super) const ABS32: u32 = 10;
    pub(super) const ABS32S: u32 = 11;
    pub(super) const PC64: u32 = 24;
    pub(super) const SIZE32: u32 = 32;
    pub(super) const SIZE64: u32 = 33;
    pub(super) const GOTPCRELX: u32 = 41;
    pub(super) const REX_GOTPCRELX: u32 = 42;
}

/// A set of objects that are linked in their order.
#[derive(Debug)]
pub(crate) struct Set {
    pub(crate) objects: Vec<Object>,
    /// The function to call.
    pub(crate) run: String,
    /// The oddities of the set, for messages.
    pub(crate) made_of: Vec<&'static str>,
}

/// An object under construction. The code of its own function leaves numbers in %eax, and adds them up in %ebx.
struct Growing {
    object: Object,
    code: Vec<u8>,
    relas: Vec<Rela>,
}

impl Growing {
    fn new() -> Growing {
        // push %rbx; xor %ebx,%ebx
        Growing { object: Object::default(), code: vec![0x53, 0x31, 0xdb], relas: Vec::new() }
    }

    fn emit(&mut self, bytes: &[u8]) {
        self.code.extend(bytes);
    }

    /// Four bytes that are relocated.
    fn field(&mut self, kind: u32, symbol: usize, addend: i64) {
        self.relas.push(Rela { offset: wide(self.code.len()), kind, symbol, addend });
        self.emit(&[0; 4]);
    }

    /// Adds %eax to the number so far.
    fn add(&mut self) {
        self.emit(&[0x6b, 0xdb, 31, 0x01, 0xc3]); // imul $31,%ebx,%ebx; add %eax,%ebx
    }

    /// Calls a function and adds its result.
    fn call(&mut self, kind: u32, symbol: usize) {
        self.emit(&[0xe8]);
        self.field(kind, symbol, -4);
        self.add();
    }

    /// The address of a symbol in %rax, by way of one of several relocations.
    fn address(&mut self, chance: &mut Chance, symbol: usize) {
        match chance.below(6) {
            0 => {
                self.emit(&[0x48, 0x8d, 0x05]); // lea sym(%rip),%rax
                self.field(kind::PC32, symbol, -4);
            }
            1 => {
                self.emit(&[0x48, 0x8b, 0x05]); // mov sym@GOTPCREL(%rip),%rax
                self.field(kind::REX_GOTPCRELX, symbol, -4);
            }
            2 => {
                self.emit(&[0x48, 0x8b, 0x05]);
                self.field(kind::GOTPCREL, symbol, -4);
            }
            3 => {
                self.emit(&[0xb8]); // mov $sym,%eax
                self.field(kind::ABS32, symbol, 0);
            }
            4 => {
                self.emit(&[0x48, 0xc7, 0xc0]); // mov $sym,%rax
                self.field(kind::ABS32S, symbol, 0);
            }
            _ => {
                self.emit(&[0x48, 0xb8]); // movabs $sym,%rax
                self.relas.push(Rela { offset: wide(self.code.len()), kind: kind::ABS64, symbol, addend: 0 });
                self.emit(&[0; 8]);
            }
        }
    }

    /// Adds the value of a variable of four bytes.
    fn load(&mut self, chance: &mut Chance, symbol: usize) {
        if chance.below(2) == 0 {
            self.emit(&[0x8b, 0x05]); // mov sym(%rip),%eax
            self.field(kind::PC32, symbol, -4);
        } else {
            self.address(chance, symbol);
            self.emit(&[0x8b, 0x00]); // mov (%rax),%eax
        }
        self.add();
    }

    /// Adds the distance of a symbol's address from its alignment.
    fn misalignment(&mut self, chance: &mut Chance, symbol: usize, align: u64) {
        self.address(chance, symbol);
        self.emit(&[0x25]); // and $mask,%eax
        self.emit(&u32::try_from(align - 1).unwrap().to_le_bytes());
        self.add();
    }

    fn symbol(&mut self, name: &str, bind: Bind, home: Home, value: u64, size: u64, kind: u8) -> usize {
        self.object.symbol(Symbol { name: name.to_owned(), bind, kind, visibility: 0, home, value, size })
    }

    fn undefined(&mut self, name: &str) -> usize {
        let known = self.object.symbols.iter().position(|symbol| symbol.name == name && symbol.bind != Bind::Local);
        known.unwrap_or_else(|| self.symbol(name, Bind::Global, Home::Undefined, 0, 0, 0))
    }

    fn section(&mut self, name: &str, kind: u32, flags: u64, align: u64, data: Vec<u8>) -> usize {
        self.object.section(Section { name: name.to_owned(), kind, flags, align, data, ..Section::default() })
    }

    /// Ends the object's function, and with the function the object.
    fn end(mut self, name: &str, chance: &mut Chance) -> Object {
        self.emit(&[0x89, 0xd8, 0x5b, 0xc3]); // mov %ebx,%eax; pop %rbx; ret
        let (section, align) = match chance.below(4) {
            0 => (format!(".text.{name}"), 64),
            1 => (".text.unlikely".to_owned(), 1),
            _ => (".text".to_owned(), 16),
        };
        let size = wide(self.code.len());
        let (data, relas) = (std::mem::take(&mut self.code), std::mem::take(&mut self.relas));
        let flags = ALLOC | EXEC;
        let text = self.object.section(Section {
            name: section,
            kind: PROGBITS,
            flags,
            align,
            data,
            relas,
            ..Section::default()
        });
        self.define(name, Bind::Global, text, 0, size, 2);
        self.object
    }

    /// Defines a symbol, which may be there as an undefined one.
    fn define(&mut self, name: &str, bind: Bind, section: usize, value: u64, size: u64, kind: u8) -> usize {
        let known = self.object.symbols.iter().position(|symbol| symbol.name == name && symbol.bind != Bind::Local);
        match known {
            Some(at) => {
                let symbol = &mut self.object.symbols[at];
                (symbol.home, symbol.bind, symbol.value, symbol.size) = (Home::Section(section), bind, value, size);
                symbol.kind = kind;
                at
            }
            None => self.symbol(name, bind, Home::Section(section), value, size, kind),
        }
    }
}

/// `mov $number,%eax; ret`
fn constant(number: u32) -> Vec<u8> {
    [&[0xb8][..], &number.to_le_bytes(), &[0xc3]].concat()
}

fn number(chance: &mut Chance) -> u32 {
    u32::try_from(chance.below(1 << 16)).unwrap() + 1
}

fn align(chance: &mut Chance) -> u64 {
    match chance.below(40) {
        0 => 65536,
        1..4 => 8192,
        4..8 => 4096,
        _ => 1 << chance.below(9),
    }
}

/// An oddity: adds something to every object, or to some objects.
type Make = fn(&mut Scene<'_>);

/// The oddities.
const ODDITIES: &[(&str, Make)] = &[
    ("data", data),
    ("common", common),
    ("weak", weak),
    ("undefined weak", undefined_weak),
    ("comdat", comdat),
    ("linkonce", linkonce),
    ("absolute", absolute),
    ("aliases", aliases),
    ("constructors", constructors),
    ("bounds", bounds),
    ("pointers", pointers),
    ("sizes", sizes),
    ("visibility", visibility),
    ("unique", unique),
    ("indirect function", indirect),
    ("harmless", harmless),
    ("entries", entries),
    ("frames", frames),
    ("section symbols", section_symbols),
    ("calls", calls),
    ("strings", strings),
];

/// The input of an oddity.
struct Scene<'s> {
    /// Before all names, so that sets that are linked together do not meet.
    prefix: &'s str,
    objects: &'s mut [Growing],
    chance: &'s mut Chance,
    /// So that oddities of one kind have different names.
    round: usize,
}

impl Scene<'_> {
    fn name(&self, what: &str) -> String {
        format!("{}{what}{}", self.prefix, self.round)
    }

    fn any(&mut self) -> usize {
        self.chance.below(self.objects.len())
    }
}

/// Makes a set.
pub(crate) fn set(seed: u64) -> Set {
    let mut chance = Chance::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5bf0_3635);
    let prefix = format!("s{seed}_");
    let count = 1 + chance.below(4);
    let mut objects: Vec<Growing> = (0..count).map(|_| Growing::new()).collect();
    let mut made_of = Vec::new();
    for round in 0..1 + chance.below(6) {
        let (name, make) = ODDITIES[chance.below(ODDITIES.len())];
        made_of.push(name);
        make(&mut Scene { prefix: &prefix, objects: &mut objects, chance: &mut chance, round });
    }
    // The first object's function calls the others'.
    for other in 1..count {
        let symbol = objects[0].undefined(&format!("{prefix}part{other}"));
        objects[0].call(if chance.below(2) == 0 { kind::PLT32 } else { kind::PC32 }, symbol);
    }
    let run = format!("{prefix}run");
    let ended = objects.into_iter().enumerate().map(|(at, object)| {
        let name = if at == 0 { run.clone() } else { format!("{prefix}part{at}") };
        object.end(&name, &mut chance)
    });
    Set { objects: ended.collect(), run, made_of }
}

/// Variables in sections of all sorts, of one object, used by another.
fn data(scene: &mut Scene<'_>) {
    let (owner, user) = (scene.any(), scene.any());
    let sorts: [(&str, u32, u64); 12] = [
        (".data", PROGBITS, WRITE),
        (".data.odd", PROGBITS, WRITE),
        (".rodata", PROGBITS, 0),
        (".rodata.cst4", PROGBITS, MERGE),
        (".data.rel.ro", PROGBITS, WRITE),
        (".bss", NOBITS, WRITE),
        (".bss.odd", NOBITS, WRITE),
        (".note.odd", NOTE, 0),
        (".odd_section", PROGBITS, WRITE | RETAIN),
        ("odd section with blanks", PROGBITS, 0),
        (".ldata", PROGBITS, WRITE | LARGE),
        (".lbss", NOBITS, WRITE | LARGE),
    ];
    let (section, sort, flags) = sorts[scene.chance.below(sorts.len())];
    let (align, value) = (if flags & MERGE == 0 { align(scene.chance) } else { 4 }, number(scene.chance));
    let (name, start) = (scene.name("data"), scene.name("start"));
    let before = if flags & MERGE == 0 { 4 * scene.chance.below(4) } else { 0 };
    let object = &mut scene.objects[owner];
    let data = if sort == NOBITS { Vec::new() } else { [&vec![0xee; before][..], &value.to_le_bytes()].concat() };
    let at = object.section(section, sort, ALLOC | flags, align, data);
    object.object.sections[at].zeros = wide(before) + 4;
    object.object.sections[at].entry_size = if flags & MERGE == 0 { 0 } else { 4 };
    object.define(&name, Bind::Global, at, wide(before), 4, 1);
    object.define(&start, Bind::Global, at, 0, 0, 0);
    let object = &mut scene.objects[user];
    let (symbol, start) = (object.undefined(&name), object.undefined(&start));
    object.load(scene.chance, symbol);
    // Merged constants may move.
    if flags & MERGE == 0 {
        object.misalignment(scene.chance, start, align);
    }
}

/// COMMON symbols of different sizes and alignments, one of which may have a value after all.
fn common(scene: &mut Scene<'_>) {
    let name = scene.name("common");
    let valued = scene.chance.below(scene.objects.len() + 2);
    let mut largest = 1;
    for at in 0..scene.objects.len() {
        let (align, size) = (4 << scene.chance.below(6), 8 + 4 * wide(scene.chance.below(20)));
        let value = number(scene.chance);
        let large = scene.chance.below(6) == 0;
        let object = &mut scene.objects[at];
        if at == valued {
            let data = [value.to_le_bytes(), (value ^ 77).to_le_bytes()].concat();
            // As large as any of the others.
            let data = [data, vec![0; 100]].concat();
            let section = object.section(".data", PROGBITS, ALLOC | WRITE, 512, data);
            object.define(&name, Bind::Global, section, 0, 108, 1);
        } else {
            largest = largest.max(align);
            let home = if large { Home::LargeCommon } else { Home::Common };
            object.symbol(&name, Bind::Global, home, align, size, 1);
        }
    }
    for at in 0..scene.objects.len() {
        let object = &mut scene.objects[at];
        let symbol = object.undefined(&name);
        object.load(scene.chance, symbol);
        object.misalignment(scene.chance, symbol, largest);
        // addl $n,sym(%rip): later objects see the change.
        object.emit(&[0x83, 0x05]);
        object.field(kind::PC32, symbol, -5);
        object.emit(&[u8::try_from(at + 3).unwrap()]);
    }
}

/// A function that is weak in some objects and strong in one or none.
fn weak(scene: &mut Scene<'_>) {
    let name = scene.name("weak");
    let strong = scene.chance.below(scene.objects.len() + 1);
    for at in 0..scene.objects.len() {
        let value = number(scene.chance);
        let section = if scene.chance.below(2) == 0 { ".text" } else { ".text.weak" };
        let object = &mut scene.objects[at];
        let text = object.section(section, PROGBITS, ALLOC | EXEC, 16, constant(value));
        let bind = if at == strong { Bind::Global } else { Bind::Weak };
        let symbol = object.define(&name, bind, text, 0, 6, 2);
        object.call(if scene.chance.below(2) == 0 { kind::PLT32 } else { kind::PC32 }, symbol);
    }
}

/// A weak reference without a definition, and one with a definition.
fn undefined_weak(scene: &mut Scene<'_>) {
    let (absent, present) = (scene.name("absent"), scene.name("present"));
    let owner = scene.any();
    let text = scene.objects[owner].section(".text", PROGBITS, ALLOC | EXEC, 1, constant(5));
    scene.objects[owner].define(&present, Bind::Global, text, 0, 6, 2);
    for at in 0..scene.objects.len() {
        let object = &mut scene.objects[at];
        for name in [&absent, &present] {
            let known = object.object.symbols.iter().position(|symbol| symbol.name == *name);
            let symbol = known.unwrap_or_else(|| object.symbol(name, Bind::Weak, Home::Undefined, 0, 0, 0));
            object.emit(&[0x48, 0x8b, 0x05]); // mov sym@GOTPCREL(%rip),%rax
            object.field(if scene.chance.below(2) == 0 { kind::GOTPCREL } else { kind::REX_GOTPCRELX }, symbol, -4);
            object.emit(&[0x48, 0x85, 0xc0, 0x0f, 0x95, 0xc0, 0x0f, 0xb6, 0xc0]); // test %rax,%rax; setne %al; movzbl %al,%eax
            object.add();
        }
    }
}

/// A COMDAT group in several objects, with code and a table that the code reads; and groups that are none.
fn comdat(scene: &mut Scene<'_>) {
    let (function, table) = (scene.name("inline"), scene.name("table"));
    let bind = if scene.chance.below(4) == 0 { Bind::Global } else { Bind::Weak };
    let comdat = scene.chance.below(8) != 0;
    let bind = if comdat { bind } else { Bind::Weak };
    let by_section = scene.chance.below(8) == 0;
    for at in 0..scene.objects.len() {
        let value = number(scene.chance);
        let object = &mut scene.objects[at];
        let flags = ALLOC | IN_GROUP;
        let data = object.section(&format!(".rodata.{table}"), PROGBITS, flags, 4, value.to_le_bytes().to_vec());
        let text = object.section(
            &format!(".text.{function}"),
            PROGBITS,
            flags | EXEC,
            16,
            vec![0x8b, 0x05, 0, 0, 0, 0, 0xc3],
        );
        let symbol = object.define(&table, Bind::Weak, data, 0, 4, 1);
        object.object.sections[text].relas.push(Rela { offset: 2, kind: kind::PC32, symbol, addend: -4 });
        let called = object.define(&function, bind, text, 0, 7, 2);
        let signature = if by_section { object.symbol("", Bind::Local, Home::Section(text), 0, 0, 3) } else { called };
        object.object.groups.push(Group { signature, comdat, members: vec![text, data] });
        object.call(kind::PLT32, called);
        object.load(scene.chance, symbol);
    }
}

/// The older form of groups.
fn linkonce(scene: &mut Scene<'_>) {
    let name = scene.name("once");
    for at in 0..scene.objects.len() {
        let value = number(scene.chance);
        let object = &mut scene.objects[at];
        let text = object.section(&format!(".gnu.linkonce.t.{name}"), PROGBITS, ALLOC | EXEC, 16, constant(value));
        let symbol = object.define(&name, Bind::Weak, text, 0, 6, 2);
        object.call(kind::PLT32, symbol);
    }
}

/// The same number under one name in several objects.
fn absolute(scene: &mut Scene<'_>) {
    let (name, value) = (scene.name("number"), wide(scene.chance.below(1 << 30)));
    for at in 0..scene.objects.len() {
        let defines = scene.chance.below(2) == 0 || at == 0;
        let object = &mut scene.objects[at];
        let symbol = match defines {
            true => object.symbol(&name, Bind::Global, Home::Absolute, value, 0, 0),
            false => object.undefined(&name),
        };
        if scene.chance.below(2) == 0 {
            object.emit(&[0xb8]);
            object.field(kind::ABS32, symbol, i64::try_from(at).unwrap() - 2);
        } else {
            object.emit(&[0x48, 0x8b, 0x05]);
            object.field(kind::GOTPCREL, symbol, -4);
        }
        object.add();
    }
}

/// Several names of one place, and names in the middle and at the end of a variable.
fn aliases(scene: &mut Scene<'_>) {
    let owner = scene.any();
    let values: Vec<u8> = (0..5).flat_map(|_| number(scene.chance).to_le_bytes()).collect();
    let names: Vec<String> = (0..5).map(|at| scene.name(&format!("alias{at}_"))).collect();
    let object = &mut scene.objects[owner];
    let data = object.section(".data", PROGBITS, ALLOC | WRITE, 8, values);
    for (name, (bind, value, size)) in names.iter().zip([
        (Bind::Global, 0, 20),
        (Bind::Weak, 0, 4),
        (Bind::Global, 4, 0),
        (Bind::Weak, 8, 1000),
        (Bind::Global, 20, 0),
    ]) {
        object.define(name, bind, data, value, size, 1);
    }
    for at in 0..scene.objects.len() {
        for (name, addend) in names.iter().zip([0, 4, 8, 8, -4]) {
            let object = &mut scene.objects[at];
            let symbol = object.undefined(name);
            object.emit(&[0x8b, 0x05]);
            object.field(kind::PC32, symbol, addend - 4);
            object.add();
        }
    }
}

/// Constructors of all priorities, in both forms: each multiplies and adds, so that their order counts.
fn constructors(scene: &mut Scene<'_>) {
    let name = scene.name("constructed");
    let owner = scene.any();
    let bss = scene.objects[owner].section(".bss", NOBITS, ALLOC | WRITE, 4, Vec::new());
    scene.objects[owner].object.sections[bss].zeros = 4;
    scene.objects[owner].define(&name, Bind::Global, bss, 0, 4, 1);
    for at in 0..scene.objects.len() {
        for _ in 0..1 + scene.chance.below(3) {
            let value = number(scene.chance);
            let priority = scene.chance.below(65536);
            let (section, sort) = match scene.chance.below(6) {
                0 => (format!(".init_array.{priority:05}"), INIT_ARRAY),
                1 => (format!(".init_array.{priority:05}"), PROGBITS),
                2 => (".ctors".to_owned(), PROGBITS),
                3 => (format!(".ctors.{priority:05}"), PROGBITS),
                _ => (".init_array".to_owned(), INIT_ARRAY),
            };
            let object = &mut scene.objects[at];
            let counter = object.undefined(&name);
            // mov c(%rip),%eax; imul $7,%eax,%eax; add $value,%eax; mov %eax,c(%rip); ret
            let mut code = vec![0x8b, 0x05, 0, 0, 0, 0, 0x6b, 0xc0, 7, 0x05];
            code.extend(value.to_le_bytes());
            code.extend([0x89, 0x05, 0, 0, 0, 0, 0xc3]);
            let text = object.section(".text", PROGBITS, ALLOC | EXEC, 16, code);
            for offset in [2, 16] {
                let rela = Rela { offset, kind: kind::PC32, symbol: counter, addend: -4 };
                object.object.sections[text].relas.push(rela);
            }
            let function = object.symbol("construct", Bind::Local, Home::Section(text), 0, 21, 2);
            let array = object.section(&section, sort, ALLOC | WRITE, 8, vec![0; 8]);
            let rela = Rela { offset: 0, kind: kind::ABS64, symbol: function, addend: 0 };
            object.object.sections[array].relas.push(rela);
        }
    }
    let user = scene.any();
    let object = &mut scene.objects[user];
    let symbol = object.undefined(&name);
    object.load(scene.chance, symbol);
}

/// A section whose bounds are referenced: its words are added up in their order.
fn bounds(scene: &mut Scene<'_>) {
    let section = scene.name("list");
    let writable = if scene.chance.below(2) == 0 { WRITE } else { 0 };
    for at in 0..scene.objects.len() {
        for _ in 0..1 + scene.chance.below(2) {
            let words: Vec<u8> =
                (0..1 + scene.chance.below(4)).flat_map(|_| number(scene.chance).to_le_bytes()).collect();
            scene.objects[at].section(&section, PROGBITS, ALLOC | writable, 4, words);
        }
    }
    let user = scene.any();
    let object = &mut scene.objects[user];
    let (start, stop) =
        (object.undefined(&format!("__start_{section}")), object.undefined(&format!("__stop_{section}")));
    object.emit(&[0x48, 0x8d, 0x0d]); // lea start(%rip),%rcx
    object.field(kind::PC32, start, -4);
    object.emit(&[0x48, 0x8d, 0x15]); // lea stop(%rip),%rdx
    object.field(kind::PC32, stop, -4);
    // xor %eax,%eax; 1: cmp %rdx,%rcx; jae 2f; imul $13,%eax,%eax; add (%rcx),%eax; add $4,%rcx; jmp 1b; 2:
    object
        .emit(&[0x31, 0xc0, 0x48, 0x39, 0xd1, 0x73, 0x0b, 0x6b, 0xc0, 13, 0x03, 0x01, 0x48, 0x83, 0xc1, 4, 0xeb, 0xf0]);
    object.add();
}

/// Pointers in data, absolute and relative, of 64 bits and of 32.
fn pointers(scene: &mut Scene<'_>) {
    let (owner, user) = (scene.any(), scene.any());
    let (target, table) = (scene.name("pointed"), scene.name("pointers"));
    let value = number(scene.chance);
    let at = scene.objects[owner].section(".rodata", PROGBITS, ALLOC, 4, value.to_le_bytes().to_vec());
    scene.objects[owner].define(&target, Bind::Global, at, 0, 4, 1);
    let object = &mut scene.objects[user];
    let symbol = object.undefined(&target);
    let (relocation, loads): (u32, &[u8]) = match scene.chance.below(4) {
        // mov (%rcx),%rax
        0 => (kind::ABS64, &[0x48, 0x8b, 0x01]),
        // mov (%rcx),%eax
        1 => (kind::ABS32, &[0x8b, 0x01]),
        // movslq (%rcx),%rax; add %rcx,%rax
        2 => (kind::PC32, &[0x48, 0x63, 0x01, 0x48, 0x01, 0xc8]),
        // mov (%rcx),%rax; add %rcx,%rax
        _ => (kind::PC64, &[0x48, 0x8b, 0x01, 0x48, 0x01, 0xc8]),
    };
    let section = if scene.chance.below(2) == 0 { ".data" } else { ".data.rel.ro.local" };
    let data = object.section(section, PROGBITS, ALLOC | WRITE, 8, vec![0; 16]);
    object.object.sections[data].relas.push(Rela { offset: 8, kind: relocation, symbol, addend: 0 });
    let place = object.define(&table, Bind::Global, data, 8, 8, 1);
    object.emit(&[0x48, 0x8d, 0x0d]);
    object.field(kind::PC32, place, -4);
    object.emit(loads);
    object.emit(&[0x8b, 0x00]);
    object.add();
}

/// Sizes of symbols.
fn sizes(scene: &mut Scene<'_>) {
    let name = scene.name("sized");
    let size = wide(scene.chance.below(100_000));
    let at = scene.any();
    let object = &mut scene.objects[at];
    let data = object.section(".data", PROGBITS, ALLOC | WRITE, 8, vec![0; 8]);
    let symbol = object.define(&name, Bind::Global, data, 0, size, 1);
    object.emit(&[0xb8]);
    object.field(kind::SIZE32, symbol, 3);
    object.add();
    let table = object.section(".data", PROGBITS, ALLOC | WRITE, 8, vec![0; 8]);
    object.object.sections[table].relas.push(Rela { offset: 0, kind: kind::SIZE64, symbol, addend: -1 });
    let place = object.symbol("size", Bind::Local, Home::Section(table), 0, 8, 1);
    object.load(scene.chance, place);
}

/// Hidden, internal and protected definitions, used by other objects of the set.
fn visibility(scene: &mut Scene<'_>) {
    let (owner, user) = (scene.any(), scene.any());
    let name = scene.name("seen");
    let (of_owner, of_user) = (scene.chance.below(4), scene.chance.below(4));
    let value = number(scene.chance);
    let object = &mut scene.objects[owner];
    let text = object.section(".text", PROGBITS, ALLOC | EXEC, 16, constant(value));
    let symbol = object.define(&name, Bind::Global, text, 0, 6, 2);
    object.object.symbols[symbol].visibility = u8::try_from(of_owner).unwrap();
    let object = &mut scene.objects[user];
    let symbol = object.undefined(&name);
    if user != owner {
        // A reference cannot be protected, and may have any other visibility.
        object.object.symbols[symbol].visibility = u8::try_from(of_user % 3).unwrap();
    }
    object.call(kind::PLT32, symbol);
}

/// STB_GNU_UNIQUE variables in groups.
fn unique(scene: &mut Scene<'_>) {
    let name = scene.name("unique");
    for at in 0..scene.objects.len() {
        let value = number(scene.chance);
        let object = &mut scene.objects[at];
        let section = format!(".data.{name}");
        let data = object.section(&section, PROGBITS, ALLOC | WRITE | IN_GROUP, 4, value.to_le_bytes().to_vec());
        let symbol = object.define(&name, Bind::Unique, data, 0, 4, 1);
        object.object.groups.push(Group { signature: symbol, comdat: true, members: vec![data] });
        object.emit(&[0xff, 0x05]); // incl sym(%rip)
        object.field(kind::PC32, symbol, -4);
        object.load(scene.chance, symbol);
    }
}

/// An indirect function, whose resolver selects another function.
fn indirect(scene: &mut Scene<'_>) {
    let (owner, user) = (scene.any(), scene.any());
    let name = scene.name("indirect");
    let value = number(scene.chance);
    let object = &mut scene.objects[owner];
    let picked = object.section(".text", PROGBITS, ALLOC | EXEC, 16, constant(value));
    let picked = object.symbol("picked", Bind::Local, Home::Section(picked), 0, 6, 2);
    // lea picked(%rip),%rax; ret
    let resolver = object.section(".text", PROGBITS, ALLOC | EXEC, 16, vec![0x48, 0x8d, 0x05, 0, 0, 0, 0, 0xc3]);
    object.object.sections[resolver].relas.push(Rela { offset: 3, kind: kind::PC32, symbol: picked, addend: -4 });
    object.define(&name, Bind::Global, resolver, 0, 8, 10);
    let object = &mut scene.objects[user];
    let symbol = object.undefined(&name);
    object.call(kind::PLT32, symbol);
}

/// Parts without an effect: sections for tools, excluded sections, empty sections, debug information that refers to
/// code.
fn harmless(scene: &mut Scene<'_>) {
    for at in 0..scene.objects.len() {
        let which = scene.chance.below(7);
        let object = &mut scene.objects[at];
        let mut section = |name, kind, flags, align, data| {
            object.section(name, kind, flags, align, data);
        };
        match which {
            0 => section(".llvm_addrsig", ADDRSIG, EXCLUDE, 1, vec![1, 2]),
            1 => section(".excluded", PROGBITS, ALLOC | EXCLUDE, 16, vec![0xff; 40]),
            2 => section(".text", PROGBITS, ALLOC | EXEC, 256, Vec::new()),
            3 => section(".comment", PROGBITS, MERGE | STRINGS, 1, b"\0odd\0".to_vec()),
            4 => {
                let debug = object.section(".debug_odd", PROGBITS, 0, 1, vec![0; 16]);
                let text = object.section(".text", PROGBITS, ALLOC | EXEC, 1, constant(1));
                let local = object.symbol("", Bind::Local, Home::Section(text), 0, 0, 3);
                let rela = Rela { offset: 3, kind: kind::ABS64, symbol: local, addend: 2 };
                object.object.sections[debug].relas.push(rela);
            }
            5 => section(".data", NOBITS, ALLOC | WRITE, 4096, Vec::new()),
            _ => section(
                ".note.odd",
                NOTE,
                ALLOC,
                4,
                [4, 0, 0, 0, 4, 0, 0, 0, 1, 0, 0, 0, b'o', b'd', b'd', 0, 7, 0, 0, 0].to_vec(),
            ),
        }
    }
}

/// Functions with NOPs at their entries and before them, and the records of these functions, in sections that are
/// linked to the code's sections.
fn entries(scene: &mut Scene<'_>) {
    let at = scene.any();
    let (count, value) = (1 + scene.chance.below(16), number(scene.chance));
    let before = scene.chance.below(count + 1);
    let is_named = scene.chance.below(2) == 0;
    let endbr: &[u8] = if scene.chance.below(2) == 0 { &[0xf3, 0x0f, 0x1e, 0xfa] } else { &[] };
    let name = scene.name("entry");
    let object = &mut scene.objects[at];
    let code = [&vec![0x90; before][..], endbr, &vec![0x90; count - before], &constant(value)].concat();
    let text = object.section(&format!(".text.{name}"), PROGBITS, ALLOC | EXEC, 16, code);
    let entry = wide(before);
    let symbol = match is_named {
        true => object.define(&name, Bind::Global, text, entry, 0, 2),
        // As `strip --strip-unneeded` leaves a static function: its row has its start address.
        false => object.symbol("", Bind::Local, Home::Section(text), 0, 0, 3),
    };
    let section = match is_named {
        true => object.symbol("", Bind::Local, Home::Section(text), 0, 0, 3),
        false => symbol,
    };
    if !is_named {
        row(object, section, entry, wide(endbr.len() + count - before + 6));
    }
    let record = if before == 0 { wide(endbr.len()) } else { 0 };
    let table = object.section("__patchable_function_entries", PROGBITS, ALLOC | WRITE | LINK_ORDER, 8, vec![0; 8]);
    object.object.sections[table].link = Some(text);
    let addend = i64::try_from(record).unwrap();
    object.object.sections[table].relas.push(Rela { offset: 0, kind: kind::ABS64, symbol: section, addend });
    object.emit(&[0xe8]);
    object.field(kind::PC32, symbol, if is_named { -4 } else { i64::try_from(entry).unwrap() - 4 });
    object.add();
}

/// Call frame information of one function.
fn row(object: &mut Growing, section: usize, start: u64, len: u64) {
    let mut frames: Vec<u8> =
        vec![20, 0, 0, 0, 0, 0, 0, 0, 1, b'z', b'R', 0, 1, 0x78, 16, 1, 0x1b, 0x0c, 7, 8, 0x90, 1, 0, 0];
    frames.extend([16, 0, 0, 0, 28, 0, 0, 0, 0, 0, 0, 0]);
    frames.extend(u32::try_from(len).unwrap().to_le_bytes());
    frames.extend([0; 4]);
    let at = object.section(".eh_frame", PROGBITS, ALLOC, 8, frames);
    let addend = i64::try_from(start).unwrap();
    object.object.sections[at].relas.push(Rela { offset: 32, kind: kind::PC32, symbol: section, addend });
}

/// Rows, and terminators of a section of rows, in any order.
fn frames(scene: &mut Scene<'_>) {
    for at in 0..scene.objects.len() {
        let value = number(scene.chance);
        let ends = scene.chance.below(3);
        let object = &mut scene.objects[at];
        let text = object.section(".text", PROGBITS, ALLOC | EXEC, 16, constant(value));
        let section = object.symbol("", Bind::Local, Home::Section(text), 0, 0, 3);
        if ends != 2 {
            row(object, section, 0, 6);
        }
        if ends != 0 {
            let kept = object.object.sections.iter().rposition(|section| section.name == ".eh_frame");
            match kept {
                Some(kept) => object.object.sections[kept].data.extend([0; 4]),
                None => {
                    object.section(".eh_frame", PROGBITS, ALLOC, 4, vec![0; 4]);
                }
            }
        }
        object.emit(&[0xe8]);
        object.field(kind::PC32, section, -4);
        object.add();
    }
}

/// References to sections instead of symbols, with addends in both directions, and local symbols of one name.
fn section_symbols(scene: &mut Scene<'_>) {
    for at in 0..scene.objects.len() {
        let values: Vec<u8> = (0..4).flat_map(|_| number(scene.chance).to_le_bytes()).collect();
        let which = scene.chance.below(4);
        let object = &mut scene.objects[at];
        let data = object.section(".data", PROGBITS, ALLOC | WRITE, 4, values);
        let section = object.symbol("", Bind::Local, Home::Section(data), 0, 0, 3);
        let last = object.symbol("local", Bind::Local, Home::Section(data), 12, 4, 1);
        object.emit(&[0x8b, 0x05]);
        object.field(kind::PC32, section, 4 * i64::try_from(which).unwrap() - 4);
        object.add();
        object.emit(&[0x8b, 0x05]);
        object.field(kind::PC32, last, -4 * i64::try_from(which).unwrap() - 4);
        object.add();
    }
}

/// Calls and jumps by way of the GOT, in all forms that are made direct.
fn calls(scene: &mut Scene<'_>) {
    let (owner, user) = (scene.any(), scene.any());
    let name = scene.name("called");
    let value = number(scene.chance);
    let text = scene.objects[owner].section(".text", PROGBITS, ALLOC | EXEC, 16, constant(value));
    scene.objects[owner].define(&name, Bind::Global, text, 0, 6, 2);
    let object = &mut scene.objects[user];
    let symbol = object.undefined(&name);
    object.emit(&[0xff, 0x15]); // call *sym@GOTPCREL(%rip)
    object.field(if scene.chance.below(2) == 0 { kind::GOTPCRELX } else { kind::GOTPCREL }, symbol, -4);
    object.add();
    // A function that ends in a jump.
    let jump = object.section(".text.jump", PROGBITS, ALLOC | EXEC, 1, vec![0xff, 0x25, 0, 0, 0, 0]);
    object.object.sections[jump].relas.push(Rela { offset: 2, kind: kind::GOTPCRELX, symbol, addend: -4 });
    let jump = object.symbol("jump", Bind::Local, Home::Section(jump), 0, 6, 2);
    object.call(kind::PLT32, jump);
}

/// Strings that a linker may merge: their contents stay.
fn strings(scene: &mut Scene<'_>) {
    for at in 0..scene.objects.len() {
        let letter = b'a' + u8::try_from(scene.chance.below(20)).unwrap();
        let object = &mut scene.objects[at];
        let text = [&[letter; 7][..], &[0, letter + 1, letter + 2, letter + 3, letter + 4, 0]].concat();
        let data = object.section(".rodata.str1.1", PROGBITS, ALLOC | MERGE | STRINGS, 1, text);
        object.object.sections[data].entry_size = 1;
        let symbol = object.symbol("string", Bind::Local, Home::Section(data), 8, 0, 1);
        object.load(scene.chance, symbol);
    }
}
