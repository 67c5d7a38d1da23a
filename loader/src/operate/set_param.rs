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
    /// There is none of this name.
    #[error("{module} has no parameter \"{param}\"")]
    NotFound {
        /// The module.
        module: String,
        /// What was asked for, escaped.
        param: String,
    },
    /// Its permission bits have no write bit.
    #[error(
        "parameter \"{param}\" of {module} has the permission {perm:04o}: it can be set only when {module} is loaded"
    )]
    ReadOnly {
        /// The module.
        module: String,
        /// Its name.
        param: String,
        /// Its permission bits.
        perm: u16,
    },
    /// Its variable is read-only since `init` has returned, or went with the init sections.
    #[error("parameter \"{param}\" of {module} cannot be set: its variable {because}")]
    Fixed {
        /// The module.
        module: String,
        /// Its name.
        param: String,
        /// Why.
        because: &'static str,
    },
    /// The module is not LIVE.
    #[error("{module}: it is not LIVE, and only a LIVE module's parameters can be set")]
    NotLive {
        /// The module.
        module: String,
    },
    /// The value cannot be taken.
    #[error("parameter \"{param}\" of {module}")]
    Value {
        /// The module.
        module: String,
        /// Its name.
        param: String,
        /// Why.
        source: ParamError,
    },
}

impl fmt::Debug for SetParamError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&sentence(self))
    }
}

/// The permission bits by which a parameter can be set when its module is LIVE: any write bit of Linux's sysfs.
const WRITE: u16 = 0o222;

impl Module {
    /// Sets a parameter of a LIVE module: `None` is for bools. What stands in an array before a value that cannot be
    /// taken is set, as in Linux. One setter at a time; the module's code may be reading meanwhile. A string stays
    /// where it is as long as the module does, for readers.
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
