//! Linux's `klp_enable_patch`, for modules.

use std::ffi::{c_int, c_void};

use modload_edit::{Addr, wide};

use crate::c_api::{EINVAL, owner};
use crate::x86_64::aligned;

/// Returns the name and the address of the function by which a module enables its live patch.
pub(crate) fn export() -> (&'static str, Addr) {
    type Function = extern "C" fn(*const c_void) -> c_int;
    #[expect(clippy::as_conversions, reason = "the only way from a function pointer to its address")]
    let function = enable_patch as Function as *const ();
    ("klp_enable_patch", aligned::entry(Addr::new(wide(function.expose_provenance()))))
}

/// `int klp_enable_patch(struct klp_patch *)`. Must be called from the init of the module whose data holds the patch
/// (else -EINVAL).
extern "C" fn enable_patch(patch: *const c_void) -> c_int {
    let at = Addr::new(wide(patch.expose_provenance()));
    let Some((host, module)) = owner(at) else { return -EINVAL };
    match host.built_in.livepatch.enable_from_init(&host.loader, &module, at) {
        Ok(()) => 0,
        Err(error) => {
            tracing::warn!(module = module.name(), %error, "a live patch is not enabled");
            error.errno().saturating_neg()
        }
    }
}
