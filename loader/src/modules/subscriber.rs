//! Subscribers: what they are told of modules, and what they may refuse.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use modload_notifier::ChainMember;

use crate::modules::coming::Coming;
use crate::modules::module::Module;
use crate::modules::registry::ModuleId;

/// Why a subscriber does not want a module.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refusal {
    /// A sentence.
    pub reason: String,
    /// An error number, if there is a fitting one.
    pub errno: Option<i32>,
}

impl<S: Into<String>> From<S> for Refusal {
    fn from(reason: S) -> Refusal {
        Refusal { reason: reason.into(), errno: None }
    }
}

/// Hears of modules. No lock is held while one of its functions runs: it may load, unload, join and leave.
///
/// Who joined late hears nothing of a module whose COMING it has not accepted. A panic is a refusal in `coming`, and
/// logged in `live` and `going`.
pub trait Subscriber: Send + Sync {
    /// The module is COMING: formed and relocated, its text still to be published, none of its code has run.
    ///
    /// # Errors
    /// A [`Refusal`] ends the load. Those who accepted before are told that the module is GOING.
    fn coming(&self, module: &mut Coming<'_>) -> Result<(), Refusal> {
        let _ = module;
        Ok(())
    }

    /// The module's text is published, and none of its code has run. Told to those only who asked for it in `coming`
    /// ([`Coming::tell_when_published`]), in coming order.
    ///
    /// # Errors
    /// A [`Refusal`] ends the load. Everybody who accepted is told that the module is GOING.
    fn published(&self, module: &Module) -> Result<(), Refusal> {
        let _ = module;
        Ok(())
    }

    /// The module is LIVE: its `init` has returned.
    fn live(&self, module: &Module) {
        let _ = module;
    }

    /// Code elsewhere that stands in for functions of a module: nobody may be in it when the module goes. Asked for
    /// modules only of which somebody has said so ([`Module::expect_stand_ins`]).
    fn stand_ins(&self, module: &Module) -> Vec<Range<u64>> {
        let _ = module;
        Vec::new()
    }

    /// The module is GOING: its `exit` has returned, or it was never called because the load failed.
    fn going(&self, module: &Module) {
        let _ = module;
    }
}

/// A subscriber with what the chains know of it.
pub(crate) struct Seat {
    pub(crate) name: Arc<str>,
    pub(crate) subscriber: Arc<dyn Subscriber>,
    /// The module whose code it is, if it is a module's.
    pub(crate) owner: Option<ModuleId>,
}

/// Who accepted a module's COMING, in coming order.
#[derive(Default)]
pub(crate) struct Accepted {
    pub(crate) members: Vec<ChainMember<Arc<Seat>>>,
    /// Those of them who want to hear when its text is published.
    pub(crate) when_published: Vec<ChainMember<Arc<Seat>>>,
}

impl fmt::Debug for Accepted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.members.iter().map(|member| &member.subscriber.name)).finish()
    }
}
