//! The functions that every host exports to modules for live patches. `klp_enable_patch` is not among them, because it
//! must know whose module calls.

use std::ffi::c_void;
use std::ptr;

use modload_edit::{Addr, index, wide};

use crate::previous_states;
use crate::shadow;
use crate::structs::{ShadowConstructor, ShadowDestructor};
use crate::transition::checkpoint;

/// `struct klp_state *klp_get_prev_state(unsigned long id)`.
extern "C" fn get_prev_state(id: u64) -> *mut c_void {
    previous_states::newest(id).map_or(ptr::null_mut(), |at| ptr::with_exposed_provenance_mut(index(at.get())))
}

/// `bool klp_checkpoint(void)`.
extern "C" fn klp_checkpoint() -> bool {
    checkpoint()
}

/// Returns the names and addresses of the exported functions.
#[must_use]
pub fn exports() -> [(&'static str, Addr); 7] {
    type Checkpoint = extern "C" fn() -> bool;
    type State = extern "C" fn(u64) -> *mut c_void;
    type Get = extern "C" fn(*mut c_void, u64) -> *mut c_void;
    type Make =
        extern "C-unwind" fn(*mut c_void, u64, usize, u32, Option<ShadowConstructor>, *mut c_void) -> *mut c_void;
    type Free = extern "C-unwind" fn(*mut c_void, u64, Option<ShadowDestructor>);
    type FreeAll = extern "C-unwind" fn(u64, Option<ShadowDestructor>);
    let address = |pointer: *const ()| Addr::new(wide(pointer.expose_provenance()));
    #[expect(clippy::as_conversions, reason = "the only way from a function pointer to its address")]
    let [state, get] = [get_prev_state as State as *const (), shadow::get as Get as *const ()];
    #[expect(clippy::as_conversions, reason = "as above")]
    let passed = klp_checkpoint as Checkpoint as *const ();
    #[expect(clippy::as_conversions, reason = "as above")]
    let [alloc, get_or_alloc] = [shadow::alloc as Make as *const (), shadow::get_or_alloc as Make as *const ()];
    #[expect(clippy::as_conversions, reason = "as above")]
    let [free, free_all] = [shadow::free as Free as *const (), shadow::free_all as FreeAll as *const ()];
    [
        ("klp_checkpoint", address(passed)),
        ("klp_get_prev_state", address(state)),
        ("klp_shadow_get", address(get)),
        ("klp_shadow_alloc", address(alloc)),
        ("klp_shadow_get_or_alloc", address(get_or_alloc)),
        ("klp_shadow_free", address(free)),
        ("klp_shadow_free_all", address(free_all)),
    ]
}
