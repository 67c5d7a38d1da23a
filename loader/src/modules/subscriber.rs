//! Subscribers: the calls that they receive, and their refusals.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use modload_notifier::ChainMember;

use crate::modules::coming::Coming;
use crate::modules::module::Module;
use crate::vocabulary::module_id::ModuleId;

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

/// Receives calls about modules. No lock is held during a call: a subscriber may load, unload, join and leave.
///
/// A subscriber receives calls only for modules whose COMING call this subscriber has accepted. A panic is a refusal in
/// `coming`, and is logged in `live` and `going`.
pub trait Subscriber: Send + Sync {
    /// Called when the module is COMING: formed and relocated. The text is not published, and no code of the module has
    /// run.
    ///
    /// # Errors
    /// A [`Refusal`] ends the load. The subscribers that have accepted are called with GOING.
    fn coming(&self, module: &mut Coming<'_>) -> Result<(), Refusal> {
        let _ = module;
        Ok(())
    }

    /// Called when the module's text is published, before any code of the module runs. Only for subscribers that have
    /// asked for this call in `coming` ([`Coming::tell_when_published`]), in coming order.
    ///
    /// # Errors
    /// A [`Refusal`] ends the load. All subscribers that have accepted are called with GOING.
    fn published(&self, module: &Module) -> Result<(), Refusal> {
        let _ = module;
        Ok(())
    }

    /// Called when the module is LIVE: `init` has returned.
    fn live(&self, module: &Module) {
        let _ = module;
    }

    /// Returns code elsewhere that replaces functions of the module. No thread may be in that code when the module is
    /// freed. Called only for modules marked by [`Module::expect_stand_ins`].
    fn stand_ins(&self, module: &Module) -> Vec<Range<u64>> {
        let _ = module;
        Vec::new()
    }

    /// Called when the module is GOING: `exit` has returned, or was not called because the load failed.
    fn going(&self, module: &Module) {
        let _ = module;
    }
}

/// A subscriber as a member of the chains.
pub(crate) struct Seat {
    pub(crate) name: Arc<str>,
    pub(crate) subscriber: Arc<dyn Subscriber>,
    /// The module that contains the subscriber's code, if a module does.
    pub(crate) owner: Option<ModuleId>,
}

/// The subscribers that have accepted a module's COMING, in coming order.
#[derive(Default)]
pub(crate) struct Accepted {
    pub(crate) members: Vec<ChainMember<Arc<Seat>>>,
    /// The subset of subscribers to be called when the text is published.
    pub(crate) when_published: Vec<ChainMember<Arc<Seat>>>,
}

impl fmt::Debug for Accepted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.members.iter().map(|member| &member.subscriber.name)).finish()
    }
}
