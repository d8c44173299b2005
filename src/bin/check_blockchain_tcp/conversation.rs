//! Requests and replies on one connection: what is read is bounded by the longest reply, however it comes.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};

use crate::deadline::Deadline;
use crate::failure::{Failure, quoted};
use crate::notes::Notes;

/// All requests at once, as the protocol allows.
const REQUESTS: &[u8] = b"WHO\nWHERE\nWHY\n";

/// Far longer than any reply of a server of ours.
const LONGEST_REPLY: usize = 1024;

/// How much is read at a time.
const CHUNK: usize = 512;

/// A connection on which everything has been asked.
pub struct Conversation {
    stream: TcpStream,
    deadline: Deadline,
    /// What was read and is not looked at yet.
    unread: Vec<u8>,
}

impl Conversation {
    /// Sends all requests, and that there are no more.
    pub fn begin(mut stream: TcpStream, deadline: Deadline) -> Self {
        // A server that has closed already may have said why: reading tells.
        let _ = stream
            .write_all(REQUESTS)
            .and_then(|()| stream.shutdown(Shutdown::Write));
        Conversation {
            stream,
            deadline,
            unread: Vec::new(),
        }
    }

    /// The reply to this request, as `read` makes it out; `right` says in words what it makes out.
    pub fn reply<T>(
        &mut self,
        request: &'static str,
        right: &'static str,
        notes: &mut Notes,
        read: impl FnOnce(&str) -> Option<T>,
    ) -> Result<T, Failure> {
        let line = self.line(request)?;
        notes.add(|| format!("{request}: {}", quoted(&line)));
        if line.starts_with(b"ERR ") {
            return Err(Failure::Refused { line });
        }
        let reply = std::str::from_utf8(&line).ok().and_then(read);
        reply.ok_or(Failure::Wrong {
            request,
            line,
            right,
        })
    }

    /// Waits for the end, after which the server no longer counts us.
    pub fn end(mut self) -> Result<(), Failure> {
        while self.unread.is_empty() {
            if self.read("the end of the requests")? == 0 {
                return Ok(());
            }
        }
        Err(Failure::More { part: self.unread })
    }

    /// The next line, without its end.
    fn line(&mut self, request: &'static str) -> Result<Vec<u8>, Failure> {
        loop {
            if let Some(end) = self.unread.iter().position(|byte| *byte == b'\n') {
                let mut line: Vec<u8> = self.unread.drain(..=end).collect();
                line.pop();
                return Ok(line);
            }
            if self.unread.len() > LONGEST_REPLY {
                let part = std::mem::take(&mut self.unread);
                return Err(Failure::Endless { request, part });
            }
            if self.read(request)? == 0 {
                let part = std::mem::take(&mut self.unread);
                return Err(Failure::Closed { request, part });
            }
        }
    }

    /// Reads what comes next: so many bytes, none at the end of the stream.
    fn read(&mut self, request: &'static str) -> Result<usize, Failure> {
        let late = || format!("no answer to {request}");
        let mut chunk = [0; CHUNK];
        loop {
            let left = self.deadline.left(late)?;
            let read = self
                .stream
                .set_read_timeout(Some(left))
                .and_then(|()| self.stream.read(&mut chunk));
            match read {
                Ok(read) => {
                    self.unread.extend_from_slice(&chunk[..read]);
                    return Ok(read);
                }
                // The deadline is looked at above.
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
                    ) => {}
                Err(error) => return Err(Failure::Broken { request, error }),
            }
        }
    }
}
