//! Streams of users: the body of a response in parts, as the database gives them and the client
//! takes them.

use std::time::{Duration, Instant};

use super::Request;
use super::response::{LAST_CHUNK, write_chunk};
use crate::protocol::Next;
use shared::command::user::{Failure, Part, UserStream};

/// Time after which a handover ends a stream.
const LEAVE_TIME: Duration = Duration::from_millis(500);

/// How long one call waits for the database.
const WAIT: Duration = Duration::from_millis(100);

/// A response that is sent in parts.
pub struct Streaming {
    request: Request,
    users: Box<dyn UserStream>,
    /// What follows the users.
    end: String,
    has_begun: bool,
    /// Whether the connection ends with the response.
    closes: bool,
    /// When a handover ends it, if there is one.
    leaves: Option<Instant>,
}

impl Streaming {
    /// Returns the response to this request.
    pub fn new(request: Request, users: Box<dyn UserStream>, end: String) -> Self {
        Streaming {
            closes: !request.keep_alive || !request.is_new,
            request,
            users,
            end,
            has_begun: false,
            leaves: None,
        }
    }

    /// Returns whether the connection is closed after the response.
    pub fn closes(&self) -> bool {
        self.closes
    }

    /// Closes the connection after the response.
    pub fn close_after(&mut self) {
        self.closes = true;
    }

    /// Ends the response soon: another process can't go on with it.
    pub fn leave(&mut self) {
        self.closes = true;
        self.leaves = Some(Instant::now() + LEAVE_TIME);
    }

    /// The response goes on to its end after all: the server does not hand over, but stops.
    pub fn stay(&mut self) {
        self.leaves = None;
    }

    /// Appends the next part, if there is one. Returns what comes next; [`Next::More`] after the
    /// last part.
    pub fn advance(&mut self, output: &mut Vec<u8>) -> Next {
        let is_chunked = self.request.is_new;
        if self.leaves.is_some_and(|time| Instant::now() >= time) {
            let why = b"\nERR UNAVAILABLE the server stops, try again\n";
            write_chunk(is_chunked, why, output);
            return Next::Close;
        }
        match self.users.next(WAIT) {
            Part::Users(users) => {
                // Each user is behind a comma.
                let users = &users[usize::from(!self.has_begun)..];
                self.has_begun = true;
                write_chunk(is_chunked, users, output);
                Next::Again
            }
            Part::Pending => Next::Again,
            Part::End => {
                write_chunk(is_chunked, self.end.as_bytes(), output);
                if is_chunked {
                    output.extend_from_slice(LAST_CHUNK);
                }
                match self.closes {
                    true => Next::Close,
                    false => Next::More,
                }
            }
            Part::Failed(failure) => {
                // Neither JSON nor the response comes to its end: nobody takes it for whole.
                let why = match failure {
                    Failure::Slow => "\nERR TIMEOUT the users were not taken in time\n",
                    Failure::Unavailable => {
                        "\nERR UNAVAILABLE the database has failed, try again\n"
                    }
                };
                write_chunk(is_chunked, why.as_bytes(), output);
                Next::Close
            }
        }
    }
}
