//! Interactive shell at a terminal.

use std::process::ExitCode;

use shared::dial::Reply;

use super::completion::Names;
use super::editor::{Editor, Input};
use super::monitor::with_monitor;
use super::prompt::Prompt;
use super::{help, is_quit, request};
use crate::failure::Failure;
use crate::link::{LOST, Link};
use crate::options::Options;
use crate::output::{self, Exchange};

/// Runs until the user leaves.
pub fn run(options: &Options) -> Result<ExitCode, Failure> {
    let mut link = Link::new(options, Some(""));
    let mut editor = Editor::new()?;
    begin(&mut link, &mut editor)?;
    let mut printer = editor.printer();
    loop {
        link.check();
        let prompt = Prompt::new(&options.server, link.address().is_some());
        let read = with_monitor(&mut link, &mut printer, &prompt, || editor.read(&prompt))?;
        let lines = match read {
            Input::Lines(lines) => lines,
            Input::Abandoned => continue,
            Input::End => break,
        };
        let requests = lines.split('\n').map(str::as_bytes).filter_map(request);
        for request in requests {
            if is_quit(request) {
                let exchange = Exchange::begin(options.json, Some(request));
                let reply = link.quit(request);
                link.close();
                if let Some(reply) = reply {
                    exchange.reply(reply)?;
                }
                return Ok(ExitCode::SUCCESS);
            }
            if !ask(&mut link, options.json, request)? {
                break;
            }
        }
    }
    link.close();
    Ok(ExitCode::SUCCESS)
}

/// Connects, prints the server's address and id, and requests the names of the commands.
fn begin(link: &mut Link, editor: &mut Editor) -> Result<(), Failure> {
    link.connect()?;
    let address = link.address().map(|address| address.to_string());
    let mut place = address.unwrap_or_default();
    for reply in link.ask_all(&[b"WHERE", b"HELP"])?.into_iter().enumerate() {
        match reply {
            (_, Reply::Refused(refusal)) if link.address().is_none() => {
                return Err(refusal.into());
            }
            (0, Reply::Value(id)) => place += &format!(", id {id}"),
            (_, list) => editor.complete(Names::new(&help::names(&list))),
        }
    }
    link.say(format_args!("connected to {place}; try help"));
    Ok(())
}

/// Sends a request and prints its reply or the failure. Returns whether to continue with the lines
/// that were pasted after it.
fn ask(link: &mut Link, json: bool, request: &[u8]) -> Result<bool, Failure> {
    let exchange = Exchange::begin(json, Some(request));
    let is_help = request.trim_ascii().eq_ignore_ascii_case(b"help") && !json;
    let asked = match is_help {
        true => help::ask(link).map(Err),
        false => link.ask(request).map(Ok),
    };
    match asked {
        Ok(Err(help)) => output::print(&help).map(|()| true),
        Ok(Ok(reply)) => {
            let closes = reply.closes();
            exchange.reply(reply)?;
            if closes {
                link.say(LOST);
            }
            Ok(!closes)
        }
        Err(failure) => {
            if let Err(failure) = exchange.failure(failure) {
                link.say(failure);
            }
            Ok(false)
        }
    }
}
