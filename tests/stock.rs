//! Programs in three languages for each protocol, over the stock libraries for it: all commands, errors, time-outs, a thousand
//! calls at once, handovers under load, drain.
//!
//! `PROGRAM everything ADDRESS NARROW` asks for everything and prints a line for each answer; those of a protocol print the
//! same. The server at NARROW has room for one client, and closes it soon when it is idle.
//!
//! `PROGRAM load ADDRESS CONNECTIONS` calls without pause over this number of connections, until the server closes them. For each
//! line of its input it prints `round` when every connection has begun and ended a round of calls since, or `closed` if one was
//! closed. In the end it prints how many calls were answered; how many were not, because the server had closed the connection;
//! how many were answered in another connection than the one in which they were sent first; and all failures. The programs of
//! `tests/grpc` do so, too, until their input ends, and print how many calls were answered, how many were late, and all failures.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Instant;

use crate::handover::replace;
use crate::support::registry::{node, python};
use crate::support::{Daemon, PATIENCE, Process, clean, field, stdout_of, wait_for_end};

const ID: &str = "5f0e4b7e-6f0c-4a52-9a35-0c5f7f5a3c1e";
const HANDOVERS: usize = 20;
const CONNECTIONS: u64 = 4;

/// A program that calls without pause. Dropped, it is killed.
pub struct Load {
    process: Process,
    printed: Receiver<String>,
}

/// What it prints in the end: its numbers, and its failures.
#[derive(Debug)]
pub struct Summary(pub Vec<u64>, pub String);

impl Load {
    /// Starts it, without a wait for its first round.
    pub fn start(mut command: Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = Process::start(command);
        let (sender, printed) = channel();
        let lines = BufReader::new(process.child.stdout.take().expect("a pipe")).lines();
        thread::spawn(move || {
            lines
                .map_while(Result::ok)
                .try_for_each(|line| sender.send(line))
        });
        Load { process, printed }
    }

    fn line(&self) -> String {
        self.printed.recv_timeout(PATIENCE).expect("a line in time")
    }

    /// Ends its input, and waits for its end.
    pub fn end(mut self) -> Summary {
        drop(self.process.child.stdin.take());
        let summary = self.line();
        assert!(wait_for_end(&mut self.process.child).is_some_and(|status| status.success()));
        let at = summary.find('[').expect("a list");
        let numbers = summary[..at].split_whitespace();
        let numbers = numbers.map(|number| number.parse().expect("a number"));
        Summary(numbers.collect(), summary[at..].to_string())
    }
}

/// Waits until each connection of each program has begun and ended a round of calls.
pub fn wait_for_rounds(loads: &mut [Load]) {
    for load in &mut *loads {
        let input = load.process.child.stdin.as_mut().expect("a pipe");
        input.write_all(b"\n").expect("it reads");
    }
    for load in loads {
        assert_eq!(load.line(), "round");
    }
}

/// A program in one language.
struct Program {
    language: &'static str,
    command: fn() -> Option<Command>,
}

const PROTOBUF: [Program; 3] = [
    Program {
        language: "Python",
        command: || python_with("tests/protobuf/clients.py"),
    },
    Program {
        language: "Node.js",
        command: || node_with("tests/protobuf/clients.js"),
    },
    Program {
        language: "Java",
        command: java,
    },
];

const JSON_RPC: [Program; 3] = [
    Program {
        language: "Python",
        command: || Some(with_file(python()?, "tests/jsonrpc/clients.py")),
    },
    Program {
        language: "Node.js",
        command: || node_with("tests/jsonrpc/clients.js"),
    },
    Program {
        language: "Perl",
        command: || {
            needs!("perl");
            Some(with_file(clean("perl"), "tests/jsonrpc/clients.pl"))
        },
    },
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn with_file(mut command: Command, file: &str) -> Command {
    command.arg(root().join(file));
    command
}

fn node_with(file: &str) -> Option<Command> {
    let mut node = node()?;
    node.env("SCHEMA", root().join("proto"));
    Some(with_file(node, file))
}

/// An empty folder for what is generated from the schema.
fn generated(language: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("stock");
    let folder = folder.join(language);
    // It may not be there.
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).expect("a folder");
    folder
}

/// Python with what protoc makes of the schema in its path.
fn python_with(file: &str) -> Option<Command> {
    static GENERATED: OnceLock<PathBuf> = OnceLock::new();
    let (mut protoc, mut python) = (python()?, python()?);
    let folder = GENERATED.get_or_init(|| {
        let folder = generated("python");
        protoc.args(["-m", "grpc_tools.protoc", "--proto_path"]);
        protoc.arg(root().join("proto"));
        protoc.arg("--python_out").arg(&folder);
        stdout_of(protoc.arg("blockchain_tcp/v1/blockchain_tcp.proto"));
        folder
    });
    python.env("PYTHONPATH", folder);
    Some(with_file(python, file))
}

fn java() -> Option<Command> {
    needs!("protoc", "javac", "java");
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    const LIBRARY: &str = "/usr/share/java/protobuf.jar";
    let folder = BUILT.get_or_init(|| {
        let folder = generated("java");
        let mut protoc = clean("protoc");
        protoc.arg("-I").arg(root().join("proto"));
        protoc.arg("--java_out").arg(&folder);
        stdout_of(protoc.arg("blockchain_tcp/v1/blockchain_tcp.proto"));
        let mut javac = clean("javac");
        javac.args(["-J-XX:TieredStopAtLevel=1", "-J-XX:+UseSerialGC", "-nowarn"]);
        javac.args(["-cp", LIBRARY, "-d"]).arg(&folder);
        javac.arg(folder.join("blockchain_tcp/v1/BlockchainTcp.java"));
        stdout_of(javac.arg(root().join("tests/protobuf/Clients.java")));
        folder
    });
    let mut java = clean("java");
    java.args(["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-cp"]);
    java.arg(format!("{LIBRARY}:{}", folder.display()));
    java.arg("Clients");
    Some(java)
}

/// Has a program ask for everything: it is to print this, where `ID` stands for the server's id.
fn asks_everything(scheme: &str, program: &Program, printed: &str) {
    let Some(mut command) = (program.command)() else {
        return;
    };
    let begun = Instant::now();
    // Some open a connection for each of a thousand calls.
    let (server, address) = Daemon::speaking(scheme, &["--server-id", ID, "--max-clients", "2048"]);
    let one = ["--max-clients", "1", "--queue", "0", "--idle-timeout", "2s"];
    let (_narrow, narrow) = Daemon::speaking(scheme, &one);
    command.args(["everything", &address.to_string(), &narrow.to_string()]);
    assert_eq!(stdout_of(&mut command), printed.replace("ID", ID));
    eprintln!("{} over {scheme}: {:?}", program.language, begun.elapsed());
    server.stop();
}

/// Hands the server over while these programs call, and stops it in the end: every call that it has executed is answered once
/// and right. Returns how many connections it has accepted.
fn lose_no_call(scheme: &str, programs: &[Program]) -> Option<u64> {
    let commands: Option<Vec<_>> = programs.iter().map(|one| (one.command)()).collect();
    let commands = commands?;
    let begun = Instant::now();
    let (mut daemon, address) = Daemon::speaking(scheme, &["--log", "trace"]);
    let start = |mut command: Command| {
        command.args(["load", &address.to_string(), &CONNECTIONS.to_string()]);
        Load::start(command)
    };
    let mut loads: Vec<Load> = commands.into_iter().map(start).collect();
    wait_for_rounds(&mut loads);
    for _ in 0..HANDOVERS {
        replace(&daemon);
        wait_for_rounds(&mut loads);
    }
    daemon.signal("TERM");
    let mut all = 0;
    for (load, program) in loads.into_iter().zip(programs) {
        let Summary(numbers, failed) = load.end();
        let [answered, unaccepted, again] = numbers[..] else {
            panic!("three numbers: {numbers:?}");
        };
        eprintln!(
            "{} over {scheme}: {answered} calls were answered, {again} of them in another connection, {unaccepted} not accepted",
            program.language
        );
        assert_eq!((again, &*failed), (0, "[]"), "{}", program.language);
        assert!(answered > 100, "{}: {answered}", program.language);
        all += answered;
    }
    assert!(daemon.wait().success());
    let log = daemon.log().whole();
    eprintln!("{scheme}: {:?}", begun.elapsed());
    assert!(!log.contains("ERROR"), "{log}");
    let is_of_this = |line: &&str| line.contains(&format!(" protocol={scheme} request="));
    let logged = log.lines().filter(is_of_this).count() as u64;
    // Of a connection that is busy, the log has some requests and the number of the others.
    let others = sum(&log, "more requests in the same second", "requests");
    let lost = sum(&log, "lost: nobody read the log", "lines");
    let executed = logged + others;
    assert!(
        executed <= all && (lost > 0 || executed == all),
        "{executed} calls executed, {all} answered, {lost} lines lost"
    );
    Some(
        field(log.lines().last().expect("a line"), "accepted")
            .parse()
            .expect("a number"),
    )
}

/// The sum of `key=` in the lines of the log that contain `text`.
fn sum(log: &str, text: &str, key: &str) -> u64 {
    let lines = log.lines().filter(|line| line.contains(text));
    lines
        .map(|line| field(line, key).parse::<u64>().expect("a number"))
        .sum()
}

/// - A client sends messages of the type `Request`, and the server answers each with one of the type `Response`, in their order.
/// - Each message comes after its length in bytes, a varint.
/// - Clients need not wait for a response before they send the next request.
/// - A response has the `id` of its request.
/// - The `result` has the name of the `command`, or it is an `error`.
/// - The code of an `error` is named after the word of the line protocol, and its `message` is the sentence.
/// - When the client shuts down its sending side, it gets all responses, and then the server closes.
#[test]
fn python_asks_everything_over_protobuf() {
    asks_everything(
        "protobuf",
        &PROTOBUF[0],
        include_str!("protobuf/clients.txt"),
    );
}

#[test]
fn node_js_asks_everything_over_protobuf() {
    asks_everything(
        "protobuf",
        &PROTOBUF[1],
        include_str!("protobuf/clients.txt"),
    );
}

#[test]
fn java_asks_everything_over_protobuf() {
    asks_everything(
        "protobuf",
        &PROTOBUF[2],
        include_str!("protobuf/clients.txt"),
    );
}

#[test]
fn python_asks_everything_over_json_rpc() {
    asks_everything("http", &JSON_RPC[0], include_str!("jsonrpc/clients.txt"));
}

#[test]
fn node_js_asks_everything_over_json_rpc() {
    asks_everything("http", &JSON_RPC[1], include_str!("jsonrpc/clients.txt"));
}

#[test]
fn perl_asks_everything_over_json_rpc() {
    asks_everything("http", &JSON_RPC[2], include_str!("jsonrpc/clients.txt"));
}

/// - When the server stops, it answers the requests that have arrived, and closes: one without a response was not executed.
#[test]
fn no_call_over_protobuf_is_lost() {
    if let Some(accepted) = lose_no_call("protobuf", &PROTOBUF) {
        assert_eq!(accepted, 3 * CONNECTIONS, "nobody connects anew");
    }
}

/// - When the server stops, a call whose connection is closed without an answer was not executed.
#[test]
fn no_call_over_json_rpc_is_lost() {
    if let Some(accepted) = lose_no_call("http", &JSON_RPC) {
        // Node.js connects anew where the old connection is not ready for the next call.
        let all = 3 * CONNECTIONS;
        assert!((all..=2 * all).contains(&accepted), "{accepted}");
    }
}
