//! The clients of `examples/clients`: each against the daemon, and against servers that mean harm.
//!
//! Every scenario is a test of each language, and named so: `samples::perl::comes_back_when_it_is_reset`.

mod copied;
mod daemon;
mod hostile;
mod readme;
mod run;
mod server;
mod words;

use std::ffi::{OsStr, OsString};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use run::{Outcome, Run};

/// A client in one language.
struct Sample {
    /// Its file.
    file: &'static str,
    /// The programs that it needs.
    programs: &'static [&'static str],
    /// Words that build it, with the file behind; none if it needs no building. OUT is where everything goes to.
    build: &'static [&'static str],
    /// Words that run it, or what was built.
    run: &'static [&'static str],
    built: OnceLock<()>,
}

impl Sample {
    const fn interpreted(file: &'static str, program: &'static [&'static str; 1]) -> Self {
        Self::compiled(file, program, &[], program)
    }

    const fn compiled(
        file: &'static str,
        programs: &'static [&'static str],
        build: &'static [&'static str],
        run: &'static [&'static str],
    ) -> Self {
        Sample {
            file,
            programs,
            build,
            run,
            built: OnceLock::new(),
        }
    }

    /// Whether all its programs are, by this check.
    fn is(&self, installed: fn(&str) -> bool) -> bool {
        self.programs.iter().all(|program| installed(program))
    }

    /// The command that runs it, built if need be.
    fn command(&self) -> Command {
        self.built.get_or_init(|| self.build());
        let mut words = self.run.iter().map(|word| placed(word));
        let mut command = Command::new(words.next().expect("a program"));
        command.args(words);
        if self.build.is_empty() {
            command.arg(folder().join(self.file));
        }
        for variable in ["TIMEOUT", "KEEPALIVE", "JAVA_TOOL_OPTIONS"] {
            command.env_remove(variable);
        }
        command.stdin(Stdio::null());
        command
    }

    fn build(&self) {
        std::fs::create_dir_all(out()).expect("a folder");
        let Some((program, words)) = self.build.split_first() else {
            return;
        };
        let built = anywhere(&mut Command::new(program))
            .args(words.iter().map(|word| placed(word)))
            .arg(folder().join(self.file))
            .output()
            .expect("the compiler runs");
        let said = String::from_utf8_lossy(&built.stderr);
        assert!(built.status.success() && said.is_empty(), "{said}");
    }

    /// Runs it with these arguments to its end.
    fn ask(&self, arguments: &[impl AsRef<OsStr>]) -> Outcome {
        self.start(arguments, &[("TIMEOUT", LONG)]).end()
    }

    fn start(&self, arguments: &[impl AsRef<OsStr>], variables: &[(&str, &str)]) -> Run {
        let mut command = self.command();
        command.args(arguments).envs(variables.iter().copied());
        Run::start(command, Stdio::piped())
    }
}

/// The arguments that name a server, and then these.
fn asked(server: SocketAddr, requests: &[impl AsRef<str>]) -> Vec<String> {
    let requests = requests.iter().map(|request| request.as_ref().to_string());
    [server.ip().to_string(), server.port().to_string()]
        .into_iter()
        .chain(requests)
        .collect()
}

/// The same again and again, with so many seconds between.
fn repeated(seconds: &str, server: SocketAddr, requests: &[impl AsRef<str>]) -> Vec<String> {
    let repeat = ["--repeat".to_string(), seconds.to_string()];
    let asked = asked(server, requests);
    repeat.into_iter().chain(asked).collect()
}

/// A time-out that no server is meant to miss, on however busy a machine.
const LONG: &str = "20";

/// Asks a server so many requests, sees all of them answered, and returns how many clients came.
#[track_caller]
fn all_answered(sample: &Sample, server: server::Server, number: usize, timeout: &str) -> usize {
    let requests = server::requests(number);
    let run = sample.start(&asked(server.address, &requests), &[("TIMEOUT", timeout)]);
    run.end().is(0, &server::printed(&requests));
    server.end()
}

/// Nothing is printed.
const NOTHING: &[&str] = &[];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/clients")
}

fn out() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("samples")
}

fn placed(word: &str) -> OsString {
    match word.strip_prefix("OUT") {
        Some(rest) => {
            let mut path = out().into_os_string();
            path.push(rest);
            path
        }
        None => word.into(),
    }
}

/// Go keeps what it has compiled in the home directory, which may be missing, and looks for modules, of which there are none.
fn anywhere(command: &mut Command) -> &mut Command {
    command.env("GOCACHE", out().join("go"));
    command.env("GO111MODULE", "off").env("GOFLAGS", "")
}

macro_rules! samples {
    ($($language:ident: $sample:expr,)*) => {
        $(mod $language {
            use super::Sample;

            pub static SAMPLE: Sample = $sample;

            super::scenarios! {
                daemon:
                answers_every_request_in_order
                tells_what_the_server_refuses
                says_that_the_server_is_busy
                comes_back_when_there_is_room
                says_that_nobody_listens
                tries_every_address_of_a_name
                passes_over_addresses_that_let_nobody_in
                asks_thousands_at_once
                asks_again_and_again_on_one_connection
                keeps_the_connection_alive
                goes_on_when_the_server_was_restarted
                leaves_at_a_signal
                refuses_to_be_called_wrongly
                says_that_it_cannot_print
                ends_quietly_when_nobody_reads
            }
            super::scenarios! {
                hostile:
                takes_replies_that_dribble
                takes_replies_that_are_cut_anyhow
                gives_up_a_server_that_lets_nobody_in
                gives_up_a_server_that_says_nothing
                comes_back_when_the_first_reply_is_late
                comes_back_when_a_reply_stops_half_way
                gives_up_a_reply_that_trickles
                comes_back_when_the_server_closes_at_once
                comes_back_as_often_as_it_is_answered
                takes_no_reply_that_was_cut
                comes_back_when_it_is_reset
                comes_back_when_it_is_reset_before_it_asks_on
                never_waits_for_a_server_that_waits
                asks_again_what_was_on_its_way
                goes_on_when_there_was_no_server_for_a_while
                leaves_a_server_that_says_nothing
            }
            super::scenarios! {
                words:
                gives_up_a_line_without_end
                takes_a_line_that_is_as_long_as_may_be
                takes_nothing_that_is_no_text
                asks_again_when_the_server_was_busy
                takes_the_last_words_for_no_reply
                takes_nothing_that_was_not_asked_for
                takes_what_comes_first_for_the_first_reply
                takes_pong_alone_for_a_sign_of_life
                goes_on_after_an_error_that_closes
                takes_what_only_looks_like_an_error
            }
        })*

        /// Every sample.
        static SAMPLES: &[&Sample] = &[$(&$language::SAMPLE),*];
    };
}

macro_rules! scenarios {
    ($of:ident: $($scenario:ident)*) => {
        $(#[test]
        fn $scenario() {
            if SAMPLE.is(crate::support::installed) {
                crate::samples::$of::$scenario(&SAMPLE);
            }
        })*
    };
}
use scenarios;

samples! {
    python: Sample::interpreted("client.py", &["python3"]),
    node: Sample::interpreted("client.js", &["node"]),
    perl: Sample::interpreted("client.pl", &["perl"]),
    bash: Sample::interpreted("client.bash", &["bash"]),
    go: Sample::compiled(
        "client.go",
        &["go"],
        &["go", "build", "-o", "OUT/client-go"],
        &["OUT/client-go"],
    ),
    java: Sample::compiled(
        "Client.java",
        &["javac", "java"],
        &["javac", "-Xlint:all", "-d", "OUT/java"],
        &["java", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-cp", "OUT/java", "Client"],
    ),
    c: Sample::compiled(
        "client.c",
        &["gcc"],
        &[
            "gcc", "-std=c11", "-O2", "-Wall", "-Wextra", "-Wpedantic", "-Wconversion",
            "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-o", "OUT/client-c",
        ],
        &["OUT/client-c"],
    ),
    rust: Sample::compiled(
            "client.rs",
            &["rustc"],
            &["rustc", "--edition", "2021", "-O", "-D", "warnings", "-o", "OUT/client-rs"],
            &["OUT/client-rs"],
        ),
}
