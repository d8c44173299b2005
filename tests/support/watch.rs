//! A client that asks WHO without pause.

use std::thread;
use std::time::Duration;

use super::Client;
use super::repeat::{Repeated, repeat};

/// What was answered so far, and the client, which counts still.
pub type Watch = Repeated<(Vec<String>, Client)>;

/// Has this client ask from now on.
pub fn watch(client: Client) -> Watch {
    repeat((Vec::new(), client), |(answers, client)| {
        answers.push(client.ask("WHO"));
        thread::park_timeout(Duration::from_millis(1));
    })
}
