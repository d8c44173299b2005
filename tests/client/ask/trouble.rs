//! No connection, no reply, no room, no server of ours, nobody who reads: each has its exit status and its sentence.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;

use super::{Server, ask, start};
use crate::client::{HINT, Ran, client, ran, run};
use crate::support::names::Deaf;
use crate::support::{Daemon, wait_until};

#[test]
fn no_connection_or_no_reply_is_69() {
    let daemon = start();
    let address = daemon.address;
    daemon.stop();
    ask(address, "who").fails(
        69,
        &format!("blockchain-tcp: can't connect to {address}: Connection refused\n{HINT}"),
    );
    let cases: [(&[u8], &str); 2] = [
        (b"", "closed without an answer to who"),
        (b"1", "closed in the middle of the answer to who: \"1\""),
    ];
    for (answer, said) in cases {
        let server = Server::answering(answer);
        ask(server.address, "who").fails(69, &format!("blockchain-tcp: {said}"));
    }
}

#[test]
fn a_line_without_an_end_is_76() {
    let pouring = Server::start(|stream| while stream.write_all(&[b'x'; 1000]).is_ok() {});
    let said = "x".repeat(80);
    ask(pouring.address, "who").fails(
        76,
        &format!(
            "blockchain-tcp: this is not a blockchain-tcpd: the answer to who doesn't end: \"{said}...\""
        ),
    );
}

/// The longest reply is longer than any of a server of ours.
#[test]
fn a_long_reply_comes_whole() {
    let reply: &'static str = "123456789 ".repeat(1600).leak();
    let line: &'static str = format!("{}\n", reply.trim_end()).leak();
    let server = Server::answering(line.as_bytes());
    let ran = ask(server.address, "np 1 511");
    assert!(ran.output == line, "{}", ran.output.len());
}

#[test]
fn one_that_stalls_is_69_at_the_time_out() {
    let timed = |address: SocketAddr, said: &str| {
        let begun = Instant::now();
        let ran = ask(address, "-t 400ms who");
        ran.fails(69, &format!("blockchain-tcp: {said}"));
        let passed = begun.elapsed();
        let bounds = Duration::from_millis(400)..Duration::from_secs(5);
        assert!(bounds.contains(&passed), "{passed:?}");
    };
    for answer in [&b""[..], b"1"] {
        let server = Server::stalling(answer);
        timed(server.address, "no answer to who within 0.4 s");
    }
    // It says something all the time, and never all.
    let trickling = Server::start(|stream| {
        while stream.write_all(b"1").is_ok() {
            std::thread::park_timeout(Duration::from_millis(20));
        }
    });
    timed(trickling.address, "no answer to who within 0.4 s");
    let deaf = Deaf::at(SocketAddr::from(([127, 0, 0, 1], 0)));
    let said = format!("can't connect to {}: connection timed out", deaf.address);
    timed(deaf.address, &said);
}

#[test]
fn a_full_server_is_75() {
    let daemon = Daemon::start(["--max-clients", "1", "--queue", "0"]);
    let _stays = daemon.connect();
    // The one that stays may be let in a little later.
    wait_until("it is full", || ask(daemon.address, "who").status == 75);
    let ran = ask(daemon.address, "who");
    assert!(ran.errors.starts_with("ERR BUSY "), "{ran:?}");
    ran.fails(75, ran.errors.trim_end());
    let ran = ask(daemon.address, "--json who");
    assert_eq!(
        (ran.status, &ran.json()["error"]["word"]),
        (75, &json!("BUSY"))
    );
}

#[test]
fn what_cannot_be_printed_is_74_and_said_unless_nobody_reads() {
    let daemon = start();
    let address = daemon.address.to_string();
    let full = || {
        File::options()
            .write(true)
            .open("/dev/full")
            .expect("it is there")
    };
    let printing_to = |stdout: Stdio, arguments: &[&str]| {
        let mut command = client();
        command.args(["-s", &address]).args(arguments);
        let child = command.stdout(stdout).stderr(Stdio::piped()).spawn();
        ran(child.expect("it runs").wait_with_output().expect("it ends"))
    };
    for arguments in [
        &["who"][..],
        &["--json", "who"],
        &["--json", "foo"],
        &["--help"],
    ] {
        printing_to(full().into(), arguments).fails(
            74,
            "blockchain-tcp: can't write to standard output: No space left on device",
        );
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let ran = printing_to(writer.into(), arguments);
        assert_eq!((ran.status, ran.errors.as_str()), (74, ""));
    }
    // An exit status tells it even if the sentence can't be written.
    let mut command = client();
    command.args(["-s", &address, "foo"]).stderr(full());
    assert_eq!(command.status().expect("it runs").code(), Some(1));
}

/// The client with these arguments and redirections, as a shell starts it.
fn redirected(redirections: &str, arguments: &[&str]) -> Ran {
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("exec \"$@\" {redirections}"), "sh"]);
    let client = client();
    shell.arg(client.get_program()).args(arguments);
    for (name, value) in client.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    ran(shell.output().expect("it runs"))
}

#[test]
fn an_output_or_input_that_was_closed_is_74() {
    let daemon = start();
    let address = daemon.address.to_string();
    let closed = "blockchain-tcp: can't write to standard output: Bad file descriptor";
    for arguments in [
        &["who"][..],
        &["--json", "foo"],
        &["--help"],
        &["--version"],
        &["completions", "bash"],
        // These would go on for long.
        &["watch"],
        &["--json", "watch", "--every", "1h"],
        &["bench", "-d", "1h"],
    ] {
        let arguments = [&["-s", &address], arguments].concat();
        redirected(">&-", &arguments).fails(74, closed);
    }
    let arguments = ["-s", &address, "connect"];
    redirected("<<-. >&-\nwhy\n.\n", &arguments).fails(74, closed);
    let input = "blockchain-tcp: can't read standard input: Bad file descriptor";
    redirected("<&-", &arguments).fails(74, input);
    // If there is nothing to be printed, nothing is missing.
    let unknown = "ERR UNKNOWN no such command: \"foo\" (try HELP)";
    redirected(">&-", &["-s", &address, "foo"]).fails(1, unknown);
    assert_eq!(redirected("2>&-", &["-s", &address, "foo"]).status, 1);
    // However it was opened: Python and Node.js can read it, too.
    for redirection in [">/dev/null", "1<>/dev/null", "<>/dev/null >&0"] {
        let ran = redirected(redirection, &["-s", &address, "who"]);
        assert_eq!((ran.status, ran.errors.as_str()), (0, ""), "{redirection}");
    }
}

#[test]
fn a_standard_error_that_does_not_block_is_waited_for() {
    let daemon = start();
    let (mut reader, mut writer) = std::io::pipe().expect("a pipe");
    rustix::io::ioctl_fionbio(&writer, true).expect("a flag");
    let mut full = 0;
    while let Ok(written) = writer.write(&[b'x'; 4096]) {
        full += written;
    }
    let mut command = client();
    command.args(["-s", &daemon.address.to_string(), "foo"]);
    let mut child = command.stderr(writer).spawn().expect("it starts");
    drop(command);
    let status = format!("/proc/{}/stat", child.id());
    // It has asked, and either waits or has given up.
    wait_until("it sleeps or has ended", || {
        let stat = std::fs::read_to_string(&status).unwrap_or_default();
        let state = stat
            .rsplit(") ")
            .next()
            .and_then(|rest| rest.chars().next());
        daemon.ask("WHO\n") == "1\n" && matches!(state, Some('S' | 'Z') | None)
    });
    let mut all = String::new();
    reader.read_to_string(&mut all).expect("ASCII");
    let said = "ERR UNKNOWN no such command: \"foo\" (try HELP)\n";
    assert_eq!(&all[full..], said);
    assert_eq!(child.wait().expect("it ends").code(), Some(1));
}

/// What the user has asked, and how that is shown.
#[test]
fn what_was_asked_is_escaped_too() {
    let asked = ["help", "\x1b[2J\u{9b}m\x7f"];
    let shown = r"help \x1b[2J\xc2\x9bm\x7f";
    let with = |server: SocketAddr, options: &[&str]| {
        let address = server.to_string();
        run([&["-s", &address][..], options, &asked].concat())
    };
    let at = |server: &Server| server.address;
    for (answer, status, said) in [
        (&b""[..], 69, format!("closed without an answer to {shown}")),
        (
            b"4",
            69,
            format!("closed in the middle of the answer to {shown}: \"4\""),
        ),
        (
            b"\xff\n",
            76,
            format!(
                "this is not a blockchain-tcpd: {shown} is answered \"\\xff\" instead of a line of printable ASCII"
            ),
        ),
    ] {
        let ran = with(at(&Server::answering(answer)), &[]);
        ran.fails(status, &format!("blockchain-tcp: {said}"));
        let ran = with(at(&Server::answering(answer)), &["--json"]);
        assert_eq!(ran.json()["error"]["message"], said);
        assert_eq!(ran.json()["request"], asked.join(" "));
        assert!(!ran.output.trim_end().contains(char::is_control), "{ran:?}");
    }
    let late = format!("blockchain-tcp: no answer to {shown} within 0.4 s");
    with(at(&Server::stalling(b"")), &["-t", "400ms"]).fails(69, &late);
    // What is wrong with the command line, also in the advice.
    for (arguments, said) in [
        (
            &["--b\x1b[2J\u{9b}ogus"][..],
            r"unexpected argument '--b\x1b[2J\xc2\x9bogus' found",
        ),
        (
            &["who", "-t", "\x07\u{9b}"],
            r"invalid value '\x07\xc2\x9b' for '--timeout <DURATION>': not a duration with its unit, such as 500ms, 10s, 5m or 1h",
        ),
        (
            &["who", "-t", "1\n\nblockchain-tcp: 2"],
            r"invalid value '1\x0a\x0ablockchain-tcp: 2' for '--timeout <DURATION>': not a duration with its unit, such as 500ms, 10s, 5m or 1h",
        ),
        (
            &["--x\ny\x1b", "who"],
            r"unexpected argument '--x\x0ay\x1b' found",
        ),
        (
            &["-s", "a\u{9b}", "who"],
            r"invalid value 'a\xc2\x9b' for '--server <HOST[:PORT]>': not a name or an address, such as localhost:4242 or [::1]:4242",
        ),
    ] {
        let ran = run(arguments);
        let first = ran.errors.lines().next().unwrap_or_default();
        assert_eq!(
            (ran.status, first),
            (64, &*format!("blockchain-tcp: {said}"))
        );
        // Besides: advice, and where to read more.
        let raw = arguments
            .iter()
            .flat_map(|argument| argument.split('\n').skip(1));
        for rest in raw.filter(|rest| !rest.is_empty()) {
            assert!(
                !ran.errors.lines().any(|line| line.starts_with(rest)),
                "{ran:?}"
            );
        }
    }
}

/// Requests, what is answered, and how that is shown.
const NONE_OF_OURS: [(&str, &[u8], &str); 12] = [
    (
        "who",
        b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n",
        r#"who is answered "HTTP/1.1 400 Bad Request\x0d" instead of a number from 1 on"#,
    ),
    (
        "help",
        b"SSH-2.0-OpenSSH_9.2p1\r\n",
        r#"help is answered "SSH-2.0-OpenSSH_9.2p1\x0d" instead of a line of printable ASCII"#,
    ),
    (
        "who",
        b"0\n",
        r#"who is answered "0" instead of a number from 1 on"#,
    ),
    (
        "where",
        b"here\n",
        r#"where is answered "here" instead of a UUID"#,
    ),
    ("why", b"43\n", r#"why is answered "43" instead of 42"#),
    (
        "ping",
        b"pong\n",
        r#"ping is answered "pong" instead of PONG"#,
    ),
    (
        "help",
        b"\n",
        r#"help is answered "" instead of a line of printable ASCII"#,
    ),
    (
        "help",
        b"ERR\n",
        r#"help is answered "ERR" instead of a line of printable ASCII"#,
    ),
    (
        "help",
        b"ERR no\n",
        r#"help is answered "ERR no" instead of a line of printable ASCII"#,
    ),
    (
        "help",
        b"caf\xc3\xa9\x1b[2J\x07\n",
        r#"help is answered "caf\xc3\xa9\x1b[2J\x07" instead of a line of printable ASCII"#,
    ),
    // A greeting that nobody has asked for, and what is said about the request.
    (
        "help",
        b"220 ready\n500 what?\n",
        r#"more is answered than was asked: "500 what?\x0a""#,
    ),
    // It is not waited for the end of such a line.
    (
        "help",
        b"\xff\xfd\x18",
        r#"help is answered "\xff\xfd\x18" instead of a line of printable ASCII"#,
    ),
];

#[test]
fn a_server_of_another_kind_is_76_whatever_it_says() {
    for (words, answer, said) in NONE_OF_OURS {
        let said = format!("this is not a blockchain-tcpd: {said}");
        let ran = ask(Server::stalling(answer).address, words);
        ran.fails(76, &format!("blockchain-tcp: {said}"));
        let ran = ask(Server::stalling(answer).address, &format!("--json {words}"));
        let wanted = json!({ "word": null, "message": said });
        assert_eq!((ran.status, &ran.json()["error"]), (76, &wanted));
    }
    // That is how a server of ours says goodbye.
    ask(
        Server::answering(b"1\nERR TIMEOUT too long\n").address,
        "who",
    )
    .is("1");
}
