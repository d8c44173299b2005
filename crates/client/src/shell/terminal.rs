//! Interactive shell at a terminal.

use std::process::ExitCode;
use std::time::Instant;

use shared::dial::Reply;

use super::completion::Names;
use super::connection_monitor::{AsyncPrinter, with_monitor};
use super::editor::{Editor, Read};
use super::link::{LOST, Link};
use super::prompt::Prompt;
use super::signals::Interrupts;
use super::{help, is_goodbye, request};
use crate::failure::Failure;
use crate::options::Options;
use crate::output::{Exchange, Output};

/// Runs until the user leaves.
pub fn run(options: &Options) -> Result<ExitCode, Failure> {
    let interrupts = Interrupts::new();
    interrupts.handle().map_err(|source| Failure::System {
        action: "handle signals",
        source,
    })?;
    let mut link = Link::new(options, interrupts.clone(), "");
    let mut editor = Editor::new(interrupts)?;
    let mut connections = greet(&mut link, &mut editor)?;
    let crier = AsyncPrinter::new(editor.printer()).map_err(|source| Failure::System {
        action: "start a thread",
        source,
    })?;
    let output = Output::new(options.json);
    loop {
        if let Some(loss) = link.look() {
            link.say(loss);
        }
        let prompt = Prompt::new(&options.server, link.address().is_some());
        let lines = match with_monitor(&mut link, &crier, &prompt, || editor.read(&prompt))? {
            Read::Input(lines) => lines,
            Read::Abandoned => continue,
            Read::End => break,
        };
        for request in lines
            .split('\n')
            .filter_map(|line| request(line.as_bytes()))
        {
            if is_goodbye(request) {
                let begun = Instant::now();
                if let Some(reply) = link.quit(request) {
                    let text = String::from_utf8_lossy(request);
                    output.reply(&Exchange::since(begun, &*text), reply)?;
                }
                return Ok(ExitCode::SUCCESS);
            }
            if !answer(&mut link, output, request)? {
                break;
            }
        }
        if connections != link.connections() {
            connections = link.connections();
            // If this connection is lost, the names are learned from the next.
            if let Some(_) = link.address()
                && let Ok(list) = link.ask(b"HELP")
            {
                editor.complete(Names::new(&help::names(&list)));
            }
        }
    }
    link.leave();
    Ok(ExitCode::SUCCESS)
}

/// Connects, prints where to, and learns the names of the commands. Returns the number of
/// connections so far.
fn greet(link: &mut Link<'_>, editor: &mut Editor) -> Result<usize, Failure> {
    link.connect()?;
    let replies = link.ask_all(&[b"WHERE", b"HELP"])?;
    let address = link.address();
    if let Some(Reply::Refused { word, sentence }) =
        replies.iter().find(|reply| reply.closes()).cloned()
    {
        return Err(Failure::Refused { word, sentence });
    }
    let address = address.map(|address| address.to_string());
    let mut place = address.unwrap_or_default();
    if let Some(Reply::Value(id)) = replies.first() {
        place += &format!(", id {id}");
    }
    link.say(format_args!("connected to {place}; try help"));
    let told = replies.get(1).map(help::names).unwrap_or_default();
    editor.complete(Names::new(&told));
    Ok(link.connections())
}

/// Sends a request and prints its reply or the failure. Returns whether to continue with the lines
/// that were pasted after it.
fn answer(link: &mut Link<'_>, output: Output, request: &[u8]) -> Result<bool, Failure> {
    let begun = Instant::now();
    let text = String::from_utf8_lossy(request);
    let word = request.trim_ascii();
    let failure = if word.eq_ignore_ascii_case(b"help") && !output.is_json() {
        match help::ask(link) {
            Ok(text) => return Output::print(&text).map(|()| true),
            Err(failure) => failure,
        }
    } else {
        match link.ask(request) {
            Ok(reply) => {
                let goes_on = !reply.closes();
                output.reply(&Exchange::since(begun, &*text), reply)?;
                if !goes_on {
                    link.say(LOST);
                }
                return Ok(goes_on);
            }
            Err(failure) => failure,
        }
    };
    match failure {
        // The terminal has echoed ^C.
        Failure::Interrupted => link.say("\nabandoned; the next line connects again"),
        failure if output.is_json() => {
            output.failure(&Exchange::since(begun, &*text), failure)?;
        }
        failure => link.say(failure),
    }
    Ok(false)
}
