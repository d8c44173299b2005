//! A client that asks WHO without pause.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::Client;

/// It asks until it is told to end.
pub struct Watch {
    over: Arc<AtomicBool>,
    thread: JoinHandle<(Vec<String>, Client)>,
}

/// Has this client ask from now on.
pub fn watch(mut client: Client) -> Watch {
    let over = Arc::new(AtomicBool::new(false));
    let enough = over.clone();
    let thread = thread::spawn(move || {
        let mut answers = Vec::new();
        while !enough.load(Ordering::Relaxed) {
            answers.push(client.ask("WHO"));
            thread::park_timeout(Duration::from_millis(1));
        }
        (answers, client)
    });
    Watch { over, thread }
}

impl Watch {
    /// Returns what was answered, and the client, which counts still.
    pub fn end(self) -> (Vec<String>, Client) {
        self.over.store(true, Ordering::Relaxed);
        self.thread.join().expect("all was answered")
    }
}
