//! Threads that do something again and again, such as a client that asks WHO without pause.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::Client;

/// A thread that repeats something until it is ended or dropped.
pub struct Repeated<S> {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<S>>,
}

/// Calls `round` again and again.
pub fn repeat<S: Send + 'static>(
    mut state: S,
    mut round: impl FnMut(&mut S) + Send + 'static,
) -> Repeated<S> {
    let over = Arc::new(AtomicBool::new(false));
    let is_over = over.clone();
    let rounds = move || {
        while !is_over.load(Ordering::Relaxed) {
            round(&mut state);
        }
        state
    };
    let thread = Some(thread::spawn(rounds));
    Repeated { over, thread }
}

impl<S> Repeated<S> {
    /// Returns the state after the last round. No round may have failed.
    pub fn end(mut self) -> S {
        self.over.store(true, Ordering::Relaxed);
        let thread = self.thread.take().expect("it ends once");
        thread.join().expect("no round failed")
    }
}

impl<S> Drop for Repeated<S> {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        // Whether it failed shows in what it was for.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// A client that asks WHO: the answers, and the client.
pub type Watch = Repeated<(Vec<String>, Client)>;

/// Has this client ask WHO again and again.
pub fn watch(client: Client) -> Watch {
    repeat((Vec::new(), client), |(answers, client)| {
        answers.push(client.ask("WHO"));
        thread::park_timeout(Duration::from_millis(1));
    })
}
