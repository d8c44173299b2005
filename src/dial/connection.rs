//! A conversation with a server: what is read is bounded by the longest reply, however it comes.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::reply::{is_printable, wrong};
use super::socket::connect_first;
use super::{Deadline, Failure, LineBuffer, Reply, escaped};

/// Longer than any reply of a server of ours: what `NP` answers to a request of 1,023 bytes is no longer than 2 KiB.
pub const LONGEST_REPLY: usize = 16 * 1024;

/// How much is read at a time.
const CHUNK: usize = 4096;

/// What came of trying one address.
pub type Attempt<'a> = (SocketAddr, Result<(), &'a io::Error>);

/// A connection with a server.
pub struct Connection {
    stream: TcpStream,
    address: SocketAddr,
    /// What was read and is not looked at yet.
    unread: LineBuffer,
}

impl Connection {
    /// The first connection that comes about, to one of these addresses, of which those that were tried are taken away. Each has
    /// an equal share of the time that the ones before it have left. `tried` hears what came of each.
    pub fn open_one_of(
        addresses: &mut Vec<SocketAddr>,
        deadline: Deadline,
        mut tried: impl FnMut(Attempt<'_>),
    ) -> Result<Self, Failure> {
        let mut refusals = Vec::new();
        let connected = connect_first(addresses, deadline.moment(), |address, error| {
            tried((address, Err(&error)));
            refusals.push((address, error));
        });
        addresses.drain(..refusals.len());
        let Some((stream, address)) = connected else {
            return Err(Failure::Connect(refusals));
        };
        addresses.remove(0);
        tried((address, Ok(())));
        Ok(Connection {
            stream,
            address,
            unread: LineBuffer::default(),
        })
    }

    /// The address that let us in.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The socket, to watch it or to end it from elsewhere.
    pub fn socket(&self) -> &TcpStream {
        &self.stream
    }

    /// Whether something waits to be read, the end included. While nothing is asked, that is a server which leaves.
    pub fn is_readable(&self) -> bool {
        let mut polled = [PollFd::new(&self.stream, PollFlags::IN)];
        // What can't be known is found when something is asked.
        let ready = poll(&mut polled, Some(&Timespec::default()));
        !self.unread.rest().is_empty() || ready.is_ok_and(|ready| ready > 0)
    }

    /// Sends these requests, each with its end.
    pub fn send(&mut self, requests: &[u8], deadline: Deadline) -> Result<(), Failure> {
        let mut unsent = requests;
        while !unsent.is_empty() {
            let left = deadline.left(|| "the server takes no requests".to_string())?;
            let sent = self
                .stream
                .set_write_timeout(Some(left))
                .and_then(|()| self.stream.write(unsent));
            match sent {
                Ok(sent) => unsent = &unsent[sent..],
                // The deadline is looked at above.
                Err(error) if is_no_end(&error) => {}
                // A server that has closed already may have said why: reading tells.
                Err(_) => return Ok(()),
            }
        }
        Ok(())
    }

    /// Says that there are no more requests.
    pub fn finish(&self) {
        // If it can't be said, the connection is broken: reading tells.
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// Asks one thing; the reply may take so long, from now on.
    pub fn ask(&mut self, request: &[u8], time: Deadline) -> Result<Reply, Failure> {
        self.ask_all(&[request], time)
            .map(|mut replies| replies.swap_remove(0))
    }

    /// Asks these things at once; each reply may take so long, from now on. There are fewer replies than requests, but at least one, only if
    /// the server closes after the last.
    pub fn ask_all(&mut self, requests: &[&[u8]], time: Deadline) -> Result<Vec<Reply>, Failure> {
        let lines: Vec<&[u8]> = requests
            .iter()
            .flat_map(|line| [line, &b"\n"[..]])
            .collect();
        self.send(&lines.concat(), time.again())?;
        let mut replies = Vec::new();
        for request in requests {
            let request = String::from_utf8_lossy(request);
            let line = self.line(&request, time.again())?;
            let reply = Reply::read(&request, &line)?;
            let closes = reply.closes();
            replies.push(reply);
            if closes {
                return Ok(replies);
            }
        }
        match self.unread.rest() {
            // Before it closes, a server may say why.
            rest if rest.is_empty() || rest.starts_with(b"ERR ") => Ok(replies),
            rest => Err(Failure::More {
                part: rest.to_vec(),
            }),
        }
    }

    /// The next line, without its end; it is the reply to this request. A line that no server of ours sends is not read to its end.
    pub fn line(&mut self, request: &str, deadline: Deadline) -> Result<Vec<u8>, Failure> {
        loop {
            if let Some(line) = self.unread.take_line() {
                return Ok(line);
            }
            if !is_printable(self.unread.rest()) {
                return Err(wrong(request, &self.unread.take_rest()));
            }
            if self.unread.rest().len() > LONGEST_REPLY {
                return Err(Failure::Endless {
                    request: request.to_string(),
                    part: self.unread.take_rest(),
                });
            }
            if self.read(request, deadline)? == 0 {
                return Err(Failure::Closed {
                    request: request.to_string(),
                    part: self.unread.take_rest(),
                });
            }
        }
    }

    /// Waits for the end of what the server sends, after which it no longer counts us.
    pub fn end(mut self, deadline: Deadline) -> Result<(), Failure> {
        while self.unread.rest().is_empty() {
            if self.read("the end of the requests", deadline)? == 0 {
                return Ok(());
            }
        }
        Err(Failure::More {
            part: self.unread.take_rest(),
        })
    }

    /// Reads what comes next: so many bytes, none at the end of the stream.
    fn read(&mut self, request: &str, deadline: Deadline) -> Result<usize, Failure> {
        let mut chunk = [0; CHUNK];
        loop {
            let left = deadline.left(|| format!("no answer to {}", escaped(request)))?;
            let read = self
                .stream
                .set_read_timeout(Some(left))
                .and_then(|()| self.stream.read(&mut chunk));
            match read {
                Ok(read) => {
                    self.unread.push(&chunk[..read]);
                    return Ok(read);
                }
                // The deadline is looked at above.
                Err(error) if is_no_end(&error) => {}
                Err(error) => {
                    return Err(Failure::Broken {
                        request: request.to_string(),
                        error,
                        part: self.unread.take_rest(),
                    });
                }
            }
        }
    }
}

/// Whether a call may just be made again.
fn is_no_end(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
    )
}
