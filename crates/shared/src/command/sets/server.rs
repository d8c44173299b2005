//! Commands about the server itself and its connection.

use std::sync::atomic::Ordering;

use crate::clock::Nanos;
use crate::command::{
    Argument, Call, Census, CommandClass, CommandError, CommandSet, CommandSpec, Context, Count,
    Line, Parameter, Rpc, Unavailable, Value, ValueType,
};

/// WHO, WHERE, WHY, and the commands that every client needs.
pub const SET: CommandSet = &[
    CommandSpec {
        name: "WHO",
        parameters: &[],
        result: ValueType::Integer,
        summary: "the number of clients connected, in a cluster to all its servers",
        class: CommandClass::Query,
        rpc: Some(Rpc::new("Server", "Who", 10)),
        execute: who,
    },
    CommandSpec {
        name: "WHERE",
        parameters: &[],
        result: ValueType::Text,
        summary: "the id of this server",
        class: CommandClass::Query,
        rpc: Some(Rpc::new("Server", "Where", 11)),
        execute: |context, _| Ok(Value::from(&*context.id)),
    },
    CommandSpec {
        name: "WHY",
        parameters: &[],
        result: ValueType::Integer,
        summary: "the answer",
        class: CommandClass::Query,
        rpc: Some(Rpc::new("Server", "Why", 12)),
        execute: |_, _| Ok(Value::Integer(42)),
    },
    CommandSpec {
        name: "PING",
        parameters: &[],
        result: ValueType::Text,
        summary: "PONG, to keep the connection or to try it",
        class: CommandClass::Query,
        rpc: Some(Rpc::new("Server", "Ping", 13)),
        execute: |_, _| Ok(Value::from("PONG")),
    },
    CommandSpec {
        name: "HELP",
        parameters: &[Parameter::word("COMMAND").given(Count::Optional)],
        result: ValueType::Text,
        summary: "the names of all commands, or what one of them does",
        class: CommandClass::Query,
        rpc: None,
        execute: help,
    },
    CommandSpec {
        name: "QUIT",
        parameters: &[],
        result: ValueType::Text,
        summary: "BYE, and the server closes",
        class: CommandClass::Quit,
        rpc: None,
        execute: |_, _| Ok(Value::from("BYE")),
    },
    CommandSpec {
        name: "EXIT",
        parameters: &[],
        result: ValueType::Text,
        summary: "the same as QUIT",
        class: CommandClass::Quit,
        rpc: None,
        execute: |_, _| Ok(Value::from("BYE")),
    },
];

fn who<'a>(context: &'a Context, call: &Call<'a>) -> Result<Value<'a>, CommandError<'a>> {
    let here = context.clients.load(Ordering::SeqCst) as u64;
    let all = match &context.census {
        None => Ok(here),
        Some(census) if !context.may_wait && census.waits() => return Err(CommandError::Deferred),
        Some(census) => cluster(&**census, here, call.asked),
    };
    all.map(Value::from).map_err(CommandError::Unavailable)
}

/// Out of line, so that the stack frame of this call is not part of every worker's stack, where
/// each idle client would pay for it.
#[cold]
#[inline(never)]
fn cluster(census: &dyn Census, here: u64, asked: Nanos) -> Result<u64, Unavailable> {
    census.clients(here, asked)
}

fn help<'a>(context: &'a Context, call: &Call<'a>) -> Result<Value<'a>, CommandError<'a>> {
    let [Argument::Word(name)] = call.arguments[..] else {
        let names: Vec<&str> = context.table.entries().map(|spec| spec.name).collect();
        return Ok(Value::from(names.join(" ")));
    };
    let (_, spec) = context
        .table
        .find(Line::new(name))
        .ok_or(CommandError::Unknown(name))?;
    let usage = [spec.name, &spec.arguments()].join(" ");
    Ok(Value::from(format!(
        "{}: {}",
        usage.trim_end(),
        spec.summary
    )))
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
