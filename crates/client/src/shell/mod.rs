//! The task `connect`: an interactive shell at a terminal ([`terminal`]), or requests through a
//! pipe ([`piped`]).
//!
//! At a terminal, [`editor`] reads lines behind a [`prompt`], with history and [`completion`];
//! [`monitor`] watches the connection meanwhile, and [`help`] formats what `help` shows.

mod completion;
mod editor;
mod help;
mod monitor;
mod piped;
mod prompt;
mod terminal;

use std::io::{IsTerminal as _, stdin, stdout};
use std::process::ExitCode;

use crate::failure::Failure;
use crate::options::Options;
use crate::output::Exchange;

/// Runs until the end of the input.
pub fn run(options: &Options) -> Result<ExitCode, Failure> {
    // A failure here belongs to no request.
    let exchange = Exchange::begin(options.json, None);
    let ended = match stdin().is_terminal() && stdout().is_terminal() {
        true => terminal::run(options),
        false => piped::run(options),
    };
    ended.or_else(|failure| exchange.failure(failure))
}

/// Returns the request in a line, without trailing CRs; `None` if the line is blank, as the server
/// does not reply to blank lines.
fn request(line: &[u8]) -> Option<&[u8]> {
    let returns = line.iter().rev().take_while(|byte| **byte == b'\r').count();
    let request = &line[..line.len() - returns];
    let is_blank = |byte: &u8| matches!(byte, b' ' | b'\t');
    (!request.iter().all(is_blank)).then_some(request)
}

/// Returns whether this request ends the session.
fn is_quit(request: &[u8]) -> bool {
    let word = request.trim_ascii();
    word.eq_ignore_ascii_case(b"quit") || word.eq_ignore_ascii_case(b"exit")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blank_line_asks_for_nothing() {
        for blank in ["", "\t ", " \r", "\r\r"] {
            assert_eq!(request(blank.as_bytes()), None, "{blank:?}");
        }
        assert_eq!(request(b" who \r\r"), Some(&b" who "[..]));
        // Not blank: the server refuses it.
        assert_eq!(request(b"\r "), Some(&b"\r "[..]));
        assert!(is_quit(b" Exit\t") && !is_quit(b"exit now"));
    }
}
