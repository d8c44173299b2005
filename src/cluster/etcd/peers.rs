//! Peer polling: one thread asks all other servers for their number of clients, concurrently, over
//! kept-alive connections.
//!
//! This is a loop around `poll(2)`: blocking requests to up to 127 servers would need as many
//! threads, or wait for each other.
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
use super::peer_request::PeerRequest;
use crate::cluster::{Member, Unavailable};
use crate::waker::poll_until;

/// Pause before failed requests are repeated. It doubles with each attempt, because each attempt
/// reads the membership, and all servers do that for one that refuses.
const MIN_RETRY_PAUSE: Duration = Duration::from_millis(20);

/// Longest pause.
const MAX_RETRY_PAUSE: Duration = Duration::from_millis(200);

/// Time that the membership takes to be read: with less left, a failure to read it says nothing.
const MIN_REFRESH_TIME: Duration = Duration::from_millis(250);

/// Result of a poll.
#[derive(Default)]
pub struct Answers {
    /// Number of servers that answered.
    pub servers: u16,
    /// Sum of their clients.
    pub clients: u64,
    /// Addresses and errors of all other servers.
    pub errors: Vec<(SocketAddr, String)>,
}

/// Kept-alive connections by the incarnation of the server.
#[derive(Default)]
pub struct Peers(HashMap<Uuid, (SocketAddr, TcpStream)>);

impl Peers {
    /// Asks all `peers` until the deadline. Calls `refresh` for the current membership before
    /// failed requests are repeated.
    pub fn poll(
        &mut self,
        peers: &[Entry],
        deadline: Instant,
        refresh: &mut dyn FnMut() -> Result<Vec<Entry>, Unavailable>,
    ) -> Result<Answers, Unavailable> {
        let mut requests: Vec<PeerRequest> = peers.iter().map(|peer| self.start(*peer)).collect();
        let mut pause = MIN_RETRY_PAUSE;
        let mut next = Instant::now() + pause;
        let mut result = Ok(());
        while result.is_ok() && !requests.iter().all(PeerRequest::is_answered) {
            let now = Instant::now();
            if now >= deadline {
                break;
            }
            let any_failed = requests.iter().any(PeerRequest::has_failed);
            if any_failed && now >= next {
                let is_short = now + MIN_REFRESH_TIME > deadline;
                match refresh() {
                    Ok(peers) => self.update(&mut requests, &peers),
                    // The failed requests are the reason.
                    Err(Unavailable::Membership) if is_short => {}
                    Err(error) => result = Err(error),
                }
                pause = (pause * 2).min(MAX_RETRY_PAUSE);
                next = Instant::now() + pause;
            } else {
                let until = if any_failed {
                    next.min(deadline)
                } else {
                    deadline
                };
                wait(&mut requests, until);
            }
        }
        let answers = self.finish(requests);
        result.map(|()| answers)
    }

    /// Returns the `peers` that answer before the deadline, and those that have neither answered
    /// nor failed by then.
    pub fn alive(&mut self, peers: &[Entry], deadline: Instant) -> (Vec<Member>, Vec<Member>) {
        let mut requests: Vec<PeerRequest> = peers.iter().map(|peer| self.start(*peer)).collect();
        let is_open = |request: &PeerRequest| request.polled().is_some();
        while requests.iter().any(is_open) && Instant::now() < deadline {
            wait(&mut requests, deadline);
        }
        let members = |is_meant: &dyn Fn(&PeerRequest) -> bool| {
            let requests = requests.iter().filter(|request| is_meant(request));
            requests.map(|request| request.peer.member).collect()
        };
        (members(&PeerRequest::is_answered), members(&is_open))
    }

    /// Starts a request, over the kept-alive connection if there is one.
    fn start(&mut self, peer: Entry) -> PeerRequest {
        let kept = self.0.remove(&peer.member.incarnation);
        let kept = kept.filter(|(address, _)| *address == peer.address);
        PeerRequest::new(peer, kept.map(|(_, socket)| socket))
    }

    /// Updates the requests for a changed membership: drops those to servers that are gone, starts
    /// those to new ones, and repeats those that failed.
    fn update(&mut self, requests: &mut Vec<PeerRequest>, peers: &[Entry]) {
        let is_same = |request: &PeerRequest, peer: &Entry| {
            (request.peer.member, request.peer.address) == (peer.member, peer.address)
        };
        requests.retain(|request| peers.iter().any(|peer| is_same(request, peer)));
        for peer in peers {
            match requests.iter_mut().find(|request| is_same(request, peer)) {
                Some(request) if request.has_failed() => request.connect(),
                Some(_) => {}
                None => requests.push(self.start(*peer)),
            }
        }
    }

    /// Keeps the connections of servers that have answered, and closes all others: a late answer
    /// would be taken for the answer to the next question.
    fn finish(&mut self, requests: Vec<PeerRequest>) -> Answers {
        self.0.clear();
        let mut answers = Answers::default();
        for request in requests {
            let peer = request.peer;
            let Some(clients) = request.clients else {
                answers.errors.push((peer.address, request.error()));
                continue;
            };
            answers.servers += 1;
            answers.clients = answers.clients.saturating_add(clients);
            if let Some(connection) = request.connection {
                let incarnation = peer.member.incarnation;
                self.0.insert(incarnation, (peer.address, connection));
            }
        }
        answers
    }
}

/// Waits until a request is ready, or until `until`, and advances the ready requests.
fn wait(requests: &mut [PeerRequest], until: Instant) {
    let open = requests.iter().filter_map(PeerRequest::polled);
    let mut polled: Vec<_> = open
        .map(|(socket, events)| PollFd::new(socket, events))
        .collect();
    if poll_until(&mut polled, until).is_err() {
        // An interruption or a lack of memory: both are temporary, and the caller has a deadline.
        std::thread::park_timeout(Duration::from_millis(1));
        return;
    }
    let ready: Vec<bool> = polled.iter().map(|fd| !fd.revents().is_empty()).collect();
    drop(polled);
    let open = requests
        .iter_mut()
        .filter(|request| request.polled().is_some());
    for (request, _) in open.zip(ready).filter(|(_, is_ready)| *is_ready) {
        request.advance();
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

    fn entry(id: u128, address: SocketAddr) -> Entry {
        let id = Uuid::from_u128(id);
        Entry {
            member: Member { id, ..ME },
            address,
            lease: 0,
        }
    }

    /// Starts a server that answers this number of requests on each connection.
    fn server(requests: usize) -> Entry {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for socket in listener.incoming() {
                let mut socket = socket.unwrap();
                for _ in 0..requests {
                    if socket.read(&mut [0; 1024]).unwrap_or(0) == 0 {
                        break;
                    }
                    let reply = Response::text(200, &answer(ME, 7)).encode(false, true);
                    socket.write_all(&reply).unwrap();
                }
            }
        });
        entry(1, address)
    }

    fn poll(
        peers: &mut Peers,
        asked: &[Entry],
        then: &[Entry],
        milliseconds: u64,
    ) -> (Answers, u32) {
        let mut refreshed = 0;
        let deadline = Instant::now() + Duration::from_millis(milliseconds);
        let answers = peers.poll(asked, deadline, &mut || {
            refreshed += 1;
            Ok(then.to_vec())
        });
        (answers.unwrap(), refreshed)
    }

    #[test]
    fn a_closed_kept_alive_connection_is_not_an_error() {
        for requests in 1..3 {
            let (peer, mut peers) = (server(requests), Peers::default());
            for _ in 0..10 {
                let (answers, refreshed) = poll(&mut peers, &[peer], &[peer], 10_000);
                // A connection that is closed at this moment costs another attempt.
                assert_eq!((answers.servers, answers.clients), (1, 7));
                assert!(refreshed <= 1 && answers.errors.is_empty());
            }
        }
    }

    #[test]
    fn the_membership_is_refreshed_while_a_server_refuses() {
        let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr();
        let (gone, here, mut peers) = (entry(9, gone.unwrap()), server(9), Peers::default());
        for asked in [&[gone, here][..], &[gone]] {
            let (answers, _) = poll(&mut peers, asked, &[here], 10_000);
            assert_eq!((answers.servers, answers.clients), (1, 7));
            assert!(answers.errors.is_empty());
        }
        let (answers, refreshed) = poll(&mut peers, &[here, gone], &[here, gone], 750);
        // Attempts after 20, 60, 140, 300, 500 and 700 ms, if the machine is not busy.
        assert!((1..=6).contains(&refreshed), "{refreshed}");
        let error = format!("{}: Connection refused", gone.address);
        assert_eq!(answers.errors, [(gone.address, error)]);
        assert_eq!(answers.servers, 1);
    }

    #[test]
    fn a_membership_that_has_no_time_to_be_read_hides_no_server_that_failed() {
        let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr();
        let (gone, mut peers) = (entry(9, gone.unwrap()), Peers::default());
        for (milliseconds, is_named) in [(200, true), (10_000, false)] {
            let deadline = Instant::now() + Duration::from_millis(milliseconds);
            let mut fails = || Err(Unavailable::Membership);
            let result = peers.poll(&[gone], deadline, &mut fails);
            assert_eq!(result.is_ok_and(|it| it.errors.len() == 1), is_named);
        }
    }
}
