//! Processes that tests start.

use std::io::Read;
use std::process::{Child, Command, ExitStatus};

use crate::waiting::until;

/// A child that is killed when its test ends.
pub(crate) struct Guard(pub(crate) Child);

impl Guard {
    pub(crate) fn signal(&self, name: &str) {
        let kill = format!("kill -s {name} {}", self.0.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    }

    /// Waits for the child to end. Returns its status and its standard error output.
    pub(crate) fn ended(mut self) -> (ExitStatus, String) {
        until("the process ends", || self.0.try_wait().unwrap().is_some());
        let mut stderr = String::new();
        if let Some(mut pipe) = self.0.stderr.take() {
            pipe.read_to_string(&mut stderr).unwrap();
        }
        (self.0.wait().unwrap(), stderr)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
