//! Handover state: the format in which live connections are passed to the next process.
//!
//! A handover state is a socket. Its queue holds a memory file with the encoded state, followed by
//! the descriptors in the order of the state, at most 253 to a message (`SCM_RIGHTS` in unix(7)). A
//! process that holds the other end, even if it is only systemd's descriptor store, thereby holds
//! all of them.
//!
//! The file has a header, the state in the format of the crate `postcard`, and a checksum. The
//! header is the same in every version: a magic number, the version, whether systemd passed the
//! listening sockets, and the number of HTTP sockets among them.

use std::borrow::Cow;
use std::fmt;
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read as _, Seek as _, Write as _};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::MemfdFlags;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use shared::clock::Millis;

/// Environment variable that tells a replacing program the number of the descriptor.
pub const VARIABLE: &str = "BLOCKCHAIN_TCPD_HANDOVER";

/// Name of a handover state in systemd's descriptor store.
pub const NAME: &str = "handover";

/// Name of the descriptor that is stored to find out whether the store keeps descriptors.
pub const PROBE: &str = "probe";

/// Magic number at the beginning.
pub const MAGIC: &[u8; 12] = b"bct-handover";

/// Version of the format, in little-endian bytes after the magic number. Increase it with every
/// change of [`HandoverState`] and its parts: `postcard` does not encode the names of fields.
pub const VERSION: u32 = 6;

/// Largest number of descriptors that the kernel accepts in one message (SCM_MAX_FD).
const MAX_DESCRIPTORS: usize = 253;

/// Contents of a handover state. The order of its descriptors: listening sockets for clients,
/// listening sockets for HTTP, clients, sockets in lingering close.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandoverState {
    /// Whether systemd passed the listening sockets to the first process.
    pub passed: bool,
    /// Schemes of the listening sockets for clients.
    pub listeners: Vec<Cow<'static, str>>,
    /// Number of listening sockets for HTTP.
    pub http: u8,
    /// The run of the server, which the next process continues.
    pub run: Run,
    /// Clients.
    pub clients: Vec<ConnectionState>,
    /// When each socket in lingering close was half-closed.
    pub lingering: Vec<Millis>,
}

impl HandoverState {
    /// Returns the number of descriptors.
    pub fn descriptors(&self) -> usize {
        let listening = self.listeners.len() + usize::from(self.http);
        listening + self.clients.len() + self.lingering.len()
    }
}

/// What is handed over of one run of a server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// Id of the server.
    pub id: Uuid,
    /// Number of clients accepted so far.
    pub accepted: u64,
    /// Number of handovers before this one.
    pub handovers: u64,
    /// When the handover started: no client has been accepted since.
    pub started: Millis,
    /// Cluster membership, if there is one.
    pub census: Option<InheritedCensus>,
}

/// Cluster census, with which the next process continues the membership and can answer at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InheritedCensus {
    /// Identifies one run of the server: the process that began to serve and those that took over
    /// its clients.
    pub incarnation: Uuid,
    /// Number of clients of the other servers.
    pub others: u64,
    /// Time until which that number is valid.
    pub until: Millis,
}

/// State of a client apart from its socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionState {
    /// Number of the client in the log, counted from 1 across all handovers.
    pub number: u64,
    /// Scheme of its protocol.
    pub protocol: Cow<'static, str>,
    /// Address of the client.
    #[serde(with = "address")]
    pub peer: SocketAddr,
    /// When the client was accepted.
    pub since: Millis,
    /// For a released client, when its last request was complete; its idle time continues from
    /// then.
    pub active: Option<Millis>,
    /// Bytes received and not answered: the beginning of a request, or requests for the next
    /// process. At most one of them may be long.
    #[serde(with = "serde_bytes")]
    pub read_buffer: Vec<u8>,
    /// What its codec has saved.
    #[serde(with = "serde_bytes")]
    pub codec: Vec<u8>,
    /// Whether the codec is to be called without new input.
    pub deferred: bool,
    /// Replies that have not been written.
    #[serde(with = "serde_bytes")]
    pub replies: Vec<u8>,
    /// Whether to close the connection after these replies.
    pub close_after_write: bool,
    /// Whether the PROXY header is incomplete; `read_buffer` holds its beginning.
    pub awaits_proxy_header: bool,
    /// Whether the client is served but not counted.
    pub uncounted: bool,
}

impl ConnectionState {
    /// Creates the state of a client that has just been accepted.
    pub fn new(number: u64, protocol: &'static str, peer: SocketAddr) -> Self {
        ConnectionState {
            number,
            protocol: Cow::Borrowed(protocol),
            peer,
            since: Millis::now(),
            active: None,
            read_buffer: Vec::new(),
            codec: Vec::new(),
            deferred: false,
            replies: Vec::new(),
            close_after_write: false,
            awaits_proxy_header: false,
            uncounted: false,
        }
    }
}

/// Encodes an address as text: serde's binary form of an IPv6 address lacks the interface of a
/// link-local one.
mod address {
    use std::net::SocketAddr;

    use serde::de::{Deserialize as _, Deserializer, Error as _};
    use serde::ser::Serializer;

    pub fn serialize<S: Serializer>(peer: &SocketAddr, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(peer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<SocketAddr, D::Error> {
        let text = <&str>::deserialize(from)?;
        text.parse().map_err(D::Error::custom)
    }
}

/// Describes a state that is damaged or truncated, or is not a handover state.
fn damaged(how: impl fmt::Display) -> String {
    format!("it is damaged: {how}")
}

/// Header of an encoded state.
#[derive(Default)]
pub struct Header {
    version: u32,
    /// Whether systemd passed the listening sockets to the first process.
    pub passed: bool,
    /// Number of HTTP sockets, which are the last of the listening sockets.
    pub http: u8,
}

impl Header {
    /// Splits the header off an encoded state.
    fn split(bytes: &[u8]) -> Result<(Self, &[u8]), String> {
        let rest = bytes.strip_prefix(MAGIC);
        let rest = rest.ok_or_else(|| damaged("it has no magic number"))?;
        match rest {
            [a, b, c, d, passed, http, rest @ ..] => {
                let header = Header {
                    version: u32::from_le_bytes([*a, *b, *c, *d]),
                    passed: *passed != 0,
                    http: *http,
                };
                Ok((header, rest))
            }
            _ => Err(damaged("it ends too early")),
        }
    }
}

/// Encodes the state.
pub fn encode(state: &HandoverState) -> io::Result<Vec<u8>> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend([u8::from(state.passed), state.http]);
    let mut bytes = postcard::to_extend(state, bytes).map_err(io::Error::other)?;
    bytes.extend(checksum(&bytes).to_le_bytes());
    Ok(bytes)
}

/// Decodes the output of [`encode`]; rejects everything else. Never allocates much more than the
/// size of its input: `postcard` checks each length against what is left of it.
pub fn decode(bytes: &[u8]) -> Result<HandoverState, String> {
    let (Header { version, .. }, rest) = Header::split(bytes)?;
    if version != VERSION {
        return Err(format!(
            "its format has version {version}, and this program knows version {VERSION}"
        ));
    }
    let (state, sum) = rest
        .split_last_chunk()
        .ok_or_else(|| damaged("it ends too early"))?;
    if checksum(&bytes[..bytes.len() - sum.len()]) != u64::from_le_bytes(*sum) {
        return Err(damaged("its checksum is wrong"));
    }
    match postcard::take_from_bytes(state) {
        Ok((state, [])) => Ok(state),
        Ok(_) => Err(damaged("it is too long")),
        Err(error) => Err(damaged(error)),
    }
}

/// Returns the checksum of `bytes`: FNV-1a, 64 bits (draft-eastlake-fnv). It detects
/// accidents, not manipulation.
pub fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, &byte| {
        (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// Handover state that has been sent.
pub struct HandoverSocket {
    /// The socket that holds everything.
    pub socket: OwnedFd,
    /// The other end, which hangs up when nobody holds the socket any more.
    pub peer: OwnedFd,
}

/// Sends an [encoded](encode) state and its descriptors into a new socket, which holds them from
/// now on: the caller may close its own.
pub fn send(state: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<HandoverSocket> {
    let (socket, peer) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
    let mut file = File::from(rustix::fs::memfd_create(NAME, MemfdFlags::CLOEXEC)?);
    file.write_all(state)?;
    // The reader is not there yet: waiting for room in the queue would never end.
    send_message(&peer, b"p", &[file.as_fd()])?;
    for descriptors in descriptors.chunks(MAX_DESCRIPTORS) {
        send_message(&peer, b"p", descriptors)?;
    }
    Ok(HandoverSocket { socket, peer })
}

/// Sends a message with these descriptors, at most `MAX_DESCRIPTORS`, without waiting.
pub fn send_message(
    socket: &OwnedFd,
    text: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut rights = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        rights.push(SendAncillaryMessage::ScmRights(descriptors));
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    rustix::net::sendmsg(socket, &[IoSlice::new(text)], &mut rights, flags).map(drop)
}

/// A received handover state.
pub struct Received {
    /// Header of the state; zeros if it has none.
    pub header: Header,
    /// Decoded state, or why it can't be decoded.
    pub state: Result<HandoverState, String>,
    /// All received descriptors.
    pub descriptors: Vec<OwnedFd>,
}

/// Receives a handover state. Returns the descriptors even if the state can't be decoded. If this
/// process may not open as many, there are fewer descriptors than the state says, without the last
/// ones.
pub fn receive(socket: &OwnedFd) -> io::Result<Received> {
    let mut descriptors = receive_descriptors(socket)?.into_iter();
    let mut bytes = Vec::new();
    if let Some(mut file) = descriptors.next().map(File::from) {
        // What can't be read can't be decoded, which is reported.
        let _ = file.rewind().and_then(|()| file.read_to_end(&mut bytes));
    }
    let descriptors: Vec<OwnedFd> = descriptors.collect();
    let state = decode(&bytes).and_then(|state| match descriptors.len() > state.descriptors() {
        true => Err(damaged("it has unknown descriptors")),
        false => Ok(state),
    });
    let header = Header::split(&bytes).map_or_else(|_| Header::default(), |(header, _)| header);
    Ok(Received {
        header,
        state,
        descriptors,
    })
}

/// Receives all descriptors in the queue of the socket.
fn receive_descriptors(socket: &OwnedFd) -> io::Result<Vec<OwnedFd>> {
    let mut all = Vec::new();
    loop {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut rights = RecvAncillaryBuffer::new(&mut space);
        let mut byte = [0];
        let buffers = &mut [IoSliceMut::new(&mut byte)];
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        match rustix::net::recvmsg(socket, buffers, &mut rights, flags) {
            Ok(message) if message.bytes == 0 => return Ok(all),
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            // The queue is empty.
            Err(Errno::AGAIN) => return Ok(all),
            Err(error) => return Err(error.into()),
        }
        for message in rights.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                all.extend(descriptors);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> HandoverState {
        let client = |number, peer: &str| ConnectionState {
            number,
            protocol: "tcp".into(),
            peer: peer.parse().unwrap(),
            since: Millis(1000 + number),
            active: (number % 2 == 0).then_some(Millis(2000 + number)),
            read_buffer: b"WH".to_vec(),
            codec: vec![7; number as usize],
            deferred: number % 7 == 0,
            replies: vec![b'\n'; number as usize * 100],
            close_after_write: number % 3 == 0,
            awaits_proxy_header: number % 2 == 0,
            uncounted: number % 5 == 0,
        };
        HandoverState {
            passed: true,
            listeners: vec!["tcp".into(), "tcp".into()],
            http: 1,
            run: Run {
                id: Uuid::new_v4(),
                accepted: 77,
                handovers: 3,
                started: Millis(98),
                census: Some(InheritedCensus {
                    incarnation: Uuid::new_v4(),
                    others: 4,
                    until: Millis(100),
                }),
            },
            clients: vec![client(5, "127.0.0.1:1234"), client(6, "[fe80::1%3]:1")],
            lingering: vec![Millis(99)],
        }
    }

    #[test]
    fn what_was_encoded_is_decoded() {
        for state in [HandoverState::default(), state()] {
            assert_eq!(decode(&encode(&state).unwrap()), Ok(state));
        }
    }

    #[test]
    fn every_damage_is_noticed() {
        let whole = encode(&state()).unwrap();
        for length in 0..whole.len() {
            assert!(decode(&whole[..length]).is_err(), "{length}");
        }
        for position in 0..whole.len() {
            let mut flipped = whole.clone();
            flipped[position] ^= 1;
            assert!(decode(&flipped).is_err(), "{position}");
        }
        let mut newer = whole.clone();
        newer[MAGIC.len()] += 1;
        let problem = decode(&newer).unwrap_err();
        let version = format!("its format has version {}, ", VERSION + 1);
        assert!(problem.starts_with(&version), "{problem}");
        assert!(decode(&[&whole[..], b"x"].concat()).is_err());
    }

    /// With a right checksum, as the state of a hostile process may have.
    #[test]
    fn lengths_beyond_the_end_and_bytes_after_the_state_are_refused() {
        let header = [&MAGIC[..], &VERSION.to_le_bytes(), &[0, 0]].concat();
        let sealed = |state: &[u8]| {
            let bytes = [&header[..], state].concat();
            decode(&[&bytes[..], &checksum(&bytes).to_le_bytes()].concat())
        };
        let whole = encode(&HandoverState::default()).unwrap();
        let state = &whole[header.len()..whole.len() - 8];
        assert_eq!(sealed(state), Ok(HandoverState::default()));
        assert!(sealed(&[state, &[0]].concat()).is_err());
        // The last byte is the number of lingering sockets, the one before it that of the clients.
        for cut in [1, 2] {
            let lengths = [&state[..state.len() - cut], &[0xff; 8], &[0x7f]].concat();
            assert!(sealed(&lengths).is_err());
        }
    }

    #[test]
    fn a_socket_holds_its_descriptors_when_its_sender_has_closed_them() {
        const CLIENTS: usize = 600;
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let mut state = state();
        let one = state.clients[0].clone();
        state.clients = vec![one; CLIENTS];
        (state.listeners, state.http) = (Vec::new(), 0);
        state.lingering.clear();
        let descriptors = vec![writer.as_fd(); CLIENTS];
        let bytes = encode(&state).unwrap();
        let socket = send(&bytes, &descriptors).unwrap().socket;
        drop(writer);
        let received = receive(&socket).unwrap();
        assert_eq!(received.state, Ok(state));
        assert_eq!(received.descriptors.len(), CLIENTS);
        rustix::io::write(&received.descriptors[CLIENTS - 1], b"x").unwrap();
        drop(received);
        let mut buffer = [0; 8];
        assert_eq!(rustix::io::read(&reader, &mut buffer), Ok(1));
        assert_eq!(
            rustix::io::read(&reader, &mut buffer),
            Ok(0),
            "none is left open"
        );
        let nothing = receive(&socket).unwrap();
        assert!(nothing.state.unwrap_err().starts_with("it is damaged: "));
    }
}
