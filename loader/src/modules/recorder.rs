//! Recordings of events, and functions that are called for each event.

use std::sync::Arc;
use std::thread;

use crate::modules::module::Module;
use crate::modules::registry::Registry;
use crate::modules::timeline::{Ear, Event, EventKind, EventListener, Timeline};

/// Collects the events of all modules of a host, from the creation of the recording until [`Recording::finish`].
#[derive(Debug)]
pub struct Recording {
    registry: &'static Registry,
    id: u64,
}

impl Recording {
    pub(crate) fn start(registry: &'static Registry) -> Recording {
        Recording { registry, id: enter(registry, Ear::Timeline(Timeline::default())) }
    }

    /// Returns the events so far.
    #[must_use]
    pub fn so_far(&self) -> Timeline {
        let state = self.registry.lock();
        let own = state.recordings.iter().find(|(id, _)| *id == self.id);
        own.and_then(|(_, ear)| ear.timeline().cloned()).unwrap_or_default()
    }

    /// Ends the recording.
    #[must_use]
    pub fn finish(self) -> Timeline {
        self.take()
    }

    fn take(&self) -> Timeline {
        match leave(self.registry, self.id) {
            Some(Ear::Timeline(timeline)) => timeline,
            _ => Timeline::default(),
        }
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        self.take();
    }
}

fn enter(registry: &Registry, ear: Ear) -> u64 {
    let mut state = registry.lock();
    let id = state.next_recording;
    state.next_recording += 1;
    state.recordings.push((id, ear));
    registry.count_recordings(state.recordings.len());
    id
}

/// Removes a recording or listener. The caller must drop the result without the lock, because a listener is foreign
/// code.
fn leave(registry: &Registry, id: u64) -> Option<Ear> {
    let mut state = registry.lock();
    let at = state.recordings.iter().position(|(known, _)| *known == id)?;
    let (_, ear) = state.recordings.swap_remove(at);
    registry.count_recordings(state.recordings.len());
    Some(ear)
}

/// Calls a function for each event that this thread causes in the modules of a host. Dropping the value ends the calls.
#[derive(Debug)]
pub struct Listening {
    registry: &'static Registry,
    id: u64,
}

impl Listening {
    pub(crate) fn start(registry: &'static Registry, listener: Arc<EventListener>) -> Listening {
        Listening { registry, id: enter(registry, Ear::Listener(thread::current().id(), 0, listener)) }
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        leave(self.registry, self.id);
    }
}

/// Writes events of one module into the recordings of the registry, if there are any.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Recorder<'a> {
    pub(crate) registry: &'static Registry,
    pub(crate) module: &'a Arc<str>,
}

impl Recorder<'_> {
    /// Records the event that `kind` returns. `kind` is not called without any recording.
    #[inline]
    pub(crate) fn record(self, kind: impl FnOnce() -> EventKind) {
        if self.registry.is_recorded() {
            self.push(&kind());
        }
    }

    /// Reports a problem that does not stop the load: in the log, and in the timeline if there is a recording.
    pub(crate) fn warn(self, message: String) {
        tracing::warn!(module = %self.module, "{message}");
        self.record(|| EventKind::Warning { message });
    }

    #[cold]
    fn push(self, kind: &EventKind) {
        tracing::debug!(module = %self.module, %kind);
        let here = thread::current().id();
        let event = |seq| Event { seq, module: self.module.clone(), kind: kind.clone() };
        let mut told = Vec::new();
        for (_, ear) in &mut self.registry.lock().recordings {
            match ear {
                Ear::Timeline(timeline) => {
                    let seq = modload_edit::wide(timeline.events.len()) + 1;
                    timeline.events.push(event(seq));
                }
                Ear::Listener(thread, before, listener) if *thread == here => {
                    *before += 1;
                    told.push((event(*before), listener.clone()));
                }
                Ear::Listener(..) => {}
            }
        }
        // Without the lock: a listener may be slow, or call the host.
        told.iter().for_each(|(event, listener)| listener(event));
    }
}

impl Module {
    /// Notes a line in the timeline, as this module's.
    pub fn log(&self, message: impl Into<String>) {
        let message = message.into();
        Recorder { registry: self.registry, module: &self.name }.record(|| EventKind::Log { message });
    }
}
