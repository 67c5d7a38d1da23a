//! Events in order: a value that can be printed, compared and snapshotted.

use std::fmt;
use std::sync::Arc;
use std::thread::ThreadId;

#[cfg(feature = "serde")]
use serde::Serialize;
#[cfg(feature = "serde")]
use serde::ser::{SerializeMap, Serializer};

use crate::prepare::policy::{Rule, Verdict};
use crate::vocabulary::stage::Stage;
use crate::vocabulary::state::State;

/// One thing that happened to a module.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(Serialize))]
pub struct Event {
    /// Number of the event in the timeline, from 1.
    pub seq: u64,
    /// The module.
    pub module: Arc<str>,
    /// The kind of event.
    #[cfg_attr(feature = "serde", serde(flatten))]
    pub kind: EventKind,
}

/// The result of a notification.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Outcome {
    /// The subscriber agreed, or was only informed.
    Ok,
    /// The subscriber refused, with this reason.
    Refused(String),
    /// The subscriber panicked, with this message. In `coming`, a panic is a refusal.
    Panicked(String),
}

#[cfg(feature = "serde")]
impl Serialize for Outcome {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::Ok => f.write_str("ok"),
            Outcome::Refused(reason) => write!(f, "refused: {reason}"),
            Outcome::Panicked(message) => write!(f, "panicked: {message}"),
        }
    }
}

/// The kinds of events. Events contain no addresses and no times.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(Serialize))]
#[cfg_attr(feature = "serde", serde(tag = "event", rename_all = "snake_case"))]
#[non_exhaustive]
pub enum EventKind {
    /// The module has this state now.
    State {
        /// The new state.
        state: State,
    },
    /// A stage is done.
    Stage {
        /// The stage.
        stage: Stage,
        /// Counts that describe the work of the stage.
        #[cfg_attr(feature = "serde", serde(serialize_with = "map"))]
        detail: Vec<(&'static str, u64)>,
    },
    /// A subscriber was called.
    Notify {
        /// `coming` or `going`. LIVE is announced in the order of the coming chain.
        chain: &'static str,
        /// The state that the subscriber was told.
        state: State,
        /// The subscriber.
        subscriber: Arc<str>,
        /// Priority of the subscriber in this chain.
        priority: i32,
        /// Whether the subscriber is one of the host's own, outside of all priorities.
        #[cfg_attr(feature = "serde", serde(skip_serializing_if = "is_not"))]
        builtin: bool,
        /// The result of the call.
        result: Outcome,
    },
    /// The text is published, readable and executable: `module_enable_ro`.
    Publish,
    /// `init` returned.
    Init {
        /// The returned value.
        result: i32,
    },
    /// `exit` returned.
    Exit,
    /// A rule of the policy was checked.
    Policy {
        /// The rule.
        rule: Rule,
        /// The result.
        verdict: Verdict,
        /// How the module breaks the rule, if at all.
        #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
        reason: Option<String>,
    },
    /// Something that does not stop the load.
    Warning {
        /// A sentence.
        message: String,
    },
    /// A message of live patching or of the module; Linux would write the message to the kernel log.
    Log {
        /// The message.
        message: String,
    },
    /// The load failed.
    Failed {
        /// In which stage.
        stage: Stage,
        /// The reason, as a sentence.
        error: String,
    },
    /// Nothing of the module is left.
    Freed,
    /// The module is unloaded, and the memory stays until these threads have left the text. Snapshots should not have
    /// this event: a module that ends its threads in `exit` is freed at once.
    Quarantined {
        /// Number of threads that are in the text, or may be; 0 if unknown.
        threads: usize,
    },
}

#[cfg(feature = "serde")]
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
fn is_not(flag: &bool) -> bool {
    !flag
}

#[cfg(feature = "serde")]
fn map<S: Serializer>(detail: &[(&'static str, u64)], serializer: S) -> Result<S::Ok, S::Error> {
    let mut map = serializer.serialize_map(Some(detail.len()))?;
    for (key, value) in detail {
        map.serialize_entry(key, value)?;
    }
    map.end()
}

impl fmt::Display for EventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EventKind::State { state } => write!(f, "state     {state}"),
            EventKind::Stage { stage, detail } => {
                write!(f, "stage     {stage}")?;
                let mut mark = ": ";
                for (key, value) in detail {
                    write!(f, "{mark}{key} {value}")?;
                    mark = ", ";
                }
                Ok(())
            }
            EventKind::Notify { chain, state, subscriber, priority, builtin, result } => {
                let builtin = if *builtin { ", builtin" } else { "" };
                write!(f, "notify    {chain} {state} -> {subscriber} ({priority}{builtin}): {result}")
            }
            EventKind::Publish => f.write_str("publish"),
            EventKind::Init { result } => write!(f, "init      returned {result}"),
            EventKind::Exit => f.write_str("exit"),
            EventKind::Policy { rule, verdict, reason: None } => write!(f, "policy    {rule}: {verdict}"),
            EventKind::Policy { rule, verdict, reason: Some(reason) } => {
                write!(f, "policy    {rule}: {verdict}: {reason}")
            }
            EventKind::Warning { message } => write!(f, "warning   {message}"),
            EventKind::Log { message } => write!(f, "log       {message}"),
            EventKind::Failed { stage, error } => write!(f, "failed    {stage}: {error}"),
            EventKind::Freed => f.write_str("freed"),
            EventKind::Quarantined { threads } => write!(f, "quarantined: {threads} threads are in its text"),
        }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<12} {}", self.module, self.kind)
    }
}

/// A sequence of events. `Display` prints one line an event; each event serialises to one JSON object.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
#[cfg_attr(feature = "serde", derive(Serialize))]
#[cfg_attr(feature = "serde", serde(transparent))]
pub struct Timeline {
    /// The events, by their numbers.
    pub events: Vec<Event>,
}

impl Timeline {
    /// The events of one module, with their numbers.
    #[must_use]
    pub fn of(&self, module: &str) -> Timeline {
        Timeline { events: self.events.iter().filter(|event| &*event.module == module).cloned().collect() }
    }

    /// Returns only the events that describe the order of notifications: states, notifications, publish, init, exit,
    /// failed and freed, without stages, policies and warnings.
    #[must_use]
    pub fn order(&self) -> Timeline {
        let tells = |event: &&Event| {
            !matches!(event.kind, EventKind::Stage { .. } | EventKind::Policy { .. } | EventKind::Warning { .. })
        };
        Timeline { events: self.events.iter().filter(tells).cloned().collect() }
    }
}

impl fmt::Display for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.events.iter().try_for_each(|event| writeln!(f, "{event}"))
    }
}

/// A function that is called for each event.
pub(crate) type EventListener = dyn Fn(&Event) + Send + Sync;

/// A receiver of events.
pub(crate) enum Ear {
    /// Keeps the events of all threads.
    Timeline(Timeline),
    /// Receives the events of one thread, with the number of earlier events.
    Listener(ThreadId, u64, Arc<EventListener>),
}

impl Ear {
    pub(crate) fn timeline(&self) -> Option<&Timeline> {
        match self {
            Ear::Timeline(timeline) => Some(timeline),
            Ear::Listener(..) => None,
        }
    }
}
