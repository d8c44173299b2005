//! Requests through a pipe: one line of standard output per reply, and nothing else.

use std::io::{self, BufRead as _, BufReader, Read};
use std::process::ExitCode;
use std::time::Instant;

use shared::dial::Reply;
use shared::stdio;

use super::{is_quit, request};
use crate::failure::{BUSY, Failure, REFUSED};
use crate::link::{LOST, Link};
use crate::options::Options;
use crate::output::{Exchange, Output};

/// The longest line of input: far longer than a request may be.
const LONGEST_LINE: u64 = 64 * 1024;

/// Runs until the end of the input.
pub fn run(options: &Options) -> Result<ExitCode, Failure> {
    let output = Output::new(options.json);
    let mut link = Link::new(options, Some("blockchain-tcp: "));
    let mut input = BufReader::new(Input);
    link.connect()?;
    let mut status = ExitCode::SUCCESS;
    while let Some(line) = next_line(&mut input)? {
        let Some(request) = request(&line) else {
            continue;
        };
        let begun = Instant::now();
        let asked = link.ask(request);
        let text = String::from_utf8_lossy(request);
        let exchange = Exchange::since(begun, &*text);
        let reply = match asked {
            // It is not a reply to this request: the server sent it unasked.
            Ok(Reply::Refused(refusal)) if refusal.word == BUSY => return Err(refusal.into()),
            Ok(reply) => reply,
            // End here: a line without a reply would put a reader out of step that counts replies.
            Err(failure) => return output.failure(&exchange, failure),
        };
        if matches!(reply, Reply::Refused(_)) {
            status = ExitCode::from(REFUSED);
        }
        let closes = reply.closes();
        output.reply(&exchange, reply)?;
        if is_quit(request) {
            break;
        }
        if closes {
            link.say(LOST);
        }
    }
    match link.close() {
        // The server is full, or not our server.
        Some(message) if message.exit_status() != REFUSED => Err(message),
        _ => Ok(status),
    }
}

/// Returns the next line of the input; the last line needs no end. Returns `None` at the end of the
/// input.
fn next_line(input: &mut BufReader<Input>) -> Result<Option<Vec<u8>>, Failure> {
    let mut line = Vec::new();
    let mut limited = input.take(LONGEST_LINE);
    let read = limited
        .read_until(b'\n', &mut line)
        .map_err(Failure::Read)?;
    if line.pop_if(|byte| *byte == b'\n').is_none() && read as u64 == LONGEST_LINE {
        let text = format!("a line of the input is longer than {LONGEST_LINE} bytes");
        return Err(Failure::Usage(text));
    }
    Ok((read > 0).then_some(line))
}

/// Standard input, which may be non-blocking.
struct Input;

impl Read for Input {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        stdio::read(buffer)
    }
}
