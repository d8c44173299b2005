//! A thread that does something again and again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

/// It goes on until [`Repeated::end`], or until it fails.
pub struct Repeated<T> {
    over: Arc<AtomicBool>,
    thread: JoinHandle<T>,
}

/// Does this again and again in a thread, with what it has found so far.
pub fn repeat<T: Send + 'static>(
    mut found: T,
    mut step: impl FnMut(&mut T) + Send + 'static,
) -> Repeated<T> {
    let over = Arc::new(AtomicBool::new(false));
    let is_over = over.clone();
    let thread = thread::spawn(move || {
        while !is_over.load(Ordering::Relaxed) {
            step(&mut found);
        }
        found
    });
    Repeated { over, thread }
}

impl<T> Repeated<T> {
    /// Ends it and returns what it has found.
    pub fn end(self) -> T {
        self.over.store(true, Ordering::Relaxed);
        self.thread.join().expect("it has not failed")
    }
}
