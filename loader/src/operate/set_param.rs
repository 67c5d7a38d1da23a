//! Setting parameters of LIVE modules, as writing to `/sys/module/NAME/parameters` does.

use std::fmt;

use thiserror::Error;

use crate::modules::module::{Module, lock};
use crate::vocabulary::escape::escaped;
use crate::vocabulary::param_error::ParamError;
use crate::vocabulary::sentence::sentence;
use crate::vocabulary::state::State;

/// Why the parameter of a LIVE module was not set.
#[derive(Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum SetParamError {
    /// The module has no parameter of this name.
    #[error("{module} has no parameter \"{param}\"")]
    NotFound {
        /// The module.
        module: String,
        /// The requested name, escaped.
        param: String,
    },
    /// The permission bits of the parameter have no write bit.
    #[error(
        "parameter \"{param}\" of {module} has the permission {perm:04o}: it can be set only when {module} is loaded"
    )]
    ReadOnly {
        /// The module.
        module: String,
        /// Name of the parameter.
        param: String,
        /// Permission bits of the parameter.
        perm: u16,
    },
    /// The variable of the parameter is read-only since `init` has returned, or was freed with the init sections.
    #[error("parameter \"{param}\" of {module} cannot be set: its variable {because}")]
    Fixed {
        /// The module.
        module: String,
        /// Name of the parameter.
        param: String,
        /// The reason.
        because: &'static str,
    },
    /// The module is not LIVE.
    #[error("{module}: it is not LIVE, and only a LIVE module's parameters can be set")]
    NotLive {
        /// The module.
        module: String,
    },
    /// The parameter does not accept the value.
    #[error("parameter \"{param}\" of {module}")]
    Value {
        /// The module.
        module: String,
        /// Name of the parameter.
        param: String,
        /// The reason.
        source: ParamError,
    },
}

impl fmt::Debug for SetParamError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&sentence(self))
    }
}

/// The permission bits that allow setting a parameter of a LIVE module: any write bit of Linux's sysfs.
const WRITE: u16 = 0o222;

impl Module {
    /// Sets a parameter of a LIVE module; `None` is valid for bools. If a value of an array is invalid, the values
    /// before this one are set, as in Linux. Only one thread sets parameters at a time, and the module's code may read
    /// meanwhile. For such readers, a string stays at the same address as long as the module is loaded.
    ///
    /// # Errors
    /// [`SetParamError`].
    pub fn set_param(&self, name: &str, value: Option<&str>) -> Result<(), SetParamError> {
        let module = || self.name().to_owned();
        let book = self.registry.lock();
        let core = lock(&self.core);
        let live = book.by_id(self.id).is_some_and(|entry| entry.state == State::Live);
        let core = core.as_ref().filter(|_| live).ok_or_else(|| SetParamError::NotLive { module: module() })?;
        let mut params = lock(&self.params);
        let found = params.iter_mut().find(|param| param.is_named(name));
        let found = found.ok_or_else(|| {
            let param = escaped(name.as_bytes());
            SetParamError::NotFound { module: module(), param }
        })?;
        let param = found.name.clone();
        if found.perm & WRITE == 0 {
            return Err(SetParamError::ReadOnly { module: module(), param, perm: found.perm });
        }
        if let Some(because) = core.why_fixed(found.place) {
            return Err(SetParamError::Fixed { module: module(), param, because });
        }
        let set = found.set(value, &|at, bytes| core.write(at, bytes));
        set.map_err(|source| SetParamError::Value { module: module(), param, source })
    }
}
