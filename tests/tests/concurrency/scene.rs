//! A host, and a subscriber that keeps a module in its coming until the test releases the subscriber.

use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use modload::{Coming, Host, Refusal, Subscriber};

pub(crate) fn host() -> Host {
    Host::builder().build().unwrap()
}

/// Blocks in the coming of one module until the test sends an answer, and then accepts or refuses the module.
pub(crate) struct Gate {
    module: &'static str,
    inside: Sender<()>,
    go_on: Mutex<Receiver<Result<(), Refusal>>>,
}

impl Gate {
    /// Returns the gate, the receiver that reports a module in the gate, and the sender of the answer.
    pub(crate) fn new(module: &'static str) -> (Gate, Receiver<()>, Sender<Result<(), Refusal>>) {
        let (inside, is_inside) = channel();
        let (go, go_on) = channel();
        (Gate { module, inside, go_on: Mutex::new(go_on) }, is_inside, go)
    }
}

impl Subscriber for Gate {
    fn coming(&self, coming: &mut Coming<'_>) -> Result<(), Refusal> {
        if coming.module().name() != self.module {
            return Ok(());
        }
        self.inside.send(()).unwrap();
        self.go_on.lock().unwrap().recv().unwrap()
    }
}

/// Long enough for a thread that does not wait to finish.
pub(crate) fn a_while() {
    thread::sleep(Duration::from_millis(50));
}
