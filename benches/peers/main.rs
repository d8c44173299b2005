//! What a call over gRPC and JSON-RPC costs the daemon, beside a well-known server of each protocol
//! in the same run.
//!
//! gRPC's `Add` is asked by h2load, of the daemon and of a server with Google's library for Go.
//! JSON-RPC's `why` is asked by wrk, of the daemon and of nginx, which answers a constant. Server and
//! generator have a core each. The figure is the processor time of the server for a call, which
//! depends least on what else the machine does; the ratios are taken round by round.
//!
//! Needed are h2load (nghttp2-client) and Go with grpc-go (golang-google-grpc-dev), wrk and nginx;
//! a pair without its programs is left out.

#[path = "../common/mod.rs"]
mod common;

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use clap::Parser;
use rustix::process::Pid;

use common::cores::Cores;
use common::figures::{median, spread};
use common::machine::{cpu_time, resident_kib};
use common::server::{PROGRAM, Server};
use common::{Length, Result};
use shared::dial::{Connection, Deadline};

/// Measures gRPC beside grpc-go, and JSON-RPC beside nginx.
#[derive(Parser)]
#[command(name = "peers")]
struct Options {
    /// How often each server is measured; the medians are reported.
    #[arg(long, value_name = "N", default_value_t = 5)]
    rounds: usize,

    /// Number of calls of a measurement.
    #[arg(long, value_name = "N", default_value_t = 200_000)]
    calls: u64,

    /// Measure only what has this in its name.
    #[arg(long, value_name = "PROTOCOL", default_value = "")]
    only: String,

    #[command(flatten)]
    length: Length,
}

/// Number of connections of each generator, and of streams on each with gRPC.
const CONNECTIONS: &str = "16";
const STREAMS: &str = "8";

/// `AddRequest { x: 2, y: 5 }` as gRPC sends it.
const ADD: &[u8] = b"\x00\x00\x00\x00\x04\x08\x02\x10\x05";

/// What wrk sends, and what the daemon answers.
const WHY: &str = r#"{"jsonrpc":"2.0","id":1,"method":"why"}"#;
const FORTY_TWO: &str = r#"{"jsonrpc":"2.0","id":1,"result":42}"#;

fn main() -> ExitCode {
    match bench(Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("peers: {error}");
            ExitCode::FAILURE
        }
    }
}

/// A server, and how it is loaded.
struct Contestant<'a> {
    name: &'a str,
    start: &'a dyn Fn() -> Result<Server>,
    load: fn(&Path, SocketAddr, u64) -> Result<u64>,
}

fn bench(mut options: Options) -> Result<()> {
    if options.length.is_quick() {
        (options.rounds, options.calls) = (1, 2000);
    }
    let folder = Folder::new()?;
    let cores = Cores::choose()?;
    println!(
        "{cores}; rounds: {}, calls: {}\n",
        options.rounds, options.calls
    );
    let daemon = |listen| Server::daemon_at(PROGRAM, listen, &["--commands", "server,calc"]);
    if let Some(program) = grpc_go(&folder.0)? {
        let pair = [
            Contestant {
                name: "gRPC: blockchain-tcpd",
                start: &|| daemon("grpc://127.0.0.1:0"),
                load: h2load,
            },
            Contestant {
                name: "gRPC: grpc-go",
                start: &|| Server::start(Command::new(&program), None),
                load: h2load,
            },
        ];
        compare(&pair, &folder.0, &cores, &options)?;
    }
    if are_there(&["wrk", "nginx"]) {
        let pair = [
            Contestant {
                name: "JSON-RPC: blockchain-tcpd",
                start: &|| daemon("http://127.0.0.1:0"),
                load: wrk,
            },
            Contestant {
                name: "JSON-RPC: nginx",
                start: &|| nginx(&folder.0),
                load: wrk,
            },
        ];
        compare(&pair, &folder.0, &cores, &options)?;
    }
    for scheme in ["tcp", "protobuf", "http", "grpc"] {
        if format!("memory: {scheme}").contains(&options.only) {
            println!(
                "memory: {scheme:<20} {:>6.1} KiB for an idle client",
                memory(scheme, &options)?
            );
        }
    }
    Ok(())
}

/// Returns the memory in KiB of an idle client, its thread included, that has asked once.
fn memory(scheme: &str, options: &Options) -> Result<f64> {
    let clients = (options.calls / 200).min(1000);
    let start = |clients: u64| {
        let clients = clients.to_string();
        Server::daemon_at(
            PROGRAM,
            &format!("{scheme}://127.0.0.1:0"),
            &["--max-clients", &clients, "--http", "127.0.0.1:0"],
        )
    };
    let baseline = start(1)?;
    let server = start(clients)?;
    let name: shared::dial::Server = format!("{scheme}://{}", server.address).parse()?;
    let within = || Deadline::after(Duration::from_secs(60));
    let mut idle = Vec::new();
    for _ in 0..clients {
        let connection =
            Connection::open_one_of(&name, &mut vec![server.address], within(), |_| {});
        let mut connection = connection.map_err(|failure| failure.to_string())?;
        connection
            .ask(b"WHY", within())
            .map_err(|failure| failure.to_string())?;
        idle.push(connection);
    }
    // Until all have gone to their workers.
    std::thread::sleep(Duration::from_millis(500));
    let resident = resident_kib(server.pid())? - resident_kib(baseline.pid())?;
    Ok(resident / clients as f64)
}

/// Measures both in turn, and prints the processor time of a call and the ratio.
fn compare(
    pair: &[Contestant<'_>; 2],
    folder: &Path,
    cores: &Cores,
    options: &Options,
) -> Result<()> {
    if !pair[0].name.contains(&options.only) {
        return Ok(());
    }
    let mut micros = [Vec::new(), Vec::new()];
    for round in 0..options.rounds {
        for which in [round % 2, 1 - round % 2] {
            let Contestant { name, start, load } = &pair[which];
            let server = cores.at_server(start)?;
            let load = |calls| {
                let loaded = load(folder, server.address, calls);
                loaded.map_err(|error| format!("{name}: {error}"))
            };
            // Warm.
            load(options.calls / 10)?;
            let before = processes_time(server.pid())?;
            let calls = load(options.calls)?;
            let time = processes_time(server.pid())? - before;
            let one = time.as_secs_f64() * 1e6 / calls as f64;
            eprintln!("round {}  {name:<28} {one:.2} µs a call", round + 1);
            micros[which].push(one);
        }
    }
    for (contestant, times) in pair.iter().zip(&micros) {
        println!(
            "{:<28} {:>6.2} µs of the processor for a call ±{:.0}%",
            contestant.name,
            median(times),
            spread(times) * 100.0
        );
    }
    let ratios: Vec<f64> = micros[0]
        .iter()
        .zip(&micros[1])
        .map(|(one, other)| one / other)
        .collect();
    println!(
        "{:<28} {:>6.3} ±{:.0}%\n",
        "ratio",
        median(&ratios),
        spread(&ratios) * 100.0
    );
    Ok(())
}

/// Returns the processor time of a process and of its children: nginx has a worker.
fn processes_time(pid: Pid) -> Result<Duration> {
    let number = pid.as_raw_nonzero();
    let children = fs::read_to_string(format!("/proc/{number}/task/{number}/children"))?;
    let children = children
        .split_whitespace()
        .filter_map(|child| child.parse().ok());
    let children = children.filter_map(Pid::from_raw);
    let times = children.chain([pid]).map(cpu_time);
    Ok(times.sum::<std::io::Result<Duration>>()?)
}

/// Asks for this number of sums, all of which must be answered. Returns their number.
fn h2load(folder: &Path, address: SocketAddr, calls: u64) -> Result<u64> {
    let body = folder.join("add");
    fs::write(&body, ADD)?;
    let mut command = Command::new("h2load");
    command.args([
        "-n",
        &calls.to_string(),
        "-c",
        CONNECTIONS,
        "-m",
        STREAMS,
        "-t",
        "1",
    ]);
    command.arg("-d").arg(body);
    command.args(["-H", "content-type: application/grpc", "-H", "te: trailers"]);
    command.arg(format!("http://{address}/blockchain_tcp.v1.Calc/Add"));
    let said = output(&mut command)?;
    let all = format!("{calls} succeeded, 0 failed, 0 errored, 0 timeout");
    match said.contains(&all) {
        true => Ok(calls),
        false => Err(format!("not all calls succeeded: {said}").into()),
    }
}

/// Asks `why` for as long as this number of calls takes, about. Returns how many were answered.
fn wrk(folder: &Path, address: SocketAddr, calls: u64) -> Result<u64> {
    let script = folder.join("why.lua");
    fs::write(
        &script,
        format!(
            "wrk.method = 'POST'\nwrk.body = '{WHY}'\nwrk.headers['Content-Type'] = 'application/json'\n"
        ),
    )?;
    let seconds = (calls / 50_000).max(1);
    let mut command = Command::new("wrk");
    command.args([
        "-t",
        "1",
        "-c",
        CONNECTIONS,
        "-d",
        &format!("{seconds}s"),
        "-s",
    ]);
    command.arg(script).arg(format!("http://{address}/"));
    let said = output(&mut command)?;
    if said.contains("Non-2xx") || said.contains("Socket errors") {
        return Err(format!("not all calls succeeded: {said}").into());
    }
    let requests = said
        .split_once(" requests in")
        .and_then(|(before, _)| before.split_whitespace().last());
    Ok(requests.ok_or("wrk says nothing")?.parse()?)
}

fn output(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    match output.status.success() {
        true => Ok(said),
        false => Err(format!("{said}{}", String::from_utf8_lossy(&output.stderr)).into()),
    }
}

/// Starts nginx with one worker, which answers every request with the same.
fn nginx(folder: &Path) -> Result<Server> {
    // It can't choose its own port.
    let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let configuration = folder.join("nginx.conf");
    let at = folder.display();
    fs::write(
        &configuration,
        format!(
            "daemon off; worker_processes 1; pid {at}/nginx.pid; error_log stderr notice;\n\
             events {{}}\n\
             http {{\n\
               access_log off; keepalive_requests 1000000000; client_body_temp_path {at}/body;\n\
               proxy_temp_path {at}/proxy; fastcgi_temp_path {at}/fastcgi; uwsgi_temp_path {at}/uwsgi;\n\
               scgi_temp_path {at}/scgi; default_type application/json;\n\
               server {{ listen {address}; location / {{ return 200 '{FORTY_TWO}'; }} }}\n\
             }}\n"
        ),
    )?;
    let mut command = Command::new(find("nginx").ok_or("there is no nginx")?);
    command.arg("-c").arg(&configuration).arg("-p").arg(folder);
    let server = Server::start(command, Some(address))?;
    Ok(server)
}

/// Builds the server with Google's library, if it can be built here.
fn grpc_go(folder: &Path) -> Result<Option<PathBuf>> {
    let library = Path::new("/usr/share/gocode/src/google.golang.org/grpc");
    if !library.exists() {
        eprintln!("peers: left out: there is no grpc-go");
    }
    if !library.exists() || !are_there(&["h2load", "go"]) {
        return Ok(None);
    }
    let program = folder.join("grpc-go");
    let mut go = Command::new("go");
    go.args(["build", "-o"])
        .arg(&program)
        .arg("benches/peers/server.go");
    go.env("GO111MODULE", "off")
        .env("GOFLAGS", "")
        .env("GOPATH", "/usr/share/gocode");
    go.env("GOCACHE", Path::new(env!("CARGO_TARGET_TMPDIR")).join("go"));
    output(&mut go)?;
    Ok(Some(program))
}

/// Returns whether all these programs can be found; says which can't.
fn are_there(programs: &[&str]) -> bool {
    let missing = programs.iter().find(|program| find(program).is_none());
    if let Some(program) = missing {
        eprintln!("peers: left out: there is no {program}");
    }
    missing.is_none()
}

/// Returns where a program is: PATH may lack the folder of servers.
fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin".into()]);
    let mut programs = folders.map(|folder| folder.join(program));
    programs.find(|program| program.is_file())
}

/// A folder for this run, removed at its end.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Result<Self> {
        let folder =
            std::env::temp_dir().join(format!("blockchain-tcpd-peers-{}", std::process::id()));
        fs::create_dir_all(&folder)?;
        Ok(Folder(folder))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What can't be removed is the system's to remove.
        let _ = fs::remove_dir_all(&self.0);
    }
}
