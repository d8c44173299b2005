//! What the command line and the variables may say, and what is said of those that are wrong.

use super::{ID, Server, start};
use crate::client::{client, ran, run};
use crate::support::Daemon;

#[test]
fn wrong_usage_is_64_and_says_what_is_wrong() {
    let cases: [(&[&str], &str); 11] = [
        (&[], "what is to be asked? For example: blockchain-tcp who"),
        (&[""], "an empty request gets no reply"),
        (&[" ", "\t"], "an empty request gets no reply"),
        (
            &["who\nwhy"],
            "a request is one line: the line end in it would make it two (see connect)",
        ),
        (
            &["add", "2\n", "5"],
            "a request is one line: the line end in it would make it two (see connect)",
        ),
        (&["--bogus"], "unexpected argument '--bogus' found"),
        (&["who", "--bogus"], "unexpected argument '--bogus' found"),
        (
            &["-s", "h:0", "who"],
            "invalid value 'h:0' for '--server <HOST[:PORT]>': a port is a number from 1 to 65535",
        ),
        (
            &["-s", "http://h:80/", "who"],
            "invalid value 'http://h:80/' for '--server <HOST[:PORT]>': HOST[:PORT] is wanted, such as localhost:4242, \
             and nothing before or behind it",
        ),
        (
            &["who", "-t", "5"],
            "invalid value '5' for '--timeout <DURATION>': not a duration with its unit, such as 500ms, 10s, 5m or 1h",
        ),
        (
            &["-4", "-6", "who"],
            "the argument '--use-ipv4' cannot be used with '--use-ipv6'",
        ),
    ];
    for (arguments, said) in cases {
        let ran = run(arguments);
        let seen = (ran.status, ran.output.as_str(), ran.errors.lines().next());
        let said = format!("blockchain-tcp: {said}");
        assert_eq!(seen, (64, "", Some(said.as_str())), "{arguments:?}");
    }
}

#[test]
fn a_wrong_variable_is_64_and_named_unless_a_flag_is_given() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;
    let daemon = start();
    let address = daemon.address.to_string();
    let server = "BLOCKCHAIN_TCP_SERVER";
    for (variable, bad, said) in [
        (
            server,
            &b"h:0"[..],
            "invalid value 'h:0' for BLOCKCHAIN_TCP_SERVER: a port is a number from 1 to 65535",
        ),
        (
            "BLOCKCHAIN_TCP_TIMEOUT",
            b"5",
            "invalid value '5' for BLOCKCHAIN_TCP_TIMEOUT: not a duration with its unit, such as 500ms, 10s, 5m or 1h",
        ),
        (
            server,
            b"\x1b[31m",
            "the variable BLOCKCHAIN_TCP_SERVER holds a control character, or something that is not text: \"\\u{1b}[31m\"",
        ),
        (
            server,
            b"x\xff",
            "the variable BLOCKCHAIN_TCP_SERVER holds a control character, or something that is not text: \"x\\xFF\"",
        ),
    ] {
        let with = |arguments: &[&str]| {
            let mut command = client();
            command
                .env(variable, OsStr::from_bytes(bad))
                .args(arguments);
            ran(command.output().expect("it runs"))
        };
        let said = format!("blockchain-tcp: {said}");
        with(&["who"]).fails(64, &said);
        // The flag of the other doesn't help; both do.
        let other = if variable == server { "-t5s" } else { "-sx" };
        with(&[other, "who"]).fails(64, &said);
        with(&["-s", &address, "-t5s", "why"]).is("42");
        assert_eq!(with(&["--help"]).status, 0);
    }
}

#[test]
fn the_variables_count_unless_they_are_empty_or_a_flag_is_given() {
    let (one, other) = (start(), Daemon::start(["--max-clients", "2"]));
    let (at, elsewhere) = (one.address.to_string(), other.address.to_string());
    let with = |server: &str, timeout: &str, arguments: &[&str]| {
        let mut command = client();
        command
            .env("BLOCKCHAIN_TCP_SERVER", server)
            .env("BLOCKCHAIN_TCP_TIMEOUT", timeout)
            .args(arguments);
        ran(command.output().expect("it runs"))
    };
    with(&at, "", &["where"]).is(ID);
    with(&elsewhere, "", &["where", "-s", &at]).is(ID);
    with(&elsewhere, "", &["-s", &at, "where"]).is(ID);
    assert_ne!(with(&elsewhere, "", &["where"]).output, format!("{ID}\n"));
    with("", "", &["-s", &at, "where"]).is(ID);
    for (variable, arguments, shown) in [
        ("250ms", &["who"][..], "0.25"),
        ("1h", &["who", "-t", "150ms"], "0.15"),
        ("1h", &["--timeout", "150ms", "who"], "0.15"),
    ] {
        let server = Server::stalling(b"");
        let ran = with(&server.address.to_string(), variable, arguments);
        ran.fails(
            69,
            &format!("blockchain-tcp: no answer to who within {shown} s"),
        );
    }
}
