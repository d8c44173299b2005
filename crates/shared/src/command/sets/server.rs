//! Commands about the server itself and its connection.

use std::sync::atomic::Ordering;

use crate::clock::Nanos;
use crate::command::{
    Census, CommandClass, CommandError, CommandSet, CommandSpec, Context, Line, Reply, Request,
    Unavailable,
};

/// WHO, WHERE, WHY, and the commands that every client needs.
pub const SET: CommandSet = &[
    CommandSpec {
        name: "WHO",
        arguments: "",
        summary: "the number of clients connected, in a cluster to all its servers",
        kind: CommandClass::Query,
        execute: who,
    },
    CommandSpec {
        name: "WHERE",
        arguments: "",
        summary: "the id of this server",
        kind: CommandClass::Query,
        execute: |context, request| {
            let [] = request.take()?;
            Ok(Reply::Text(&context.id))
        },
    },
    CommandSpec {
        name: "WHY",
        arguments: "",
        summary: "the answer",
        kind: CommandClass::Query,
        execute: |_, request| {
            let [] = request.take()?;
            Ok(Reply::Number(42))
        },
    },
    CommandSpec {
        name: "PING",
        arguments: "",
        summary: "PONG, to keep the connection or to try it",
        kind: CommandClass::Query,
        execute: |_, request| {
            let [] = request.take()?;
            Ok(Reply::Text("PONG"))
        },
    },
    CommandSpec {
        name: "HELP",
        arguments: "[COMMAND]",
        summary: "the names of all commands, or what one of them does",
        kind: CommandClass::Query,
        execute: help,
    },
    CommandSpec {
        name: "QUIT",
        arguments: "",
        summary: "BYE, and the server closes",
        kind: CommandClass::Quit,
        execute: quit,
    },
    CommandSpec {
        name: "EXIT",
        arguments: "",
        summary: "the same as QUIT",
        kind: CommandClass::Quit,
        execute: quit,
    },
];

fn who<'a>(context: &'a Context, request: &Request<'a>) -> Result<Reply<'a>, CommandError<'a>> {
    let [] = request.take()?;
    let here = context.clients.load(Ordering::SeqCst) as u64;
    let all = match &context.census {
        None => Ok(here),
        Some(census) => cluster(&**census, here, request.asked),
    };
    all.map(Reply::Number).map_err(CommandError::Unavailable)
}

/// Out of line, so that the stack frame of this call is not part of every worker's stack, where
/// each idle client would pay for it.
#[cold]
#[inline(never)]
fn cluster(census: &dyn Census, here: u64, asked: Nanos) -> Result<u64, Unavailable> {
    census.clients(here, asked)
}

fn help<'a>(context: &'a Context, request: &Request<'a>) -> Result<Reply<'a>, CommandError<'a>> {
    if request.arguments().next().is_none() {
        let names: Vec<&str> = context.table.entries().map(|entry| entry.name).collect();
        return Ok(Reply::Owned(names.join(" ")));
    }
    let [name] = request.take()?;
    let (_, entry) = context
        .table
        .find(Line::new(name))
        .ok_or(CommandError::Unknown(name))?;
    let blank = if entry.arguments.is_empty() { "" } else { " " };
    Ok(Reply::Owned(format!(
        "{}{blank}{}: {}",
        entry.name, entry.arguments, entry.summary
    )))
}

fn quit<'a>(_: &'a Context, request: &Request<'a>) -> Result<Reply<'a>, CommandError<'a>> {
    let [] = request.take()?;
    Ok(Reply::Text("BYE"))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;

    use uuid::Uuid;

    use super::*;

    fn answer(request: &str) -> String {
        let context = Context::new(Arc::new(AtomicUsize::new(3)), Uuid::from_u128(7), &[SET]);
        context.reply_to(request)
    }

    #[test]
    fn each_command_answers_one_line() {
        assert_eq!(answer("WHO"), "3");
        assert_eq!(answer("WHERE"), "00000000-0000-0000-0000-000000000007");
        assert_eq!(answer("WHY"), "42");
        assert_eq!(answer("PING"), "PONG");
        assert_eq!(answer("HELP"), "WHO WHERE WHY PING HELP QUIT EXIT");
        assert_eq!(answer("HELP why"), "WHY: the answer");
        assert_eq!(
            answer("HELP HELP"),
            "HELP [COMMAND]: the names of all commands, or what one of them does"
        );
        assert_eq!(answer("QUIT"), "BYE");
        assert_eq!(answer(" \t"), "");
    }

    #[test]
    fn every_error_says_what_is_wrong() {
        assert_eq!(
            answer("FOO bar"),
            "ERR UNKNOWN no such command: \"FOO\" (try HELP)"
        );
        assert_eq!(answer("WHY not"), "ERR USAGE WHY takes no arguments");
        assert_eq!(answer("HELP a b"), "ERR USAGE usage: HELP [COMMAND]");
        assert_eq!(
            answer("WHO \u{7}"),
            "ERR BADINPUT not printable ASCII: \"WHO \\x07\""
        );
    }
}
