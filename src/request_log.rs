//! The request log, for debugging: what each client asked and was answered, at the level `trace`.

use log::{Level, log_enabled, trace};

use crate::clock::Millis;

/// So many lines of a client are logged in a second; of the others it is only said how many they were.
const MOST: u32 = 100;

/// What is logged of one connection.
pub struct RequestLog {
    connection: u64,
    /// Since the machine's start.
    second: u64,
    /// In this second.
    logged: u32,
    /// In this second, beyond [`MOST`].
    unlogged: u64,
}

impl RequestLog {
    /// Of the connection with this number.
    #[inline]
    pub fn new(connection: u64) -> Self {
        RequestLog {
            connection,
            second: 0,
            logged: 0,
            unlogged: 0,
        }
    }

    /// Whether it is kept at all.
    #[inline]
    pub fn is_kept() -> bool {
        log_enabled!(Level::Trace)
    }

    /// A request was answered; without a reply if it asked for nothing. The end of the input alone is none.
    #[cold]
    pub fn note(&mut self, request: &[u8], reply: &[u8]) {
        if request.is_empty() {
            return;
        }
        let second = Millis::now().0 / 1000;
        if second != self.second {
            self.settle();
            self.second = second;
            self.logged = 0;
        }
        if self.logged == MOST {
            self.unlogged += 1;
            return;
        }
        self.logged += 1;
        let request = printable(request.trim_ascii_end());
        let reply = printable(reply.trim_ascii_end());
        trace!(connection = self.connection, request:%, reply:%; "request");
    }

    #[cold]
    fn settle(&mut self) {
        if self.unlogged > 0 {
            trace!(connection = self.connection, requests = self.unlogged; "more requests in the same second");
            self.unlogged = 0;
        }
    }
}

impl Drop for RequestLog {
    fn drop(&mut self) {
        self.settle();
    }
}

/// The log escapes control characters, but lets through what a terminal may take for one in its own character set.
fn printable(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for &byte in bytes {
        if byte.is_ascii() {
            text.push(byte.into());
        } else {
            text.extend(byte.escape_ascii().map(char::from));
        }
    }
    text
}
