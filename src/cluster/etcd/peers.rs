//! Peer polling: one thread asks all other servers for their number of clients, concurrently, over
//! kept-alive connections.
//!
//! A server in a handover closes its connections but keeps listening, so a new connection is
//! answered by the next process. A server that refuses a connection may have left, so the
//! membership is read again before the next attempt.

use std::collections::HashMap;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use rustix::event::PollFd;
use uuid::Uuid;

use super::membership::Entry;
use super::peer_request::{PeerError, PeerRequest};
use crate::cluster::{Member, Unavailable};
use crate::waker::poll_until;

/// Pause before servers that could not be asked are asked again. It doubles with each attempt,
/// because each attempt reads the membership, and all servers do that for one that refuses.
const AGAIN: Duration = Duration::from_millis(20);

/// Longest pause.
const LONGEST_AGAIN: Duration = Duration::from_millis(200);

/// Result of a poll.
pub enum ParsedArgs {
    /// Number of servers and sum of their clients.
    All(u64, u64),
    /// Some servers did not answer.
    Some {
        /// Number of servers that answered.
        answered: u16,
        /// Reasons of the servers that did not answer.
        silences: Vec<PeerError>,
        /// Number of servers that were asked.
        members: u16,
    },
    /// The membership could not be read again.
    None(Unavailable),
}

/// Kept-alive connections by the incarnation of the server.
#[derive(Default)]
pub struct Peers(HashMap<Uuid, (SocketAddr, TcpStream)>);

impl Peers {
    /// Asks all `peers` until the deadline. Calls `again` for the current membership before failed
    /// requests are repeated.
    pub fn ask(
        &mut self,
        peers: &[Entry],
        deadline: Instant,
        again: &mut dyn FnMut() -> Result<Vec<Entry>, Unavailable>,
    ) -> ParsedArgs {
        let mut requests: Vec<PeerRequest> = peers.iter().map(|peer| self.begin(*peer)).collect();
        let mut look = Instant::now() + AGAIN;
        let mut pause = AGAIN;
        loop {
            let is_open = |request: &&PeerRequest| !request.is_answered();
            if !requests.iter().any(|request| is_open(&request)) {
                return ParsedArgs::All(requests.len() as u64, self.end(requests));
            }
            let now = Instant::now();
            if now >= deadline {
                let silent = requests.iter().filter(is_open);
                let silences: Vec<PeerError> = silent.map(PeerRequest::silence).collect();
                let all = requests.len();
                let answered = all - silences.len();
                // The number of servers is at most `MOST_SERVERS`.
                let (answered, members) = (answered as u16, all as u16);
                // Closes the connections of silent servers: a late answer would be taken for the
                // answer to the next question.
                self.end(requests);
                return ParsedArgs::Some {
                    answered,
                    silences,
                    members,
                };
            }
            let mut until = deadline;
            if requests.iter().any(PeerRequest::has_failed) {
                if now >= look {
                    match again() {
                        Ok(peers) => self.follow(&mut requests, &peers),
                        Err(unavailable) => {
                            self.end(requests);
                            return ParsedArgs::None(unavailable);
                        }
                    }
                    pause = (pause * 2).min(LONGEST_AGAIN);
                    look = Instant::now() + pause;
                    continue;
                }
                until = until.min(look);
            }
            wait(&mut requests, until);
        }
    }

    /// Returns the `peers` that answer before the deadline.
    pub fn alive(&mut self, peers: &[Entry], deadline: Instant) -> Vec<Member> {
        let mut requests: Vec<PeerRequest> = peers.iter().map(|peer| self.begin(*peer)).collect();
        let is_open = |request: &PeerRequest| request.polled().is_some();
        while requests.iter().any(is_open) && Instant::now() < deadline {
            wait(&mut requests, deadline);
        }
        let requests = requests.iter().filter(|request| request.is_answered());
        requests.map(|request| request.peer.member).collect()
    }

    /// Starts a request, over the kept-alive connection if there is one.
    fn begin(&mut self, peer: Entry) -> PeerRequest {
        let kept = self.0.remove(&peer.member.incarnation);
        let kept = kept.filter(|(address, _)| *address == peer.address);
        PeerRequest::begin(peer, kept.map(|(_, socket)| socket))
    }

    /// Follows a changed membership: drops the requests to servers that are gone, starts those to
    /// new ones, and repeats those that failed.
    fn follow(&mut self, requests: &mut Vec<PeerRequest>, peers: &[Entry]) {
        let is_same = |request: &PeerRequest, peer: &Entry| {
            (request.peer.member, request.peer.address) == (peer.member, peer.address)
        };
        requests.retain(|request| peers.iter().any(|peer| is_same(request, peer)));
        for peer in peers {
            match requests.iter_mut().find(|request| is_same(request, peer)) {
                Some(request) if request.has_failed() => request.connect(),
                Some(_) => {}
                None => requests.push(self.begin(*peer)),
            }
        }
    }

    /// Keeps the connections of servers that have answered, and closes all others. Returns the sum
    /// of their clients.
    fn end(&mut self, requests: Vec<PeerRequest>) -> u64 {
        self.0.clear();
        let mut clients = 0u64;
        for request in requests {
            let peer = request.peer;
            if let Some((number, socket)) = request.end() {
                clients = clients.saturating_add(number);
                let socket = socket.map(|socket| (peer.address, socket));
                self.0
                    .extend(socket.map(|kept| (peer.member.incarnation, kept)));
            }
        }
        clients
    }
}

/// Waits until a request is ready, or until `until`, and advances the ready requests.
fn wait(requests: &mut [PeerRequest], until: Instant) {
    let mut polled = Vec::new();
    let mut whose = Vec::new();
    for (index, request) in requests.iter().enumerate() {
        if let Some((socket, events)) = request.polled() {
            polled.push(PollFd::new(socket, events));
            whose.push(index);
        }
    }
    if poll_until(&mut polled, until).is_err() {
        // An interruption or a lack of memory: both are temporary, and the caller has a deadline.
        std::thread::park_timeout(Duration::from_millis(1));
        return;
    }
    let ready: Vec<bool> = polled.iter().map(|fd| !fd.revents().is_empty()).collect();
    drop(polled);
    for (index, _) in whose.into_iter().zip(ready).filter(|(_, ready)| *ready) {
        requests[index].go_on();
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;

    use super::super::peer_request::answer;
    use super::*;
    use crate::protocol::http::Response;

    const ME: Member = Member {
        id: Uuid::from_u128(1),
        incarnation: Uuid::from_u128(2),
    };

    /// Starts a server that answers `questions` requests on each connection; returns its entry.
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
                assert!(matches!(asked, ParsedArgs::All(1, 7)));
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
        assert!(matches!(asked, ParsedArgs::All(1, 7)));
        let asked = peers.ask(&[gone], deadline(), &mut || Ok(vec![here]));
        assert!(matches!(asked, ParsedArgs::All(1, 7)));
        let soon = Instant::now() + Duration::from_millis(750);
        let mut looks = 0;
        let asked = peers.ask(&[here, gone], soon, &mut || {
            looks += 1;
            Ok(vec![here, gone])
        });
        // Attempts after 20, 60, 140, 300, 500 and 700 ms, if the machine is not busy.
        assert!(
            (1..=6).contains(&looks),
            "the roster was read {looks} times"
        );
        let ParsedArgs::Some {
            answered,
            members,
            silences,
        } = asked
        else {
            panic!("nobody is there");
        };
        let [PeerError { address, why }] = &silences[..] else {
            panic!("{silences:?}");
        };
        assert_eq!((answered, members, *address), (1, 2, gone.address));
        assert_eq!(why, "Connection refused");
    }
}
