//! Sessions written down: what is run and typed, and what must be seen. A file has any number of them, each below its `== title`.
//!
//! A line is a step. Bash runs the commands, with this project's programs in its PATH, in the root of the project. `$SERVER`, `$HOST` and
//! `$PORT` are the server started last, `$DIR` is a folder of the session's own, `$ID` an id, `$PID` the process that runs,
//! `${x*1500}` is a text that is repeated; `[..]` in what must be seen is any text.
//!
//! - `$ COMMAND`, `@ COMMAND`: is started with pipes, or in a terminal of 24 by 100; `#` is a comment
//! - `< TEXT`: is a line of input, or typed (`\r` is Enter, `\x03` ^C)
//! - `> LINE`, `! LINE`: is the next line on standard output, on standard error; `>* LINE`, `!* LINE` any number of such
//! - `| LINE`: lines with which the screen ends; `times N TEXT`: how often the terminal was sent that
//! - `? STATUS`: its input ends, and it does with this status (128 and its number after a signal), or any (`*`); with `open` behind,
//!   it ends before its input. All that it has printed must have been expected. Without this line the status is 0.
//! - `took MIN MAX`: the seconds that took; `signal NAME` to the process;
//!   `resize ROWS COLUMNS`; `switch` to the terminal before
//! - `daemon ARGUMENTS`, `stop`, `kill`, `replace` (by a handover), `client` connects and stays, `leave`
//! - `server [ADDRESS]` and the lines of a [`script`] below; `asked N REQUEST` at least so often; `came N+` at least so many clients;
//!   `came N`: so many, all have gone, and the server ends
//! - `nobody`, `deaf [ADDRESS]`: an address where nobody listens, or where the listener's backlog is full
//! - `metric N SERIES`, `metric N+ SERIES`: the sum of the daemon's metrics that begin so becomes N, or at least N
//! - `run COMMAND` must end well; `until COMMAND` must at last; `set NAME COMMAND`: what it prints
//! - `needs PROGRAM`, `needs unshare FLAGS`, `needs ipv6`: the session is left out without it

mod script;

use std::io::{Read, Write as _};
use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, ChildStdin, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::support::names::Deaf;
use crate::support::terminal::Terminal;
use crate::support::{
    CLIENT, Client, Daemon, Scratch, http, installed, kernel, kill, program, wait_until,
};
use script::{ID, ScriptedServer, unescape};

/// Plays all sessions of this file in the folder of the tests, with these variables besides.
pub fn play(file: &str, variables: &[(&str, &str)]) {
    let path = format!("{}/tests/{file}", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let mut lines = text.lines().zip(1..).peekable();
    while lines
        .next_if(|(line, _)| !line.starts_with("== "))
        .is_some()
    {}
    while let Some((title, _)) = lines.next() {
        let own = std::iter::from_fn(|| lines.next_if(|(line, _)| !line.starts_with("== ")));
        let steps: Vec<(String, usize)> = own.map(|(line, at)| (line.to_string(), at)).collect();
        Session::new(format!("tests/{file}: {title}"), variables).play(&steps);
    }
}

/// A session that is played.
pub struct Session {
    place: String,
    variables: Vec<(String, String)>,
    directory: Scratch,
    process: Option<Process>,
    other: Option<Process>,
    took: Duration,
    screen: Vec<String>,
    daemons: Vec<Daemon>,
    clients: Vec<Client>,
    servers: Vec<ScriptedServer>,
    deaf: Vec<Deaf>,
}

enum Process {
    Piped(Box<Piped>),
    Terminal(Terminal),
}

impl Session {
    fn new(place: String, variables: &[(&str, &str)]) -> Self {
        let mut session = Session {
            place,
            variables: Vec::new(),
            directory: Scratch::new(),
            process: None,
            other: None,
            took: Duration::ZERO,
            screen: Vec::new(),
            daemons: Vec::new(),
            clients: Vec::new(),
            servers: Vec::new(),
            deaf: Vec::new(),
        };
        let directory = session.directory.path().display().to_string();
        let programs = std::path::Path::new(CLIENT.as_str()).parent();
        let programs = programs.expect("a folder").display();
        let path = std::env::var("PATH").unwrap_or_default();
        session.set("PATH", format!("{programs}:{path}"));
        // Nobody's history.
        session.set("HOME", "/nonexistent");
        session.set("BLOCKCHAIN_TCP_HISTORY", "");
        session.set("LANG", "C.UTF-8");
        session.set("ID", ID);
        session.set("DIR", directory);
        variables
            .iter()
            .for_each(|(name, value)| session.set(name, *value));
        session
    }

    fn set(&mut self, name: &str, value: impl ToString) {
        self.variables.retain(|(known, _)| known != name);
        self.variables.push((name.to_string(), value.to_string()));
        // The longest first, of which others may be the beginning.
        self.variables
            .sort_by_key(|(name, _)| std::cmp::Reverse(name.len()));
    }

    fn is_at(&mut self, server: SocketAddr) {
        self.set("SERVER", server);
        self.set("HOST", server.ip());
        self.set("PORT", server.port());
    }

    fn play(mut self, steps: &[(String, usize)]) {
        let title = self.place.clone();
        let mut steps = steps.iter().peekable();
        while let Some((line, number)) = steps.next() {
            self.place = format!("{title}, line {number}: {line}");
            let line = repeated(line);
            let (word, rest) = line.split_once(' ').unwrap_or((&line, ""));
            if word != "|" {
                self.see();
            }
            match word {
                "" | "#" => {}
                "needs" if !has(rest) => return,
                "needs" => {}
                "server" => {
                    let rules =
                        std::iter::from_fn(|| steps.next_if(|(line, _)| line.starts_with(' ')));
                    let rules = rules.map(|(line, _)| self.expand(repeated(line).trim_start()));
                    let rules: Vec<String> = rules.collect();
                    let server = ScriptedServer::at(self.address(rest), &rules);
                    self.is_at(server.address);
                    self.servers.push(server);
                }
                _ => self.step(word, rest),
            }
        }
        self.see();
        self.finish();
        (self.process, self.other) = (None, None);
        self.servers.iter_mut().for_each(ScriptedServer::end);
    }

    fn step(&mut self, word: &str, rest: &str) {
        let text = self.expand(rest);
        let number = || text.split_once(' ').unwrap_or((&text, ""));
        match word {
            "$" => {
                self.finish();
                let piped = Piped::start(self.command(rest));
                self.set("PID", piped.child.id());
                self.process = Some(Process::Piped(Box::new(piped)));
            }
            "@" => {
                self.finish();
                let terminal = Terminal::start(self.command(rest), 24, 100);
                self.set("PID", terminal.pid());
                self.other = self.process.replace(Process::Terminal(terminal));
            }
            "switch" => std::mem::swap(&mut self.process, &mut self.other),
            "<" => match self.process.as_mut().expect("a process") {
                Process::Piped(piped) => piped.write(&text),
                Process::Terminal(terminal) => {
                    terminal.type_in(&unescaped(&text));
                }
            },
            ">" => self.piped().out.next_is(&text),
            "!" => self.piped().err.next_is(&text),
            ">*" => self.piped().out.between = Some(text),
            "!*" => self.piped().err.between = Some(text),
            "|" => self.screen.push(text),
            "?" => self.end(&text),
            "times" => {
                let (times, what) = number();
                let what = unescaped(what);
                let all = self.terminal().all();
                assert_eq!(all.matches(&what).count().to_string(), times, "{all:?}");
            }
            "took" => {
                let (least, most) = number();
                let [least, most] = [least, most].map(|text| text.parse().expect("seconds"));
                assert!(
                    (least..most).contains(&self.took.as_secs_f64()),
                    "{:?}",
                    self.took
                );
            }
            "signal" => {
                let pid = self.process_id();
                assert!(kill(&text, pid));
            }
            "resize" => {
                let (rows, columns) = number();
                let [rows, columns] = [rows, columns].map(|text| text.parse().expect("a number"));
                self.terminal().resize(rows, columns);
            }
            "daemon" => {
                let mut command = program();
                if !text.contains("--listen ") {
                    command.args(["--listen", "127.0.0.1:0"]);
                }
                command.args(text.split_whitespace());
                let daemon = Daemon::run(command);
                self.is_at(daemon.address);
                self.daemons.push(daemon);
            }
            "stop" => drop(self.daemons.pop().expect("a daemon").stop()),
            "kill" => drop(self.daemons.pop().expect("a daemon")),
            "replace" => crate::handover::replace(self.daemon()),
            "client" => {
                let mut client = self.daemon().connect();
                assert!(client.ask("WHO").parse::<usize>().is_ok());
                self.clients.push(client);
            }
            "leave" => drop(self.clients.pop().expect("a client")),
            "nobody" => self.is_at(kernel::own_address()),
            "deaf" => {
                let deaf = Deaf::at(self.address(rest));
                self.is_at(deaf.address);
                self.deaf.push(deaf);
            }
            "asked" => {
                let (times, request) = number();
                let times = times.parse().expect("a number");
                let server = self.servers.last().expect("a server");
                wait_until(&text, || server.asked(request) >= times);
            }
            "came" => {
                let server = self.servers.last_mut().expect("a server");
                match text.strip_suffix('+') {
                    Some(least) => {
                        let least = least.parse().expect("a number");
                        wait_until(&text, || server.connections() >= least);
                    }
                    None => {
                        server.end();
                        assert_eq!(server.connections().to_string(), text);
                        self.servers.pop();
                    }
                }
            }
            "metric" => {
                let (wanted, series) = number();
                let (least, more) = (wanted.trim_end_matches('+'), wanted.ends_with('+'));
                let least: u64 = least.parse().expect("a number");
                let series = unescaped(series);
                wait_until(&text, || {
                    let value = counted(self.daemon(), &series);
                    value == least || more && value > least
                });
            }
            "run" => drop(self.output(rest)),
            "until" => wait_until(&text, || {
                let output = self.command(rest).stdin(Stdio::null()).output();
                output.expect("bash runs").status.success()
            }),
            "set" => {
                let (name, command) = rest.split_once(' ').expect("a name and a command");
                let output = self.output(command).stdout;
                self.set(name, String::from_utf8(output).expect("UTF-8").trim_end());
            }
            _ => panic!("no step {word:?}"),
        }
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new("bash");
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("BLOCKCHAIN_TCP") {
                command.env_remove(name);
            }
        }
        for name in [
            "XDG_STATE_HOME",
            "TIMEOUT",
            "KEEPALIVE",
            "JAVA_TOOL_OPTIONS",
        ] {
            command.env_remove(name);
        }
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        command
            .args(["-o", "pipefail", "-c", line])
            .current_dir(env!("CARGO_MANIFEST_DIR"));
        command
    }

    fn output(&self, line: &str) -> Output {
        let output = self
            .command(line)
            .stdin(Stdio::null())
            .output()
            .expect("bash runs");
        assert!(output.status.success(), "{output:?}");
        output
    }

    fn expand(&self, text: &str) -> String {
        let variables = self.variables.iter();
        variables.fold(text.to_string(), |text, (name, value)| {
            text.replace(&format!("${name}"), value)
        })
    }

    /// Where a server is to be: any free port unless that is said.
    fn address(&self, text: &str) -> SocketAddr {
        match self.expand(text).as_str() {
            "" => SocketAddr::from(([127, 0, 0, 1], 0)),
            text => text.parse().expect("an address"),
        }
    }

    fn daemon(&self) -> &Daemon {
        self.daemons.last().expect("a daemon")
    }

    fn piped(&mut self) -> &mut Piped {
        match &mut self.process {
            Some(Process::Piped(piped)) => piped,
            _ => panic!("nothing runs with pipes"),
        }
    }

    fn terminal(&self) -> &Terminal {
        match &self.process {
            Some(Process::Terminal(terminal)) => terminal,
            _ => panic!("nothing runs in a terminal"),
        }
    }

    fn process_id(&self) -> u32 {
        match self.process.as_ref().expect("a process") {
            Process::Piped(piped) => piped.child.id(),
            Process::Terminal(terminal) => terminal.pid(),
        }
    }

    /// Waits until the screen ends with the lines that were named.
    fn see(&mut self) {
        if !self.screen.is_empty() {
            let end = std::mem::take(&mut self.screen);
            self.terminal().wait_until(&format!("{end:#?}"), |screen| {
                let used = screen
                    .iter()
                    .rposition(|line| !line.is_empty())
                    .map_or(0, |at| at + 1);
                let first = used.checked_sub(end.len());
                first.is_some_and(|first| end.iter().zip(&screen[first..]).all(|(a, b)| fits(a, b)))
            });
        }
    }

    /// What runs with pipes ends with status 0.
    fn finish(&mut self) {
        if matches!(self.process, Some(Process::Piped(_))) {
            self.end("0");
        }
    }

    /// What runs ends with this status. What is on the screen stays.
    fn end(&mut self, status: &str) {
        let (status, open) = status.split_once(' ').unwrap_or((status, ""));
        match self.process.as_mut().expect("a process") {
            Process::Piped(piped) => {
                self.took = piped.end(status, open == "open");
                self.process = None;
            }
            Process::Terminal(terminal) => {
                let code = code(terminal.end());
                assert_eq!(code.to_string(), status, "{:#?}", terminal.screen());
            }
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- {}", self.place);
            if let Some(Process::Piped(piped)) = &self.process {
                eprintln!(
                    "--- it has printed:\n{}{}",
                    piped.out.all(),
                    piped.err.all()
                );
            }
        }
    }
}

/// The status as shells count it: of a signal 128 and its number.
fn code(status: ExitStatus) -> i32 {
    let signal = || status.signal().map(|signal| 128 + signal);
    status.code().or_else(signal).unwrap_or(-1)
}

/// A process with pipes. Dropped, it is killed.
struct Piped {
    child: Child,
    input: Option<ChildStdin>,
    out: Printed,
    err: Printed,
    begun: Instant,
}

impl Piped {
    fn start(mut command: Command) -> Self {
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let begun = Instant::now();
        let mut child = command.spawn().expect("bash starts");
        Piped {
            input: child.stdin.take(),
            out: Printed::follow(child.stdout.take().expect("a pipe")),
            err: Printed::follow(child.stderr.take().expect("a pipe")),
            child,
            begun,
        }
    }

    fn write(&mut self, line: &str) {
        let input = self.input.as_mut().expect("an open input");
        // It may have gone, which shows in what it prints.
        let _ = input.write_all(&[&unescape(line)[..], b"\n"].concat());
    }

    fn end(&mut self, status: &str, open: bool) -> Duration {
        let input = self.input.take().filter(|_| open);
        let mut ended = None;
        wait_until("it ends", || {
            ended = self.child.try_wait().expect("it is our child");
            ended.is_some()
        });
        let took = self.begun.elapsed();
        drop(input);
        let code = ended.map_or(-1, code);
        self.out.ends(status == "*");
        self.err.ends(false);
        assert!(
            status == "*" || code.to_string() == status,
            "it ends with status {code}"
        );
        // What it says that it has measured, it may have.
        for seconds in self.out.all().split("\"seconds\":").skip(1) {
            let number = seconds
                .split([',', '}'])
                .next()
                .and_then(|text| text.parse().ok());
            let seconds: f64 = number.unwrap_or_else(|| panic!("no number: {seconds}"));
            assert!(seconds > 0.0 && seconds < took.as_secs_f64(), "{seconds}");
        }
        took
    }
}

impl Drop for Piped {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a process has printed, and how much of it was looked at.
struct Printed {
    state: Arc<Mutex<(Vec<u8>, bool)>>,
    looked_at: usize,
    /// What any number of lines before the next may be.
    between: Option<String>,
}

impl Printed {
    fn follow(mut stream: impl Read + Send + 'static) -> Self {
        let state = Arc::new(Mutex::new((Vec::new(), false)));
        let printed = state.clone();
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(read @ 1..) = stream.read(&mut bytes) {
                printed.lock().unwrap().0.extend_from_slice(&bytes[..read]);
            }
            printed.lock().unwrap().1 = true;
        });
        Printed {
            state,
            looked_at: 0,
            between: None,
        }
    }

    fn all(&self) -> String {
        String::from_utf8_lossy(&self.state.lock().unwrap().0).into_owned()
    }

    /// Waits for the next line; what is behind the last line end is one without it, and nothing comes at the end.
    fn line(&mut self) -> Option<String> {
        let (mut line, mut length) = (None, 0);
        wait_until("a line is printed", || {
            let state = self.state.lock().unwrap();
            let rest = &state.0[self.looked_at..];
            let end = rest.iter().position(|byte| *byte == b'\n');
            length = end.map_or(if state.1 { rest.len() } else { 0 }, |at| at + 1);
            line = (length > 0).then(|| String::from_utf8_lossy(&rest[..length]).into_owned());
            line.is_some() || state.1
        });
        self.looked_at += length;
        line
    }

    fn next_is(&mut self, wanted: &str) {
        let wanted = format!("{wanted}\n");
        let between = self.between.take().map(|between| format!("{between}\n"));
        loop {
            let line = self
                .line()
                .unwrap_or_else(|| panic!("not printed: {wanted}"));
            if fits(&wanted, &line) {
                return;
            }
            let passed = between.as_ref().is_some_and(|between| fits(between, &line));
            assert!(passed, "printed: {line:?} instead of {wanted:?}");
        }
    }

    fn ends(&mut self, anyhow: bool) {
        let between = self.between.take().map(|between| format!("{between}\n"));
        while let Some(line) = self.line() {
            let passed = between.as_ref().is_some_and(|between| fits(between, &line));
            assert!(anyhow || passed, "printed besides: {line:?}");
        }
    }
}

/// Whether a line is as wanted, where `[..]` is any text.
fn fits(wanted: &str, line: &str) -> bool {
    let (first, parts) = wanted
        .split_once("[..]")
        .map_or((wanted, None), |(a, b)| (a, Some(b)));
    let Some(mut rest) = line.strip_prefix(first) else {
        return false;
    };
    let Some(parts) = parts else {
        return rest.is_empty();
    };
    let mut parts: Vec<&str> = parts.split("[..]").collect();
    let last = parts.pop().unwrap_or_default();
    for part in parts {
        let Some((_, behind)) = rest.split_once(part) else {
            return false;
        };
        rest = behind;
    }
    rest.ends_with(last)
}

/// The text with `${x*3}` as `xxx`.
fn repeated(text: &str) -> String {
    let mut text = text.to_string();
    while let Some((before, rest)) = text.split_once("${") {
        let (repeat, behind) = rest.split_once('}').expect("${TEXT*NUMBER}");
        let (what, times) = repeat.rsplit_once('*').expect("${TEXT*NUMBER}");
        text = [
            before,
            &what.repeat(times.parse().expect("a number")),
            behind,
        ]
        .concat();
    }
    text
}

fn unescaped(text: &str) -> String {
    String::from_utf8(unescape(text)).expect("UTF-8")
}

fn has(what: &str) -> bool {
    match what.strip_prefix("unshare ") {
        Some(flags) => kernel::can(&["unshare", flags, "--"]),
        None if what == "ipv6" => std::net::TcpListener::bind("[::1]:0").is_ok(),
        None => installed(what),
    }
}

/// The sum of the series of the daemon's metrics that begin so.
fn counted(daemon: &Daemon, series: &str) -> u64 {
    let metrics = http::get(daemon.http(), "/metrics").body;
    let lines = metrics.lines().filter(|line| line.starts_with(series));
    lines
        .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
        .sum()
}
