//! Handover state: the format in which live connections are passed to the next process.
//!
//! A handover state is a socket. Its queue holds a memory file with the encoded state, followed by
//! the descriptors in the order of the state, at most 253 to a message (`SCM_RIGHTS` in unix(7)). A
//! process that holds the other end, even if it is only systemd's descriptor store, thereby holds
//! all of them. The encoded state begins with a magic number, a byte about the listening sockets,
//! and its version, which are at the same place in every version. It ends with a checksum.

use std::borrow::Cow;
use std::fmt;
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read as _, Seek as _, Write as _};
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::MemfdFlags;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};

use uuid::Uuid;

use shared::clock::Millis;

/// Environment variable that tells a replacing program the number of the descriptor.
pub const VARIABLE: &str = "BLOCKCHAIN_TCPD_PACK";

/// Name of a handover state in systemd's descriptor store.
pub const NAME: &str = "pack";

/// Name of the descriptor that is stored to find out whether the store keeps descriptors.
pub const PROBE: &str = "probe";

/// Magic number at the beginning.
pub const MAGIC: &[u8; 8] = b"bct-pack";

/// Version of the format. A program that doesn't know it can't read what follows.
pub const VERSION: u32 = 5;

/// Flag in the byte about the listening sockets: systemd passed them. The other bits are the number
/// of HTTP sockets, which are the last of the listening sockets.
const PASSED: u8 = 1;

/// Largest number of HTTP sockets: what fits into the rest of that byte.
pub const MOST_HTTP: u8 = u8::MAX >> 1;

/// Flags of a client.
const CLOSE_AFTER_WRITE: u8 = 1;
const AWAITS_PROXY_HEADER: u8 = 1 << 1;
const UNCOUNTED: u8 = 1 << 2;

/// Largest number of descriptors that the kernel accepts in one message (SCM_MAX_FD).
const MOST: usize = 253;

/// Contents of a handover state. The order of its descriptors: listening sockets for clients,
/// listening sockets for HTTP, clients, sockets in lingering close.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HandoverState {
    /// Schemes of the listening sockets for clients.
    pub listeners: Vec<Cow<'static, str>>,
    /// Number of listening sockets for HTTP, [`MOST_HTTP`] at most.
    pub http: u8,
    /// Id of the server.
    pub id: Uuid,
    /// Number of clients accepted so far.
    pub accepted: u64,
    /// Number of handovers before this one.
    pub handovers: u64,
    /// Since when no client has been accepted.
    pub begun: Millis,
    /// Cluster membership, if there is one.
    pub census: Option<Census>,
    /// Clients.
    pub clients: Vec<ConnectionState>,
    /// When each socket in lingering close was half-closed.
    pub leaving: Vec<Millis>,
}

impl HandoverState {
    /// Returns the number of descriptors.
    pub fn descriptors(&self) -> usize {
        let listening = self.listeners.len() + usize::from(self.http);
        listening + self.clients.len() + self.leaving.len()
    }
}

/// Cluster census, with which the next process continues the membership and can answer at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Census {
    /// Identifies one run of the server: the process that began to serve and those that took over
    /// its clients.
    pub incarnation: Uuid,
    /// Number of clients of the other servers.
    pub others: u64,
    /// Time until which that number is valid.
    pub until: Millis,
}

/// State of a client apart from its socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionState {
    /// Number of the client in the log, counted from 1 across all handovers.
    pub number: u64,
    /// Scheme of its protocol.
    pub protocol: Cow<'static, str>,
    /// Address of the client.
    pub peer: SocketAddr,
    /// When the client was accepted.
    pub since: Millis,
    /// For a released client, when its last request was complete; its idle time continues from
    /// then.
    pub active: Option<Millis>,
    /// Bytes received and not answered: the beginning of a request, or requests for the next
    /// process. At most one of them may be long.
    pub read_buffer: Vec<u8>,
    /// What its codec has saved.
    pub codec: Vec<u8>,
    /// Replies that have not been written.
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
            replies: Vec::new(),
            close_after_write: false,
            awaits_proxy_header: false,
            uncounted: false,
        }
    }

    /// Encodes the flags.
    fn flags(&self) -> u8 {
        let flags = [
            (self.close_after_write, CLOSE_AFTER_WRITE),
            (self.awaits_proxy_header, AWAITS_PROXY_HEADER),
            (self.uncounted, UNCOUNTED),
        ];
        let set = flags.into_iter().filter(|(is_so, _)| *is_so);
        set.fold(0, |flags, (_, flag)| flags | flag)
    }
}

/// Reason why a handover state can't be decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// It has another version, this one.
    Version(u32),
    /// It is damaged or truncated, or not a handover state.
    Broken(&'static str),
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DecodeError::Version(version) => write!(
                f,
                "its format has version {version}, and this program knows version {VERSION}"
            ),
            DecodeError::Broken(how) => write!(f, "it is damaged: {how}"),
        }
    }
}

/// A received handover state.
pub struct Received {
    /// Whether systemd passed the listening sockets to the first process.
    pub passed: bool,
    /// Number of HTTP sockets, which are the last of the listening sockets.
    pub http: usize,
    /// Decoded state.
    pub contents: Result<HandoverState, DecodeError>,
    /// All received descriptors.
    pub descriptors: Vec<OwnedFd>,
}

/// Encodes the state.
pub fn encode(contents: &HandoverState, passed: bool) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.push(contents.http << 1 | if passed { PASSED } else { 0 });
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    put_length(&mut bytes, contents.listeners.len());
    for scheme in &contents.listeners {
        put_bytes(&mut bytes, scheme.as_bytes());
    }
    bytes.extend_from_slice(contents.id.as_bytes());
    bytes.extend_from_slice(&contents.accepted.to_le_bytes());
    bytes.extend_from_slice(&contents.handovers.to_le_bytes());
    bytes.extend_from_slice(&contents.begun.0.to_le_bytes());
    bytes.push(contents.census.is_some().into());
    if let Some(census) = &contents.census {
        bytes.extend_from_slice(census.incarnation.as_bytes());
        bytes.extend_from_slice(&census.others.to_le_bytes());
        bytes.extend_from_slice(&census.until.0.to_le_bytes());
    }
    put_length(&mut bytes, contents.clients.len());
    for client in &contents.clients {
        bytes.extend_from_slice(&client.number.to_le_bytes());
        put_bytes(&mut bytes, client.protocol.as_bytes());
        put_bytes(&mut bytes, client.peer.to_string().as_bytes());
        bytes.extend_from_slice(&client.since.0.to_le_bytes());
        let active = client.active.map_or(u64::MAX, |active| active.0);
        bytes.extend_from_slice(&active.to_le_bytes());
        put_bytes(&mut bytes, &client.read_buffer);
        put_bytes(&mut bytes, &client.codec);
        put_bytes(&mut bytes, &client.replies);
        bytes.push(client.flags());
    }
    put_length(&mut bytes, contents.leaving.len());
    for since in &contents.leaving {
        bytes.extend_from_slice(&since.0.to_le_bytes());
    }
    let sum = checksum(&bytes);
    bytes.extend_from_slice(&sum.to_le_bytes());
    bytes
}

fn put_length(bytes: &mut Vec<u8>, length: usize) {
    // The buffers of one client, and the number of clients, are far below 4 Gi.
    bytes.extend_from_slice(&(length as u32).to_le_bytes());
}

fn put_bytes(bytes: &mut Vec<u8>, more: &[u8]) {
    put_length(bytes, more.len());
    bytes.extend_from_slice(more);
}

/// Decodes the output of [`encode`]; rejects everything else.
pub fn decode(bytes: &[u8]) -> Result<HandoverState, DecodeError> {
    let mut rest = Reader(bytes);
    if &rest.array()? != MAGIC {
        return Err(DecodeError::Broken("it does not begin as one"));
    }
    let [listening] = rest.array()?;
    let version = rest.number32()?;
    if version != VERSION {
        return Err(DecodeError::Version(version));
    }
    let (body, sum) = bytes
        .split_last_chunk()
        .ok_or(DecodeError::Broken("it is too short"))?;
    if checksum(body) != u64::from_le_bytes(*sum) {
        return Err(DecodeError::Broken("its checksum is wrong"));
    }
    rest.0 = &rest.0[..rest.0.len().saturating_sub(sum.len())];
    let mut contents = HandoverState {
        listeners: rest.schemes()?,
        http: listening >> 1,
        id: Uuid::from_bytes(rest.array()?),
        accepted: rest.number64()?,
        handovers: rest.number64()?,
        begun: Millis(rest.number64()?),
        census: rest.census()?,
        ..HandoverState::default()
    };
    for _ in 0..rest.number32()? {
        contents.clients.push(rest.client()?);
    }
    for _ in 0..rest.number32()? {
        contents.leaving.push(Millis(rest.number64()?));
    }
    if !rest.0.is_empty() {
        return Err(DecodeError::Broken("something follows"));
    }
    Ok(contents)
}

const TOO_EARLY: DecodeError = DecodeError::Broken("it ends too early");

/// Remaining bytes.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], DecodeError> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(TOO_EARLY)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const LENGTH: usize>(&mut self) -> Result<[u8; LENGTH], DecodeError> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(TOO_EARLY)?;
        self.0 = rest;
        Ok(*taken)
    }

    fn number32(&mut self) -> Result<u32, DecodeError> {
        self.array().map(u32::from_le_bytes)
    }

    fn number64(&mut self) -> Result<u64, DecodeError> {
        self.array().map(u64::from_le_bytes)
    }

    fn flags(&mut self) -> Result<u8, DecodeError> {
        let [flags] = self.array()?;
        if flags & !(CLOSE_AFTER_WRITE | AWAITS_PROXY_HEADER | UNCOUNTED) != 0 {
            return Err(DecodeError::Broken("nobody knows one of a client's flags"));
        }
        Ok(flags)
    }

    fn bytes(&mut self) -> Result<&'a [u8], DecodeError> {
        let length = self.number32()? as usize;
        self.take(length)
    }

    fn scheme(&mut self) -> Result<Cow<'static, str>, DecodeError> {
        let scheme = String::from_utf8(self.bytes()?.to_vec());
        scheme.map_or(Err(DecodeError::Broken("a scheme is not text")), |scheme| {
            Ok(scheme.into())
        })
    }

    fn schemes(&mut self) -> Result<Vec<Cow<'static, str>>, DecodeError> {
        (0..self.number32()?).map(|_| self.scheme()).collect()
    }

    fn census(&mut self) -> Result<Option<Census>, DecodeError> {
        Ok(match self.array()? {
            [0] => None,
            [1] => Some(Census {
                incarnation: Uuid::from_bytes(self.array()?),
                others: self.number64()?,
                until: Millis(self.number64()?),
            }),
            [_] => return Err(DecodeError::Broken("it says neither yes nor no")),
        })
    }

    fn client(&mut self) -> Result<ConnectionState, DecodeError> {
        let number = self.number64()?;
        let protocol = self.scheme()?;
        let peer = std::str::from_utf8(self.bytes()?).ok();
        let peer = peer.and_then(|text| text.parse().ok());
        let mut client = ConnectionState {
            number,
            protocol,
            peer: peer.ok_or(DecodeError::Broken("a client's address is none"))?,
            since: Millis(self.number64()?),
            active: Some(self.number64()?)
                .filter(|active| *active != u64::MAX)
                .map(Millis),
            read_buffer: self.bytes()?.to_vec(),
            codec: self.bytes()?.to_vec(),
            replies: self.bytes()?.to_vec(),
            close_after_write: false,
            awaits_proxy_header: false,
            uncounted: false,
        };
        let flags = self.flags()?;
        client.close_after_write = flags & CLOSE_AFTER_WRITE != 0;
        client.awaits_proxy_header = flags & AWAITS_PROXY_HEADER != 0;
        client.uncounted = flags & UNCOUNTED != 0;
        Ok(client)
    }
}

/// Returns the checksum of the bytes before it: FNV-1a, 64 bits (draft-eastlake-fnv). It detects
/// accidents, not manipulation.
pub fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, &byte| {
        (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// Handover state that has been written.
pub struct Pack {
    /// The socket that holds everything.
    pub socket: OwnedFd,
    /// The other end, which hangs up when nobody holds the socket any more.
    pub peer: OwnedFd,
}

/// Sends the state and the descriptors into a new handover state, which holds them from now on: the
/// caller may close its own.
pub fn send(
    contents: &HandoverState,
    passed: bool,
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<Pack> {
    send_encoded(&encode(contents, passed), descriptors)
}

/// Does the same with an encoded state of any version.
pub fn send_encoded(state: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<Pack> {
    let (socket, peer) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
    let mut file = File::from(rustix::fs::memfd_create("pack", MemfdFlags::CLOEXEC)?);
    file.write_all(state)?;
    send_some(&peer, &[file.as_fd()])?;
    for some in descriptors.chunks(MOST) {
        send_some(&peer, some)?;
    }
    Ok(Pack { socket, peer })
}

fn send_some(sender: &OwnedFd, some: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = vec![std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut rights = SendAncillaryBuffer::new(&mut space);
    rights.push(SendAncillaryMessage::ScmRights(some));
    // The reader is not there yet: waiting for room in the queue would never end.
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    rustix::net::sendmsg(sender, &[IoSlice::new(b"p")], &mut rights, flags)?;
    Ok(())
}

/// Receives a handover state. Returns the descriptors even if the state can't be decoded. If this
/// process may not open as many, there are fewer descriptors than the state says, without the last
/// ones.
pub fn receive(pack: &OwnedFd) -> io::Result<Received> {
    let mut all = Vec::new();
    loop {
        let mut space = vec![std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
        let mut rights = RecvAncillaryBuffer::new(&mut space);
        let mut byte = [0];
        let received = rustix::net::recvmsg(
            pack,
            &mut [IoSliceMut::new(&mut byte)],
            &mut rights,
            RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC,
        );
        match received {
            Ok(message) if message.bytes == 0 => break,
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            // The queue is empty.
            Err(Errno::AGAIN) => break,
            Err(error) => return Err(error.into()),
        }
        for message in rights.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                all.extend(descriptors);
            }
        }
    }
    let mut descriptors = all.into_iter();
    let state = descriptors.next().map_or(Ok(Vec::new()), read_all);
    let descriptors: Vec<OwnedFd> = descriptors.collect();
    let state = state.unwrap_or_default();
    let contents = decode(&state).and_then(|contents| {
        if descriptors.len() > contents.descriptors() {
            return Err(DecodeError::Broken("nobody knows some of its descriptors"));
        }
        Ok(contents)
    });
    let listening = state.get(MAGIC.len()).copied().unwrap_or(0);
    Ok(Received {
        passed: listening & PASSED != 0,
        http: usize::from(listening >> 1),
        contents,
        descriptors,
    })
}

fn read_all(state: OwnedFd) -> io::Result<Vec<u8>> {
    let mut state = File::from(state);
    let mut bytes = Vec::new();
    state.rewind()?;
    state.read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contents() -> HandoverState {
        let client = |number, peer: &str| ConnectionState {
            number,
            protocol: "tcp".into(),
            peer: peer.parse().unwrap(),
            since: Millis(1000 + number),
            active: (number % 2 == 0).then_some(Millis(2000 + number)),
            read_buffer: b"WH".to_vec(),
            codec: vec![7; number as usize],
            replies: vec![b'\n'; number as usize * 1000],
            close_after_write: number % 3 == 0,
            awaits_proxy_header: number % 2 == 0,
            uncounted: number % 5 == 0,
        };
        HandoverState {
            listeners: vec!["tcp".into(), "tcp".into()],
            http: 1,
            id: Uuid::new_v4(),
            accepted: 77,
            handovers: 3,
            begun: Millis(98),
            census: Some(Census {
                incarnation: Uuid::new_v4(),
                others: 4,
                until: Millis(100),
            }),
            clients: vec![client(5, "127.0.0.1:1234"), client(6, "[2001:db8::1]:1")],
            leaving: vec![Millis(99)],
        }
    }

    #[test]
    fn what_was_written_is_read() {
        for contents in [HandoverState::default(), contents()] {
            assert_eq!(decode(&encode(&contents, true)), Ok(contents));
        }
    }

    #[test]
    fn every_damage_is_noticed() {
        let whole = encode(&contents(), true);
        for length in 0..whole.len() {
            assert!(decode(&whole[..length]).is_err(), "{length}");
        }
        for position in 0..whole.len() {
            let mut flipped = whole.clone();
            flipped[position] ^= 1;
            assert!(decode(&flipped).is_err(), "{position}");
        }
        let mut newer = whole.clone();
        newer[MAGIC.len() + 1] += 1;
        assert_eq!(decode(&newer), Err(DecodeError::Version(VERSION + 1)));
        assert!(decode(&[&whole[..], b"x"].concat()).is_err());
    }

    #[test]
    fn a_pack_holds_its_descriptors_when_its_sender_has_closed_them() {
        const CLIENTS: usize = 600;
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let mut contents = contents();
        let one = contents.clients[0].clone();
        contents.clients = vec![one; CLIENTS];
        contents.listeners.clear();
        contents.http = 0;
        contents.leaving.clear();
        let descriptors = vec![writer.as_fd(); CLIENTS];
        let pack = send(&contents, false, &descriptors).unwrap().socket;
        drop(writer);
        let received = receive(&pack).unwrap();
        assert_eq!(received.contents, Ok(contents));
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
        let nothing = receive(&pack).unwrap();
        assert_eq!(
            nothing.contents,
            Err(DecodeError::Broken("it ends too early"))
        );
    }
}
