//! Requests through a pipe: one line of standard output per reply, and nothing else.

use std::io::{self, BufRead as _, BufReader, Read};
use std::process::ExitCode;

use shared::dial::Reply;
use shared::stdio;

use super::{is_quit, request};
use crate::failure::{BUSY, Failure, REFUSED};
use crate::link::{LOST, Link};
use crate::options::Options;
use crate::output::Exchange;

/// Runs until the end of the input.
pub fn run(options: &Options) -> Result<ExitCode, Failure> {
    let mut link = Link::new(options, Some("blockchain-tcp: "));
    link.connect()?;
    let mut status = ExitCode::SUCCESS;
    // The last line needs no end.
    for line in BufReader::new(Input).split(b'\n') {
        let line = line.map_err(Failure::read)?;
        let Some(request) = request(&line) else {
            continue;
        };
        let exchange = Exchange::begin(options.json, Some(request));
        let reply = match link.ask(request) {
            // It is not a reply to this request: the server sent it unasked.
            Ok(Reply::Refused(refusal)) if refusal.word == BUSY => return Err(refusal.into()),
            Ok(reply) => reply,
            // End here: a line without a reply would put a reader out of step that counts replies.
            Err(failure) => return exchange.failure(failure),
        };
        if matches!(reply, Reply::Refused(_)) {
            status = ExitCode::from(REFUSED);
        }
        let closes = reply.closes();
        exchange.reply(reply)?;
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

/// Standard input, which may be non-blocking.
struct Input;

impl Read for Input {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        stdio::read(buffer)
    }
}
