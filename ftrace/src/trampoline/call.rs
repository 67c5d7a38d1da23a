//! Tracers: their interface, and how they are called.

use std::ffi::c_void;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::sync::Arc;

use modload_edit::Addr;

use super::function::{Callback, FunctionRecord, TracerSet};
use super::variants::SavedRegisters;
use super::x86_64::CallRegisters;

/// A tracer, which is notified of each call of its functions, in the thread that makes the call, before the function
/// begins.
///
/// Calls that are made from within a tracer are not shown to any tracer: each thread is in at most one tracer at a
/// time. A tracer's panic is caught and logged as an error. A tracer must not end its thread, nor throw anything but a
/// panic. If threads are cancelled (pthread_cancel(3)), a tracer must not call a cancellation point.
pub trait Tracer: Send + Sync + 'static {
    /// Handles a call of a function.
    fn called(&self, call: &Call<'_>);
}

impl<F: Fn(&Call<'_>) + Send + Sync + 'static> Tracer for F {
    fn called(&self, call: &Call<'_>) {
        self(call);
    }
}

/// Decides where calls of a function continue: Linux's ftrace_ops with `FTRACE_OPS_FL_IPMODIFY`.
pub trait Redirect: Send + Sync + 'static {
    /// Returns the address at which a call continues instead of behind the function's site, with all registers and the
    /// stack unchanged. `None` leaves the target unchanged.
    fn redirect(&self, call: &Call<'_>) -> Option<Addr>;
}

/// A [`Redirect`] that is trusted.
#[derive(Debug)]
pub struct Redirecting {
    pub(crate) member: TracerMember,
}

impl Redirecting {
    /// Trusts a [`Redirect`].
    ///
    /// # Safety
    /// At each address to which `redirect` sends calls of a function, there is code that may be entered with that
    /// function's arguments and stack. That code stays as long as a thread may reach it.
    #[must_use]
    pub unsafe fn new(redirect: impl Redirect) -> Redirecting {
        Redirecting { member: TracerMember::redirect(redirect, SavedRegisters::Arguments) }
    }
}

/// A call of a traced function.
pub struct Call<'a> {
    function: &'a FunctionRecord,
    parent: u64,
    registers: Option<&'a CallRegisters>,
}

impl Call<'_> {
    /// Returns the function's entry.
    #[must_use]
    pub fn ip(&self) -> Addr {
        self.function.ip()
    }

    /// Returns the address to which the function will return.
    #[must_use]
    pub fn parent(&self) -> Addr {
        Addr::new(self.parent)
    }

    /// Returns the function's module, or `vmlinux` for the host's own functions.
    #[must_use]
    pub fn module(&self) -> &str {
        &self.function.module
    }

    /// Returns the function's name, escaped.
    #[must_use]
    pub fn symbol(&self) -> &str {
        &self.function.name
    }

    /// Returns the registers at the function's entry, if the tracer has requested them.
    #[must_use]
    pub fn registers(&self) -> Option<&CallRegisters> {
        self.registers
    }
}

impl fmt::Debug for Call<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} [{}]", self.symbol(), self.module())
    }
}

/// A tracer or a redirection of a function's calls.
#[derive(Clone)]
pub(crate) struct TracerMember {
    call: Callback,
    data: *const c_void,
    pub(crate) saved: SavedRegisters,
    /// The owner of the value that `data` points to.
    _owner: Arc<dyn KeptAlive>,
}

/// Any value that is kept alive.
trait KeptAlive: Send + Sync {}
impl<T: Send + Sync> KeptAlive for T {}

// SAFETY: `data` points to a value that `_owner` owns and that may be shared and sent.
unsafe impl Send for TracerMember {}
// SAFETY: the same.
unsafe impl Sync for TracerMember {}

impl fmt::Debug for TracerMember {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TracerMember").field("saved", &self.saved).finish_non_exhaustive()
    }
}

impl TracerMember {
    pub(crate) fn tracer<T: Tracer>(tracer: T, saved: SavedRegisters) -> TracerMember {
        let owner = Arc::new(tracer);
        let data = Arc::as_ptr(&owner).cast();
        TracerMember { call: called::<T>, data, saved, _owner: owner }
    }

    fn redirect<T: Redirect>(redirect: T, saved: SavedRegisters) -> TracerMember {
        let owner = Arc::new(redirect);
        let data = Arc::as_ptr(&owner).cast();
        TracerMember { call: redirected::<T>, data, saved, _owner: owner }
    }
}

/// A set with the members that it calls.
#[derive(Debug)]
pub(crate) struct TracerGroup {
    set: TracerSet,
    members: Box<[TracerMember]>,
}

// SAFETY: the set's word is a member's word, or a pointer to `members`.
unsafe impl Send for TracerGroup {}
// SAFETY: no field is written.
unsafe impl Sync for TracerGroup {}

impl TracerGroup {
    /// Makes a group of at least one member. One member is called directly, several by a list.
    pub(crate) fn new(members: Vec<TracerMember>) -> Box<TracerGroup> {
        let one = match &members[..] {
            [one] => Some(TracerSet::new(one.call, one.data)),
            _ => None,
        };
        let set = one.unwrap_or(TracerSet::new(several, ptr::null()));
        let mut group = Box::new(TracerGroup { set, members: members.into() });
        if group.members.len() != 1 {
            group.set = TracerSet::new(several, ptr::from_ref(&group.members).cast());
        }
        group
    }

    /// Returns the pointer by which assembler code refers to the group.
    pub(crate) fn set(&self) -> *const TracerSet {
        &raw const self.set
    }

    /// Returns the registers that the group's members need.
    pub(crate) fn saved(&self) -> SavedRegisters {
        self.members.iter().map(|member| member.saved).max().unwrap_or(SavedRegisters::Arguments)
    }
}

/// Makes the argument of a callback.
///
/// # Safety
/// The pointers are those that the code of sets passes: a function, which lives for ever, and null or registers on the
/// stack.
unsafe fn call<'a>(function: *const FunctionRecord, parent: u64, registers: *const CallRegisters) -> Call<'a> {
    // SAFETY: the caller's.
    let function = unsafe { &*function };
    // SAFETY: the caller's.
    let registers = unsafe { registers.as_ref() };
    Call { function, parent, registers }
}

#[cold]
fn failed(function: *const FunctionRecord) {
    // SAFETY: a function lives for ever.
    let function = unsafe { &*function };
    tracing::error!(module = %function.module, function = %function.name, "a tracer has panicked");
}

unsafe extern "C-unwind" fn called<T: Tracer>(
    data: *const c_void,
    function: *const FunctionRecord,
    parent: u64,
    registers: *const CallRegisters,
) -> u64 {
    // SAFETY: `data` points to the tracer that the member was made with. The set keeps the tracer as long as a thread
    // is in the set.
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
    function: *const FunctionRecord,
    parent: u64,
    registers: *const CallRegisters,
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
    function: *const FunctionRecord,
    parent: u64,
    registers: *const CallRegisters,
) -> u64 {
    // SAFETY: `data` points to the members of the group that has this set.
    let members = unsafe { &*data.cast::<Box<[TracerMember]>>() };
    let mut to = 0;
    for member in members {
        // SAFETY: this is the member's own function, with its own word and the arguments that the code of sets has
        // passed.
        let answer = unsafe { (member.call)(member.data, function, parent, registers) };
        if answer != 0 {
            to = answer;
        }
    }
    to
}
