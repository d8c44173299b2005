//! The other servers, asked how many clients they have: all at the same time, by one thread, over connections that are kept.
//!
//! A server that is being replaced closes its connections and listens still: whoever connects meanwhile is answered by the
//! next process. One that refuses may have left: the roster is read again before the next attempt.

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use httparse::{EMPTY_HEADER, Status};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, connect, socket_with,
};
use uuid::Uuid;

use super::roster::Entry;
use super::{Member, Unavailable};
use crate::error::plain;

/// The most bytes of an answer: its head and one line.
const LONGEST_ANSWER: usize = 4096;

/// The most header fields of an answer.
const MOST_FIELDS: usize = 32;

/// A server that could not be asked is asked again after this time, which doubles with each attempt: each reads the roster, and
/// all others do that for one who refuses.
const AGAIN: Duration = Duration::from_millis(20);

/// It doubles up to this.
const LONGEST_AGAIN: Duration = Duration::from_millis(200);

/// What a server answers who is asked for its census: who it is, and how many clients it has.
pub fn answer(member: Member, clients: usize) -> String {
    format!("{} {} {clients}", member.id, member.incarnation)
}

/// Why a server has not answered.
#[derive(Debug)]
pub struct Silence {
    /// Where it should be.
    pub address: SocketAddr,
    /// What happened last.
    pub why: String,
}

/// What became of the question.
pub enum Asked {
    /// So many servers have so many clients.
    All(u64, u64),
    /// Not everybody answered.
    Some {
        /// So many did.
        answered: u16,
        /// One of those who did not.
        silence: Silence,
        /// So many were asked.
        members: u16,
    },
    /// It turned out that there is no answer.
    None(Unavailable),
}

/// The connections that are kept, by the incarnation of the server.
#[derive(Default)]
pub struct Peers(HashMap<Uuid, (SocketAddr, TcpStream)>);

/// What is being done for one server.
struct Talk {
    peer: Entry,
    doing: Doing,
    /// What went wrong last.
    why: String,
}

enum Doing {
    Connecting(TcpStream),
    Asking(Conversation),
    Answered(u64, Option<TcpStream>),
    Failed,
}

struct Conversation {
    socket: TcpStream,
    /// Whether it has been used before: then it may have been closed, without anything being wrong.
    kept: bool,
    /// How much of the question is sent.
    sent: usize,
    question: String,
    heard: Vec<u8>,
}

impl Peers {
    /// Asks all `peers` until the deadline. Before somebody is asked who could not be, `again` says who there is by now.
    pub fn ask(
        &mut self,
        peers: &[Entry],
        deadline: Instant,
        again: &mut dyn FnMut() -> Result<Vec<Entry>, Unavailable>,
    ) -> Asked {
        let mut talks: Vec<Talk> = peers.iter().map(|peer| self.begin(*peer)).collect();
        let mut look = Instant::now() + AGAIN;
        let mut pause = AGAIN;
        loop {
            let is_open = |talk: &&Talk| !matches!(talk.doing, Doing::Answered(..));
            let Some(silent) = talks.iter().find(is_open) else {
                return Asked::All(talks.len() as u64, self.end(talks));
            };
            let now = Instant::now();
            if now >= deadline {
                let (silence, all) = (silent.silence(), talks.len());
                let answered = all - talks.iter().filter(is_open).count();
                // There are MOST_SERVERS at most.
                let (answered, members) = (answered as u16, all as u16);
                // The connections to those who are silent go: a late answer would be taken for one to the next question.
                self.end(talks);
                return Asked::Some {
                    answered,
                    silence,
                    members,
                };
            }
            let failed = |talk: &Talk| matches!(talk.doing, Doing::Failed);
            let mut until = deadline;
            if talks.iter().any(failed) {
                if now >= look {
                    match again() {
                        Ok(peers) => self.follow(&mut talks, &peers),
                        Err(unavailable) => {
                            self.end(talks);
                            return Asked::None(unavailable);
                        }
                    }
                    pause = (pause * 2).min(LONGEST_AGAIN);
                    look = Instant::now() + pause;
                    continue;
                }
                until = until.min(look);
            }
            wait(&mut talks, until);
        }
    }

    /// Those of `peers` that answer by the deadline.
    pub fn alive(&mut self, peers: &[Entry], deadline: Instant) -> Vec<Member> {
        let mut talks: Vec<Talk> = peers.iter().map(|peer| self.begin(*peer)).collect();
        let is_open = |talk: &Talk| matches!(talk.doing, Doing::Connecting(_) | Doing::Asking(_));
        while talks.iter().any(is_open) && Instant::now() < deadline {
            wait(&mut talks, deadline);
        }
        let answered = |talk: &Talk| matches!(talk.doing, Doing::Answered(..));
        let talks = talks.iter().filter(|talk| answered(talk));
        talks.map(|talk| talk.peer.member).collect()
    }

    /// Begins to ask a server, over the connection that is kept, if there is one.
    fn begin(&mut self, peer: Entry) -> Talk {
        let mut talk = Talk {
            peer,
            doing: Doing::Failed,
            why: String::new(),
        };
        match self.0.remove(&peer.member.incarnation) {
            Some((address, socket)) if address == peer.address => talk.converse(socket, true),
            _ => talk.connect(),
        }
        talk
    }

    /// Asks whom `peers` names: no more those who are gone, now those who are new, and once more those who could not be.
    fn follow(&mut self, talks: &mut Vec<Talk>, peers: &[Entry]) {
        let is_same = |talk: &Talk, peer: &Entry| {
            (talk.peer.member, talk.peer.address) == (peer.member, peer.address)
        };
        talks.retain(|talk| peers.iter().any(|peer| is_same(talk, peer)));
        for peer in peers {
            match talks.iter_mut().find(|talk| is_same(talk, peer)) {
                Some(talk) if matches!(talk.doing, Doing::Failed) => talk.connect(),
                Some(_) => {}
                None => talks.push(self.begin(*peer)),
            }
        }
    }

    /// Keeps the connections to those who have answered, and no others. Returns how many clients they have.
    fn end(&mut self, talks: Vec<Talk>) -> u64 {
        self.0.clear();
        let mut clients = 0u64;
        for talk in talks {
            if let Doing::Answered(number, socket) = talk.doing {
                clients = clients.saturating_add(number);
                let socket = socket.map(|socket| (talk.peer.address, socket));
                self.0
                    .extend(socket.map(|kept| (talk.peer.member.incarnation, kept)));
            }
        }
        clients
    }
}

/// Waits until somebody can go on, or for so long, and goes on.
fn wait(talks: &mut [Talk], until: Instant) {
    let mut polled = Vec::new();
    let mut whose = Vec::new();
    for (index, talk) in talks.iter().enumerate() {
        let (socket, events) = match &talk.doing {
            Doing::Connecting(socket) => (socket, PollFlags::OUT),
            Doing::Asking(conversation) => (&conversation.socket, conversation.events()),
            _ => continue,
        };
        polled.push(PollFd::new(socket, events));
        whose.push(index);
    }
    let left = until.saturating_duration_since(Instant::now());
    // A little more, or it would come back just before the time.
    let time = Timespec::try_from(left + Duration::from_micros(100));
    if poll(&mut polled, time.ok().as_ref()).is_err() {
        // Interrupted, or out of memory: that passes, or the time does.
        std::thread::park_timeout(Duration::from_millis(1));
        return;
    }
    let ready: Vec<bool> = polled.iter().map(|fd| !fd.revents().is_empty()).collect();
    drop(polled);
    for (index, _) in whose.into_iter().zip(ready).filter(|(_, ready)| *ready) {
        talks[index].go_on();
    }
}

impl Talk {
    fn silence(&self) -> Silence {
        Silence {
            address: self.peer.address,
            why: match self.why.as_str() {
                "" => "it does not answer in time".to_string(),
                why => why.to_string(),
            },
        }
    }

    fn fail(&mut self, why: impl Into<String>) {
        self.why = why.into();
        self.doing = Doing::Failed;
    }

    fn connect(&mut self) {
        match begin_to_connect(self.peer.address) {
            Ok(socket) => self.doing = Doing::Connecting(socket),
            Err(error) => self.fail(plain(&error.into())),
        }
    }

    /// Asks over this connection.
    fn converse(&mut self, socket: TcpStream, kept: bool) {
        let mut conversation = Conversation {
            socket,
            kept,
            sent: 0,
            question: format!(
                "GET /census HTTP/1.1\r\nHost: {}\r\nUser-Agent: blockchain-tcpd\r\n\r\n",
                self.peer.address
            ),
            heard: Vec::new(),
        };
        match conversation.send() {
            Ok(()) => self.doing = Doing::Asking(conversation),
            Err(_) if kept => self.connect(),
            Err(error) => self.fail(plain(&error.into())),
        }
    }

    fn go_on(&mut self) {
        match std::mem::replace(&mut self.doing, Doing::Failed) {
            Doing::Connecting(socket) => match is_connected(&socket) {
                Ok(()) => self.converse(socket, false),
                Err(error) => self.fail(plain(&error)),
            },
            Doing::Asking(mut conversation) => match conversation.go_on(self.peer.member) {
                Ok(Some((clients, keeps))) => {
                    let socket = keeps.then_some(conversation.socket);
                    self.doing = Doing::Answered(clients, socket);
                }
                Ok(None) => self.doing = Doing::Asking(conversation),
                // Its process has been replaced, most likely, or it was kept for too long.
                Err(_) if conversation.kept && conversation.heard.is_empty() => self.connect(),
                Err(why) => self.fail(why),
            },
            other => self.doing = other,
        }
    }
}

impl Conversation {
    fn events(&self) -> PollFlags {
        match self.sent < self.question.len() {
            true => PollFlags::OUT,
            false => PollFlags::IN,
        }
    }

    fn send(&mut self) -> Result<(), Errno> {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        match rustix::net::send(&self.socket, &self.question.as_bytes()[self.sent..], flags) {
            Ok(sent) => self.sent += sent,
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Does what can be done without waiting. Returns the number of clients and whether the connection is kept, once they are there.
    fn go_on(&mut self, member: Member) -> Result<Option<(u64, bool)>, String> {
        let system = |error: Errno| plain(&error.into());
        if self.sent < self.question.len() {
            self.send().map_err(system)?;
            return Ok(None);
        }
        let mut piece = [0; LONGEST_ANSWER];
        match rustix::net::recv(&self.socket, &mut piece, RecvFlags::DONTWAIT) {
            Ok((0, _)) => Err("it closes the connection".to_string()),
            Ok((read, _)) => {
                self.heard.extend_from_slice(&piece[..read]);
                understand(&self.heard, member)
            }
            Err(Errno::AGAIN | Errno::INTR) => Ok(None),
            Err(error) => Err(system(error)),
        }
    }
}

/// Begins to connect, without waiting.
fn begin_to_connect(address: SocketAddr) -> Result<TcpStream, Errno> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = TcpStream::from(socket_with(family, SocketType::STREAM, flags, None)?);
    // The question is one packet anyway.
    let _ = socket.set_nodelay(true);
    match connect(&socket, &address) {
        Ok(()) | Err(Errno::INPROGRESS | Errno::INTR) => Ok(socket),
        Err(error) => Err(error),
    }
}

fn is_connected(socket: &TcpStream) -> io::Result<()> {
    if let Some(error) = socket.take_error()? {
        return Err(error);
    }
    // A port of this machine at which nobody listens may have been taken for both ends (RFC 9293, section 3.5).
    if socket.local_addr()? == socket.peer_addr()? {
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    Ok(())
}

/// The number of clients in an answer, once that is whole, and whether the connection is kept. Only `member` may have given it.
fn understand(heard: &[u8], member: Member) -> Result<Option<(u64, bool)>, String> {
    let unheard_of = |what: &str| Err(format!("it answers {what}"));
    let mut fields = [EMPTY_HEADER; MOST_FIELDS];
    let mut head = httparse::Response::new(&mut fields);
    let length = match head.parse(heard) {
        Ok(Status::Complete(length)) => length,
        Ok(Status::Partial) if heard.len() < LONGEST_ANSWER => return Ok(None),
        Ok(Status::Partial) => return unheard_of("too much"),
        Err(_) => return unheard_of("something that is no HTTP"),
    };
    let field = |name: &str| {
        let mut fields = head.headers.iter();
        fields.find(|field| field.name.eq_ignore_ascii_case(name))
    };
    if head.code != Some(200) {
        return unheard_of(&format!("with HTTP status {}", head.code.unwrap_or(0)));
    }
    let size = field("content-length").and_then(|field| std::str::from_utf8(field.value).ok());
    let size = size.and_then(|size| size.trim().parse::<usize>().ok());
    let Some(size) = size.filter(|size| *size <= LONGEST_ANSWER - length) else {
        return unheard_of("something that is no census");
    };
    let body = &heard[length..];
    if body.len() < size {
        return Ok(None);
    }
    if body.len() > size {
        return unheard_of("more than it was asked");
    }
    let body = std::str::from_utf8(body).unwrap_or_default();
    let words: Vec<&str> = body.split_whitespace().collect();
    let [id, incarnation, clients] = words[..] else {
        return unheard_of("something that is no census");
    };
    let is = |text: &str, expected: Uuid| Uuid::try_parse(text) == Ok(expected);
    if !is(id, member.id) || !is(incarnation, member.incarnation) {
        return Err("another server answers there".to_string());
    }
    let Ok(clients) = clients.parse::<u32>() else {
        return unheard_of("something that is no census");
    };
    let closes = |value: &[u8]| value.eq_ignore_ascii_case(b"close");
    let keeps = head.version == Some(1) && !field("connection").is_some_and(|f| closes(f.value));
    Ok(Some((clients.into(), keeps)))
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;

    use super::*;
    use crate::protocol::http::Response;

    const ME: Member = Member {
        id: Uuid::from_u128(1),
        incarnation: Uuid::from_u128(2),
    };

    #[test]
    fn only_a_whole_answer_of_the_right_server_is_understood() {
        let whole = Response::text(200, &answer(ME, 7)).encode(false, true);
        for length in 0..whole.len() {
            assert_eq!(understand(&whole[..length], ME), Ok(None), "{length}");
        }
        assert_eq!(understand(&whole, ME), Ok(Some((7, true))));
        let last = Response::text(200, &answer(ME, 7)).encode(false, false);
        assert_eq!(understand(&last, ME), Ok(Some((7, false))));
        let another = Member {
            incarnation: Uuid::from_u128(3),
            ..ME
        };
        let long = format!("HTTP/1.1 200 OK\r\nX: {}", "x".repeat(LONGEST_ANSWER));
        let text = |text: &str| Response::text(200, text).encode(false, true);
        for bad in [
            Response::text(200, &answer(another, 7)).encode(false, true),
            Response::text(404, &answer(ME, 7)).encode(false, true),
            text(&answer(ME, usize::MAX)),
            text(&(answer(ME, 7) + " x")),
            text(""),
            text(&"x".repeat(LONGEST_ANSWER)),
            [whole.clone(), whole].concat(),
            long.into_bytes(),
            b"ERR UNKNOWN\n".to_vec(),
            b"HTTP/1.1 200 OK\r\n\r\n".to_vec(),
            b"HTTP/1.1 200 OK\r\nContent-Length: 18446744073709551615\r\n\r\n".to_vec(),
            b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n".to_vec(),
        ] {
            let text = String::from_utf8_lossy(&bad).into_owned();
            assert!(understand(&bad, ME).is_err(), "{text}");
        }
    }

    /// A server that answers each question, and closes after so many; its entry.
    fn server(questions: usize) -> Entry {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for socket in listener.incoming() {
                let mut socket = socket.unwrap();
                for _ in 0..questions {
                    let mut question = [0; 1024];
                    if socket.read(&mut question).unwrap_or(0) == 0 {
                        break;
                    }
                    let reply = Response::text(200, &answer(ME, 7)).encode(false, true);
                    socket.write_all(&reply).unwrap();
                }
            }
        });
        let (member, lease) = (ME, 0);
        Entry {
            member,
            address,
            lease,
        }
    }

    #[test]
    fn a_kept_connection_that_was_closed_is_no_silence() {
        for questions in 1..3 {
            let (entry, mut peers) = (server(questions), Peers::default());
            for _ in 0..10 {
                let deadline = Instant::now() + Duration::from_secs(10);
                let asked = peers.ask(&[entry], deadline, &mut || {
                    unreachable!("nobody has gone");
                });
                assert!(matches!(asked, Asked::All(1, 7)));
            }
        }
    }

    #[test]
    fn who_has_gone_meanwhile_is_not_waited_for_and_who_has_come_is() {
        let gone = {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap();
            let member = Member {
                id: Uuid::from_u128(9),
                ..ME
            };
            Entry {
                member,
                address,
                lease: 0,
            }
        };
        let (here, mut peers) = (server(9), Peers::default());
        let deadline = || Instant::now() + Duration::from_secs(10);
        let asked = peers.ask(&[gone, here], deadline(), &mut || Ok(vec![here]));
        assert!(matches!(asked, Asked::All(1, 7)));
        let asked = peers.ask(&[gone], deadline(), &mut || Ok(vec![here]));
        assert!(matches!(asked, Asked::All(1, 7)));
        let soon = Instant::now() + Duration::from_millis(750);
        let mut looks = 0;
        let asked = peers.ask(&[here, gone], soon, &mut || {
            looks += 1;
            Ok(vec![here, gone])
        });
        // After 20, 60, 140, 300, 500 and 700 ms, if this machine is not busy.
        assert!(
            (1..=6).contains(&looks),
            "the roster was read {looks} times"
        );
        let Asked::Some {
            answered,
            members,
            silence,
        } = asked
        else {
            panic!("nobody is there");
        };
        assert_eq!((answered, members, silence.address), (1, 2, gone.address));
        assert_eq!(silence.why, "Connection refused");
    }
}
