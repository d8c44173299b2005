//! The command-line client, run as a user runs it: its output, its exit status, its screen.

mod bench;
mod completions;
pub mod manual;
mod scripted;
mod streams;
mod watch;

use crate::support::CLIENT;
use std::ffi::OsStr;
use std::process::{Command, Output, Stdio};

use crate::session::play;
use crate::support::Daemon;

/// The client, with nothing set in its environment; its history is nobody's.
pub fn client() -> Command {
    let mut command = Command::new(CLIENT.as_str());
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("BLOCKCHAIN_TCP") {
            command.env_remove(name);
        }
    }
    command.env("LANG", "C.UTF-8").env("HOME", "/nonexistent");
    command.env_remove("XDG_STATE_HOME");
    command.stdin(Stdio::null());
    command
}

/// Runs it to its end.
pub fn run(arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Ran {
    ran(client().args(arguments).output().expect("it runs"))
}

/// What came of it.
#[derive(Debug)]
pub struct Ran {
    pub status: i32,
    pub output: String,
    pub errors: String,
}

pub fn ran(output: Output) -> Ran {
    Ran {
        status: output.status.code().unwrap_or(-1),
        output: String::from_utf8(output.stdout).expect("UTF-8"),
        errors: String::from_utf8(output.stderr).expect("UTF-8"),
    }
}

#[test]
fn one_question_has_one_answer() {
    play("client/sessions/ask.txt", &[]);
}

#[test]
fn wrong_usage_is_named() {
    play("client/sessions/usage.txt", &[]);
}

#[test]
fn trouble_with_one_question_has_its_exit_status() {
    play("client/sessions/trouble.txt", &[]);
}

#[test]
fn all_addresses_of_a_name_are_tried() {
    play("client/sessions/addresses.txt", &[]);
}

#[test]
fn a_conversation_at_a_terminal() {
    play("client/sessions/terminal.txt", &[]);
}

#[test]
fn a_conversation_through_a_pipe() {
    play("client/sessions/pipe.txt", &[]);
}

#[test]
fn a_lost_connection_is_made_anew() {
    play("client/sessions/lost.txt", &[]);
}

#[test]
fn a_bench_says_why_it_ends() {
    play("client/sessions/bench.txt", &[]);
}

#[test]
fn a_watch_says_why_it_ends() {
    play("client/sessions/watch.txt", &[]);
}

#[test]
fn what_was_typed_comes_back() {
    play("client/sessions/history.txt", &[]);
}

#[test]
fn every_protocol_answers_alike() {
    for prefix in ["", "protobuf://", "http://", "grpc://"] {
        play("client/sessions/protocols.txt", &[("PREFIX", prefix)]);
    }
}

#[test]
fn every_command_answers_by_its_name() {
    let daemon = Daemon::start(["--max-clients", "4"]);
    let names = daemon.ask("HELP\n");
    assert!(names.split_whitespace().count() >= 7, "{names}");
    for name in names.split_whitespace() {
        let reply = daemon.ask(format!("{name}\n"));
        for written in [name.to_lowercase(), name.to_string()] {
            daemon.wait_for_others(0);
            let ran = run(["--server", &daemon.address.to_string(), &written]);
            // Of those that need arguments the complaint.
            let expected = match reply.starts_with("ERR ") {
                false => (0, &*reply, ""),
                true => (1, "", &*reply),
            };
            assert_eq!((ran.status, &*ran.output, &*ran.errors), expected);
        }
    }
}
