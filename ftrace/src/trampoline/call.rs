//! Tracers: what they are told, and how they are called.

use std::ffi::c_void;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::sync::Arc;

use modload_edit::Addr;

use super::Function;
use super::sets::{Callback, Registers, Saved, Set};

/// Hears of each call of the functions that it is for, in the thread that makes the call, before the function begins.
///
/// Functions that are called from within are not shown to anybody: each thread is in one tracer at a time. A panic ends here, and
/// is an error in the log. A tracer must not end its thread, nor throw what is no panic; where threads are cancelled
/// (pthread_cancel(3)), it calls nothing that is a cancellation point.
pub trait Tracer: Send + Sync + 'static {
    /// A function is being called.
    fn called(&self, call: &Call<'_>);
}

impl<F: Fn(&Call<'_>) + Send + Sync + 'static> Tracer for F {
    fn called(&self, call: &Call<'_>) {
        self(call);
    }
}

/// Says where calls of a function go on: Linux's ftrace_ops with `FTRACE_OPS_FL_IPMODIFY`.
pub trait Redirect: Send + Sync + 'static {
    /// A function is being called: where it goes on instead of behind its site, with all registers and its stack as they are.
    /// `None`: where it would.
    fn redirect(&self, call: &Call<'_>) -> Option<Addr>;
}

/// A [`Redirect`] that is trusted.
#[derive(Debug)]
pub struct Redirecting {
    pub(crate) member: Member,
}

impl Redirecting {
    /// Trusts one.
    ///
    /// # Safety
    /// Wherever it sends calls of a function there is code that may be entered with that function's arguments and its stack, and
    /// that stays for as long as a thread may come there.
    #[must_use]
    pub unsafe fn new(redirect: impl Redirect) -> Redirecting {
        Redirecting { member: Member::redirect(redirect, Saved::Arguments) }
    }
}

/// A call of a traced function.
pub struct Call<'a> {
    function: &'a Function,
    parent: u64,
    registers: Option<&'a Registers>,
}

impl Call<'_> {
    /// The function's entry.
    #[must_use]
    pub fn ip(&self) -> Addr {
        self.function.ip()
    }

    /// Where it will return to.
    #[must_use]
    pub fn parent(&self) -> Addr {
        Addr::new(self.parent)
    }

    /// Its module; `vmlinux` for the host's own.
    #[must_use]
    pub fn module(&self) -> &str {
        &self.function.module
    }

    /// Its name, escaped.
    #[must_use]
    pub fn symbol(&self) -> &str {
        &self.function.name
    }

    /// The registers at its entry, if the tracer has asked for them.
    #[must_use]
    pub fn registers(&self) -> Option<&Registers> {
        self.registers
    }
}

impl fmt::Debug for Call<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} [{}]", self.symbol(), self.module())
    }
}

/// One of those whom a function's calls are shown to.
#[derive(Clone)]
pub(crate) struct Member {
    call: Callback,
    data: *const c_void,
    pub(crate) saved: Saved,
    /// What `data` points to.
    _owner: Arc<dyn Owner>,
}

/// Anything that is kept.
trait Owner: Send + Sync {}
impl<T: Send + Sync> Owner for T {}

// SAFETY: `data` points to what `_owner` owns, which may be shared and sent.
unsafe impl Send for Member {}
// SAFETY: the same.
unsafe impl Sync for Member {}

impl fmt::Debug for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Member").field("saved", &self.saved).finish_non_exhaustive()
    }
}

impl Member {
    pub(crate) fn tracer<T: Tracer>(tracer: T, saved: Saved) -> Member {
        let owner = Arc::new(tracer);
        let data = Arc::as_ptr(&owner).cast();
        Member { call: called::<T>, data, saved, _owner: owner }
    }

    fn redirect<T: Redirect>(redirect: T, saved: Saved) -> Member {
        let owner = Arc::new(redirect);
        let data = Arc::as_ptr(&owner).cast();
        Member { call: redirected::<T>, data, saved, _owner: owner }
    }
}

/// A set with the members that it calls.
#[derive(Debug)]
pub(crate) struct Group {
    set: Set,
    members: Box<[Member]>,
}

// SAFETY: the set's word is one of the members', or a pointer to `members`.
unsafe impl Send for Group {}
// SAFETY: nothing of it is written.
unsafe impl Sync for Group {}

impl Group {
    /// One member is called straight, several by a list. There is one at least.
    pub(crate) fn new(members: Vec<Member>) -> Box<Group> {
        let one = match &members[..] {
            [one] => Some(Set::new(one.call, one.data)),
            _ => None,
        };
        let set = one.unwrap_or(Set::new(several, ptr::null()));
        let mut group = Box::new(Group { set, members: members.into() });
        if group.members.len() != 1 {
            group.set = Set::new(several, ptr::from_ref(&group.members).cast());
        }
        group
    }

    /// What code in assembler knows it by.
    pub(crate) fn set(&self) -> *const Set {
        &raw const self.set
    }

    /// Which registers its members want.
    pub(crate) fn saved(&self) -> Saved {
        self.members.iter().map(|member| member.saved).max().unwrap_or(Saved::Arguments)
    }
}

/// What a callback is given.
///
/// # Safety
/// The pointers are those that the code of sets passes: a function, which lives for ever, and null or registers on the stack.
unsafe fn call<'a>(function: *const Function, parent: u64, registers: *const Registers) -> Call<'a> {
    // SAFETY: the caller's.
    let function = unsafe { &*function };
    // SAFETY: the caller's.
    let registers = unsafe { registers.as_ref() };
    Call { function, parent, registers }
}

#[cold]
fn failed(function: *const Function) {
    // SAFETY: a function lives for ever.
    let function = unsafe { &*function };
    tracing::error!(module = %function.module, function = %function.name, "a tracer has panicked");
}

unsafe extern "C-unwind" fn called<T: Tracer>(
    data: *const c_void,
    function: *const Function,
    parent: u64,
    registers: *const Registers,
) -> u64 {
    // SAFETY: what the member was made with, which its set keeps for as long as somebody is in it.
    let tracer = unsafe { &*data.cast::<T>() };
    // SAFETY: called by the code of sets, or by `several`.
    let call = unsafe { call(function, parent, registers) };
    if catch_unwind(AssertUnwindSafe(|| tracer.called(&call))).is_err() {
        failed(function);
    }
    0
}

unsafe extern "C-unwind" fn redirected<T: Redirect>(
    data: *const c_void,
    function: *const Function,
    parent: u64,
    registers: *const Registers,
) -> u64 {
    // SAFETY: as in `called`.
    let redirect = unsafe { &*data.cast::<T>() };
    // SAFETY: as in `called`.
    let call = unsafe { call(function, parent, registers) };
    catch_unwind(AssertUnwindSafe(|| redirect.redirect(&call))).map_or_else(
        |_| {
            failed(function);
            0
        },
        |to| to.map_or(0, Addr::get),
    )
}

unsafe extern "C-unwind" fn several(
    data: *const c_void,
    function: *const Function,
    parent: u64,
    registers: *const Registers,
) -> u64 {
    // SAFETY: the members of the group whose set this is.
    let members = unsafe { &*data.cast::<Box<[Member]>>() };
    let mut to = 0;
    for member in members {
        // SAFETY: the member's own function, with its own word and what the code of sets has passed.
        let answer = unsafe { (member.call)(member.data, function, parent, registers) };
        if answer != 0 {
            to = answer;
        }
    }
    to
}
