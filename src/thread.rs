//! Named threads with small stacks.

use std::thread::{Builder, JoinHandle};

use crate::error::Error;

/// Stack size, enough for shallow calls; more would only cost address space and page tables.
pub const STACK_SIZE: usize = 64 * 1024;

/// Starts a thread of this name, which shows in the log and in `ps -L`.
pub fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, Error> {
    spawn_with(name, STACK_SIZE, run)
}

/// Starts a thread with a stack of `stack_size` bytes.
pub fn spawn_with(
    name: &str,
    stack_size: usize,
    run: impl FnOnce() + Send + 'static,
) -> Result<JoinHandle<()>, Error> {
    let builder = Builder::new().name(name.to_string()).stack_size(stack_size);
    let spawned = builder.spawn(run);
    spawned.map_err(|error| Error::system("start a thread", &error))
}
