//! Request log, for debugging: the requests and replies of each client, at the level `trace`.

use log::{Level, log_enabled, trace};

use shared::clock::Millis;

/// Largest number of requests that are logged for a client in a second; of the others, only the
/// number is logged.
const MAX_PER_SECOND: u32 = 100;

/// Largest length in bytes of a request or a reply that is logged; the rest is cut off.
const MAX_LENGTH: usize = 4096;

/// Request log of one connection.
pub struct RequestLog {
    connection: u64,
    /// Scheme of its protocol.
    protocol: &'static str,
    /// Current second since the machine's start.
    second: u64,
    /// Number of requests logged in this second.
    logged: u32,
    /// Number of requests beyond [`MAX_PER_SECOND`] in this second.
    omitted: u64,
}

impl RequestLog {
    /// Creates the log of the connection with this number, of the protocol with this scheme.
    #[inline]
    pub fn new(connection: u64, protocol: &'static str) -> Self {
        RequestLog {
            connection,
            protocol,
            second: 0,
            logged: 0,
            omitted: 0,
        }
    }

    /// Returns whether requests are logged at all.
    #[inline]
    pub fn is_kept() -> bool {
        log_enabled!(Level::Trace)
    }

    /// Logs a request and its reply, which is empty for a blank line. Ignores an empty `request`,
    /// which is the end of the input.
    #[cold]
    pub fn note(&mut self, request: &[u8], reply: &[u8]) {
        if request.is_empty() {
            return;
        }
        let second = Millis::now().0 / 1000;
        if second != self.second {
            self.log_omitted();
            self.second = second;
            self.logged = 0;
        }
        if self.logged == MAX_PER_SECOND {
            self.omitted += 1;
            return;
        }
        self.logged += 1;
        let [request, reply] = [request, reply].map(|text| {
            let text = text.trim_ascii_end();
            printable(&text[..text.len().min(MAX_LENGTH)])
        });
        let RequestLog {
            connection,
            protocol,
            ..
        } = *self;
        trace!(connection, protocol, request:%, reply:%; "request");
    }

    #[cold]
    fn log_omitted(&mut self) {
        if self.omitted > 0 {
            trace!(connection = self.connection, requests = self.omitted; "more requests in the same second");
            self.omitted = 0;
        }
    }
}

impl Drop for RequestLog {
    fn drop(&mut self) {
        self.log_omitted();
    }
}

/// Escapes non-ASCII bytes, which a terminal may take for control characters of its own character
/// set; the log escapes only control characters.
fn printable(bytes: &[u8]) -> String {
    let escaped = |&byte: &u8| match byte.is_ascii() {
        true => char::from(byte).to_string(),
        false => byte.escape_ascii().to_string(),
    };
    bytes.iter().map(escaped).collect()
}
