//! Prompt, which shows the state of the connection even while a line is being typed.

use std::sync::atomic::{AtomicBool, Ordering};

use shared::dial::Server;

/// The prompt, in its connected and its disconnected form. Both are equally wide, so that one can
/// replace the other.
pub struct Prompt {
    connected: String,
    lost: String,
    is_connected: AtomicBool,
}

impl Prompt {
    /// Returns the prompt for this server.
    pub fn new(server: &Server, is_connected: bool) -> Self {
        Prompt {
            connected: format!("{server}> "),
            lost: format!("{server}! "),
            is_connected: is_connected.into(),
        }
    }

    /// Marks the connection as lost, which shows when the line is redrawn.
    pub fn lose(&self) {
        self.is_connected.store(false, Ordering::Relaxed);
    }

    /// Returns the present text.
    pub fn text(&self) -> &str {
        match self.is_connected.load(Ordering::Relaxed) {
            true => &self.connected,
            false => &self.lost,
        }
    }
}

impl rustyline::Prompt for Prompt {
    fn raw(&self) -> &str {
        self.text()
    }
}
