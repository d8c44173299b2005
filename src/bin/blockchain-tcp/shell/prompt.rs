//! What stands before the line that is typed, and changes with the connection while it is typed.

use std::sync::atomic::{AtomicBool, Ordering};

use blockchain_tcpd::dial::Server;

/// The prompt, connected and not. Both are as wide, so that one can take the place of the other.
pub struct Prompt {
    connected: String,
    lost: String,
    is_connected: AtomicBool,
}

impl Prompt {
    /// The prompt of a conversation with this server.
    pub fn new(server: &Server, is_connected: bool) -> Self {
        Prompt {
            connected: format!("{server}> "),
            lost: format!("{server}! "),
            is_connected: is_connected.into(),
        }
    }

    /// The connection is lost; it shows when the line is drawn again.
    pub fn lose(&self) {
        self.is_connected.store(false, Ordering::Relaxed);
    }

    /// As it is now.
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
