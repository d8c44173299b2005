//! A protocol is one folder and a line in the registry: the real session, pool, queue and reaper serve one that the daemon
//! doesn't know.

mod protocol;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::thread;

use blockchain_tcpd::config::options::{Options, ParsedArgs};
use blockchain_tcpd::handover::InheritedState;
use blockchain_tcpd::server::{Server, Setup};
use blockchain_tcpd::session::scoreboard::Phase;
use shared::command::sets::server;

use self::protocol::WITH_TOY;
use crate::support::{Client, PATIENCE};

/// Starts a server that speaks the line protocol on its first address and the toy's on its second.
fn start(arguments: &[&str], inherited: InheritedState) -> Server {
    let program = ["blockchain-tcpd", "--listen", "127.0.0.1:0,127.0.0.1:0"];
    let parsed = Options::parse_from(program.iter().chain(arguments)).expect("good settings");
    let ParsedArgs::Run(mut options) = parsed else {
        panic!("it serves");
    };
    options.listen[1].protocol = WITH_TOY.find("toy").expect("it is registered");
    let setup = Setup {
        options: &options,
        id: uuid::Uuid::new_v4(),
        commands: &[server::SET],
        protocols: WITH_TOY,
        metrics: Arc::default(),
        reserved: 0,
        cluster: None,
        users: None,
    };
    let server = Server::start(&setup, inherited).expect("it starts");
    server.begin();
    server
}

/// A client that speaks the toy's protocol.
struct ToyClient(TcpStream);

impl ToyClient {
    fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).expect("it accepts");
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
        stream.set_nodelay(true).expect("a socket");
        ToyClient(stream)
    }

    fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).expect("sent");
    }

    fn receive(&mut self) -> String {
        let mut length = [0];
        self.0.read_exact(&mut length).expect("a frame");
        let mut text = vec![0; length[0].into()];
        self.0.read_exact(&mut text).expect("its text");
        String::from_utf8(text).expect("ASCII")
    }

    fn ask(&mut self, request: &str) -> String {
        self.send(&[request.len() as u8]);
        self.send(request.as_bytes());
        self.receive()
    }

    fn is_at_end(&mut self) -> bool {
        self.0.read(&mut [0]).expect("no reset") == 0
    }
}

#[test]
fn the_session_serves_a_protocol_that_is_one_folder() {
    let server = start(
        &["--max-clients", "2", "--queue", "0"],
        InheritedState::default(),
    );
    let [line, toy] = server.addresses()[..] else {
        panic!("two addresses");
    };
    let mut one = Client::connect(line).unwrap();
    assert_eq!(one.ask("WHO"), "1");
    let mut other = ToyClient::connect(toy);
    // All protocols' clients count, requests are told apart however they arrive, and the table is the same.
    assert_eq!(other.ask("who"), "1 2");
    for byte in b"\x03WHY\x04PIN" {
        other.send(&[*byte]);
    }
    assert_eq!(other.receive(), "2 42");
    other.send(b"G");
    assert_eq!(other.receive(), "3 PONG");
    assert_eq!(other.ask("NOTHING"), "4 UNKNOWN");
    // Who is not admitted is told so in its own protocol.
    let mut third = ToyClient::connect(toy);
    assert_eq!(third.receive(), "- BUSY");
    assert!(third.is_at_end());
    assert_eq!(other.ask("QUIT"), "5 BYE");
    assert!(other.is_at_end());
    let sums = server.metrics.sums();
    assert_eq!(sums.requests(), 6, "of both protocols");
}

#[test]
fn its_goodbyes_are_its_own() {
    let server = start(&["--idle-timeout", "100ms"], InheritedState::default());
    let mut idle = ToyClient::connect(server.addresses()[1]);
    assert_eq!(idle.receive(), "- Idle");
    let server = start(&[], InheritedState::default());
    let mut drained = ToyClient::connect(server.addresses()[1]);
    assert_eq!(drained.ask("WHY"), "1 42");
    let stopping = thread::spawn(move || server.stop(PATIENCE));
    assert_eq!(drained.receive(), "- Drained");
    drop((idle, drained));
    stopping.join().unwrap();
}

#[test]
fn its_state_and_its_half_read_request_survive_a_handover() {
    let mut server = start(&[], InheritedState::default());
    let addresses = server.addresses();
    let mut client = ToyClient::connect(addresses[1]);
    assert_eq!(client.ask("WHY"), "1 42");
    client.send(b"\x03W");
    let inherited = server.hand_over(Phase::DrainThenDetach);
    assert_eq!(inherited.clients[0].0.protocol, "toy");
    server.join_workers();
    let server = start(&[], inherited);
    assert_eq!(server.addresses(), addresses);
    client.send(b"HY");
    assert_eq!(client.receive(), "2 42");
    // So do the protocols of the listening sockets.
    assert_eq!(ToyClient::connect(addresses[1]).ask("WHO"), "1 2");
    assert_eq!(Client::connect(addresses[0]).unwrap().ask("WHY"), "42");
}
