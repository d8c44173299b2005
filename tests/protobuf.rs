//! The protobuf protocol: what docs/protocol.md says of it, with messages made by the schema's own code and by hand.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};

use shared::command::{Argument, ErrorCode, sets};
use shared::schema::decode_value;
use shared::schema::envelope::{self, Frame, MAX_MESSAGE, MAX_RESPONSE, Response};

use crate::handover::replace;
use crate::support::watch::repeat;
use crate::support::{Daemon, PATIENCE, assert_contains};

fn daemon(arguments: &[&str]) -> (Daemon, SocketAddr) {
    Daemon::speaking("protobuf", arguments)
}

/// A client that shows responses as `ID NAME VALUE` or `ID WORD`.
struct ProtobufClient {
    stream: TcpStream,
    received: Vec<u8>,
}

impl ProtobufClient {
    fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).expect("it accepts");
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
        stream.set_nodelay(true).expect("a socket");
        ProtobufClient {
            stream,
            received: Vec::new(),
        }
    }

    fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("sent");
    }

    /// The next response, or `None` at the end.
    fn receive(&mut self) -> Option<String> {
        loop {
            if let Frame::Message(message, length) = envelope::frame(&self.received, MAX_RESPONSE) {
                let shown = show(message);
                self.received.drain(..length);
                return Some(shown);
            }
            let mut chunk = [0; 4096];
            let read = self.stream.read(&mut chunk).expect("no reset");
            if read == 0 {
                assert!(self.received.is_empty(), "half a response");
                return None;
            }
            self.received.extend_from_slice(&chunk[..read]);
        }
    }

    fn ask(&mut self, request: &[u8]) -> String {
        self.send(request);
        self.receive().expect("a response")
    }

    fn rest(&mut self) -> Vec<String> {
        std::iter::from_fn(|| self.receive()).collect()
    }
}

fn show(message: &[u8]) -> String {
    let (id, response) = envelope::decode_response(message).expect("a response");
    match response {
        Response::Error(code, sentence) => {
            assert!(!sentence.is_empty());
            format!("{id} {}", code.map_or("?", ErrorCode::word))
        }
        Response::Result(number, message) => {
            let mut known = sets::with_rpc();
            let (spec, _) = known.find(|(_, rpc)| rpc.number == number).expect("known");
            let value = decode_value(spec, &message).expect("its result");
            format!("{id} {} {value}", spec.name)
        }
    }
}

/// A request with its length.
fn request(id: u64, line: &str) -> Vec<u8> {
    let mut given = line.split(' ');
    let name = given.next().expect("a name");
    let mut known = sets::with_rpc();
    let (spec, rpc) = known.find(|(spec, _)| spec.name == name).expect("known");
    let arguments: Vec<_> = given
        .map(|word| Argument::Integer(word.parse().expect("a number")))
        .collect();
    let mut bytes = Vec::new();
    envelope::encode_request(id, spec, rpc, &arguments, &mut bytes);
    bytes
}

/// A message with its length.
fn message(bytes: &[u8]) -> Vec<u8> {
    let length = u8::try_from(bytes.len())
        .ok()
        .filter(|length| *length < 128);
    [&[length.expect("a short message")], bytes].concat()
}

/// A `Why` of this id with an unknown field, so long that the message has exactly `length` bytes.
fn padded(id: u8, length: usize) -> Vec<u8> {
    let varint = |value: usize| {
        [
            value as u8 | 0x80,
            (value >> 7) as u8 | 0x80,
            (value >> 14) as u8,
        ]
    };
    let field = length - 8;
    [
        &varint(length)[..],
        &[0x08, id, 0x62, 0x00, 0x7a],
        &varint(field),
        &vec![b'x'; field],
    ]
    .concat()
}

/// - All clients count alike in `WHO`, whatever protocol they speak.
#[test]
fn all_clients_count() {
    let (daemon, address) = daemon(&[]);
    let mut counted = daemon.connect();
    assert_eq!(counted.ask("WHY"), "42");
    let mut client = ProtobufClient::connect(address);
    assert_eq!(client.ask(&request(1, "WHO")), "1 WHO 2");
}

/// - As in proto3, a number that is missing is 0, unknown fields are skipped, and the last of several commands counts.
/// - A request without a command that the server offers is answered `ERROR_CODE_UNKNOWN`.
/// - A message that is no `Request`, or a command whose fields have other types, is answered `ERROR_CODE_BADINPUT`, and the
///   next message is answered as usual.
/// - A length above 65,536 is answered `ERROR_CODE_TOOLONG` with the id 0, and then the server closes.
/// - A length that is no varint of at most five bytes, or an input that ends within a message, is answered
///   `ERROR_CODE_BADINPUT` with the id 0, and then the server closes.
/// - `HELP`, `QUIT` and `EXIT` have no message here: a client that has no more requests closes.
#[test]
fn whatever_is_sent_gets_an_answer_or_an_error_of_this_protocol() {
    let (_daemon, address) = daemon(&[]);
    let why = |id| request(id, "WHY");
    for (sent, responses) in [
        (message(b"\xa2\x01\x00"), &["0 ADD 0"][..]),
        (message(b"\x08\x07\xa2\x01\x02\x10\x05"), &["7 ADD 5"]),
        (
            message(b"\x62\x00\x52\x00\x6a\x00\x08\x01"),
            &["1 PING PONG"],
        ),
        (
            message(b"\x08\x01\x62\x03\x7a\x01x\x7a\x01x"),
            &["1 WHY 42"],
        ),
        (message(b""), &["0 UNKNOWN"]),
        (message(b"\x08\x02"), &["2 UNKNOWN"]),
        // A field of a later version, in the place of the command.
        (message(b"\x08\x02\xea\x07\x00"), &["2 UNKNOWN"]),
        (message(b"\x08\x03\x60\x01"), &["3 BADINPUT"]),
        (message(b"\x08\x03\xa2\x01\x02\x0a\x00"), &["3 BADINPUT"]),
        (message(b"\x08\x03\xa2\x01\x05\x08"), &["3 BADINPUT"]),
        (message(b"\x0a\x00"), &["0 BADINPUT"]),
        (message(b"WHO"), &["0 BADINPUT"]),
        (message(b"\x08\x80"), &["0 BADINPUT"]),
        (
            message(b"\x08\x04\xb2\x01\x04\x0a\x02\x00\x01"),
            &["4 USAGE"],
        ),
    ] {
        let mut client = ProtobufClient::connect(address);
        client.send(&[sent.clone(), why(9)].concat());
        client.stream.shutdown(Shutdown::Write).expect("a socket");
        let expected = [responses, &["9 WHY 42"]].concat();
        assert_eq!(client.rest(), expected, "{}", sent.escape_ascii());
    }
    for (sent, error) in [
        (&b"\x81\x80\x04"[..], Some("0 TOOLONG")),
        (b"\xff\xff\xff\xff\x7f", Some("0 TOOLONG")),
        (b"\xff\xff\xff\xff\xff\x01", Some("0 BADINPUT")),
        (b"WHO\n", Some("0 BADINPUT")),
        (b"\x04\x08\x01\x62", Some("0 BADINPUT")),
        (b"\xff\xff\x03\x08", Some("0 BADINPUT")),
        (b"\x80", Some("0 BADINPUT")),
        (b"", None),
    ] {
        let mut client = ProtobufClient::connect(address);
        client.send(&[&why(1), sent].concat());
        client.stream.shutdown(Shutdown::Write).expect("a socket");
        let expected: Vec<_> = ["1 WHY 42"].into_iter().chain(error).collect();
        assert_eq!(client.rest(), expected, "{}", sent.escape_ascii());
    }
}

/// - A request is at most 65,536 bytes long; a response is shorter, but for a page of users.
/// - A message may arrive in any pieces.
#[test]
fn messages_are_the_same_in_whatever_pieces_they_come() {
    let (_daemon, address) = daemon(&[]);
    let many: String = ["NP"].into_iter().chain([" 10000000"; 1024]).collect();
    let sent = [
        request(1, "WHY"),
        padded(2, 2000),
        request(3, "ADD 2 -5"),
        request(4, &many),
        padded(5, MAX_MESSAGE),
        request(6, "PING"),
    ];
    let primes = [" 179424673"; 1024].concat();
    let expected = [
        "1 WHY 42",
        "2 WHY 42",
        "3 ADD -3",
        &format!("4 NP{primes}"),
        "5 WHY 42",
        "6 PING PONG",
    ];
    let sent = sent.concat();
    for size in [1, 2, 3, 100, 1023, 1024, 1025, 4000, sent.len()] {
        let mut client = ProtobufClient::connect(address);
        let mut writer = client.stream.try_clone().expect("a socket");
        let sent = sent.clone();
        let sending = std::thread::spawn(move || {
            for piece in sent.chunks(size) {
                writer.write_all(piece).expect("sent");
            }
            writer.shutdown(Shutdown::Write).expect("a socket");
        });
        assert_eq!(client.rest(), expected, "pieces of {size}");
        sending.join().unwrap();
    }
}

/// - `Ping` keeps a connection that would be idle.
/// - What the server says of its own accord has the id 0: `ERROR_CODE_BUSY` to a client that is not admitted,
///   `ERROR_CODE_TIMEOUT` to one that was idle for too long.
#[test]
fn who_is_idle_or_one_too_many_is_told_so() {
    let (daemon, address) = daemon(&["--max-clients", "2", "--queue", "0", "--idle-timeout", "2s"]);
    let pinging = repeat(ProtobufClient::connect(address), |client| {
        assert_eq!(client.ask(&request(2, "PING")), "2 PING PONG");
    });
    let mut idle = ProtobufClient::connect(address);
    assert_eq!(idle.ask(&request(1, "WHO")), "1 WHO 2");
    let mut third = ProtobufClient::connect(address);
    assert_eq!(third.rest(), ["0 BUSY"]);
    assert_eq!(idle.rest(), ["0 TIMEOUT"]);
    assert_eq!(pinging.end().ask(&request(3, "WHO")), "3 WHO 1");
    daemon.stop();
}

/// - When another process of the server takes over, these clients notice nothing either, also within a message.
#[test]
fn a_handover_keeps_clients_and_half_messages() {
    let (daemon, address) = daemon(&[]);
    let mut half = ProtobufClient::connect(address);
    let mut long_half = ProtobufClient::connect(address);
    let long = padded(3, MAX_MESSAGE);
    assert_eq!(half.ask(&request(1, "WHY")), "1 WHY 42");
    half.send(&request(2, "WHY")[..3]);
    long_half.send(&long[..40_000]);
    let asking: Vec<_> = (0..8)
        .map(|_| {
            repeat((ProtobufClient::connect(address), 0), |(client, id)| {
                *id += 1;
                assert_eq!(client.ask(&request(*id, "ADD 2 5")), format!("{id} ADD 7"));
                assert_eq!(client.ask(&request(*id, "NP 4")), format!("{id} NP 7"));
            })
        })
        .collect();
    // A message that the codec keeps itself while it waits for a worker.
    let long_np = request(9, &["NP", &[" 10000000"; 1024].concat()].concat());
    let primes = format!("9 NP{}", [" 179424673"; 1024].concat());
    let computing = repeat(
        (ProtobufClient::connect(address), 0),
        move |(client, right)| {
            let answer = client.ask(&long_np);
            // On a busy machine it may get no permit in time.
            assert!(answer == primes || answer == "9 UNAVAILABLE", "{answer}");
            *right += usize::from(answer == primes);
        },
    );
    for _ in 0..20 {
        replace(&daemon);
    }
    for client in asking {
        let (_, asked) = client.end();
        assert!(asked > 0);
    }
    assert!(computing.end().1 > 0);
    half.send(&request(2, "WHY")[3..]);
    assert_eq!(half.receive().as_deref(), Some("2 WHY 42"));
    long_half.send(&long[40_000..]);
    assert_eq!(long_half.receive().as_deref(), Some("3 WHY 42"));
    assert_eq!(daemon.connect().ask("WHY"), "42");
}

#[test]
fn the_log_shows_requests_as_lines() {
    let (daemon, address) = daemon(&["--log", "trace"]);
    let mut client = ProtobufClient::connect(address);
    assert_eq!(client.ask(&request(1, "ADD 2 5")), "1 ADD 7");
    assert_eq!(client.ask(&message(b"\x08\x01")), "1 UNKNOWN");
    daemon.log().wait_for("request=\"ADD 2 5\" reply=7");
    let unnamed = daemon.log().wait_for("request=\"(no command)\"");
    assert_contains(
        &unnamed,
        "ERR UNKNOWN the request names no command of this server",
    );
}
