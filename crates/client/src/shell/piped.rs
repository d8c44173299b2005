//! Requests through a pipe: one line of standard output per reply, and nothing else.

use std::process::ExitCode;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::stdio::stdin;
use shared::dial::{LineBuffer, Reply};
use shared::stdio;

use super::link::{Disconnected, LOST, Link};
use super::signals::Interrupts;
use super::{is_goodbye, request};
use crate::failure::{BUSY, Failure, REFUSED};
use crate::options::Options;
use crate::output::{Exchange, Output};

/// The longest line of input: far longer than a request may be.
const LONGEST_LINE: usize = 64 * 1024;

/// Number of bytes to read at a time.
const CHUNK: usize = 4096;

/// Runs until the end of the input.
pub fn run(options: &Options) -> Result<ExitCode, Failure> {
    let output = Output::new(options.json);
    let mut link = Link::new(options, Interrupts::new(), "blockchain-tcp: ");
    let mut input = Input::default();
    link.connect()?;
    let mut status = ExitCode::SUCCESS;
    while let Some(line) = input.line(&mut link)? {
        let Some(request) = request(&line) else {
            continue;
        };
        let begun = Instant::now();
        let asked = link.ask(request);
        let text = String::from_utf8_lossy(request);
        let exchange = Exchange::since(begun, &*text);
        let reply = match asked {
            // It is not a reply to this request: the server sent it unasked.
            Ok(Reply::Refused { word, sentence }) if word == BUSY => {
                return Err(Failure::Refused { word, sentence });
            }
            Ok(reply) => reply,
            // End here: a line without a reply would put a reader out of step that counts replies.
            Err(failure) => return output.failure(&exchange, failure),
        };
        if matches!(reply, Reply::Refused { .. }) {
            status = ExitCode::from(REFUSED);
        }
        let goes_on = !reply.closes();
        output.reply(&exchange, reply)?;
        if is_goodbye(request) {
            break;
        }
        if !goes_on {
            link.say(LOST);
        }
    }
    match link.leave() {
        Some(words) if is_end(&words) => Err(words),
        _ => Ok(status),
    }
}

/// Returns whether reconnecting is useless after this final message: the server is full, or not our
/// server.
fn is_end(words: &Failure) -> bool {
    words.exit_status() != REFUSED
}

/// Standard input, line by line.
#[derive(Default)]
struct Input {
    unread: LineBuffer,
    ended: bool,
}

impl Input {
    /// Returns the next line, without its end; the last line needs no end. Returns `None` at the
    /// end of the input.
    fn line(&mut self, link: &mut Link<'_>) -> Result<Option<Vec<u8>>, Failure> {
        loop {
            if let Some(line) = self.unread.take_line() {
                return Ok(Some(line));
            }
            if self.unread.rest().len() > LONGEST_LINE {
                let text = format!("a line of the input is longer than {LONGEST_LINE} bytes");
                return Err(Failure::Usage(text));
            }
            if self.ended {
                let rest = self.unread.take_rest();
                return Ok((!rest.is_empty()).then_some(rest));
            }
            Input::wait(link)?;
            self.read()?;
        }
    }

    /// Waits for input, and reports at once if the connection is lost meanwhile.
    fn wait(link: &mut Link<'_>) -> Result<(), Failure> {
        loop {
            let Some(socket) = link.socket() else {
                return Ok(());
            };
            let input = stdin();
            let mut polled = [
                PollFd::new(&input, PollFlags::IN),
                PollFd::new(socket, PollFlags::IN),
            ];
            match poll(&mut polled, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(Failure::Read(error.into())),
            }
            let has_input = !polled[0].revents().is_empty();
            match link.look() {
                Some(Disconnected(Some(words))) if is_end(&words) => return Err(words),
                Some(loss) => link.say(loss),
                None => {}
            }
            if has_input {
                return Ok(());
            }
        }
    }

    fn read(&mut self) -> Result<(), Failure> {
        let mut chunk = [0; CHUNK];
        match stdio::read(&mut chunk).map_err(Failure::Read)? {
            0 => self.ended = true,
            read => self.unread.push(&chunk[..read]),
        }
        Ok(())
    }
}
