//! A service manager in systemd's place: the messages that it gets, and its file descriptor store.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use blockchain_tcpd::handover::state;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use super::{PATIENCE, Scratch};

/// Its socket, which is not read unless a method here does.
pub struct Manager {
    pub socket: UnixDatagram,
    scratch: Scratch,
}

impl Manager {
    pub fn new() -> Self {
        let scratch = Scratch::new();
        let socket = UnixDatagram::bind(scratch.path().join("notify")).expect("a socket");
        socket.set_read_timeout(Some(PATIENCE)).expect("a socket");
        Manager { socket, scratch }
    }

    /// What NOTIFY_SOCKET is to be.
    pub fn path(&self) -> PathBuf {
        self.scratch.path().join("notify")
    }

    /// Leaves no room in the queue of its socket.
    pub fn fill(&self) {
        fill(&self.path());
    }

    /// The lines of the next message. Descriptors that come with it are closed.
    pub fn next(&self) -> Vec<String> {
        let mut message = [0; 4096];
        let length = self.socket.recv(&mut message).expect("a message in time");
        let text = String::from_utf8_lossy(&message[..length]);
        text.lines().map(str::to_string).collect()
    }

    /// Waits for a message with a line that begins so, and returns it.
    pub fn wait_for(&self, line: &str) -> Vec<String> {
        loop {
            let message = self.next();
            if message.iter().any(|said| said.starts_with(line)) {
                return message;
            }
        }
    }

    /// Keeps descriptors until a barrier that comes behind a handover state, and returns that if it is kept. Nothing else may be
    /// kept by then.
    pub fn store(&self, fate: Fate) -> JoinHandle<Option<OwnedFd>> {
        let (socket, path) = (self.socket.try_clone().expect("a socket"), self.path());
        thread::spawn(move || {
            let mut store: Vec<(String, OwnedFd)> = Vec::new();
            let mut has_state = false;
            loop {
                let (text, sent) = receive(&socket).expect("a message in time");
                let said = |line: &str| text.lines().any(|said| said == line);
                let name = text.lines().find_map(|line| line.strip_prefix("FDNAME="));
                if said("FDSTORE=1") {
                    let sent = sent.expect("a descriptor");
                    let is_state = name == Some(state::NAME);
                    has_state |= is_state;
                    if !is_state || fate == Fate::Kept {
                        store.push((name.expect("its name").to_string(), sent));
                    }
                } else if said("FDSTOREREMOVE=1") {
                    store.retain(|(kept, _)| Some(&**kept) != name);
                    if fate == Fate::Unread {
                        return None;
                    }
                } else if said("BARRIER=1") && has_state {
                    assert!(store.len() <= 1, "{store:?}");
                    return store.pop().map(|(_, state)| state);
                } else if said("BARRIER=1") && fate == Fate::NoRoom {
                    // The barrier is closed behind it, and the probe never.
                    fill(&path);
                    socket.recv(&mut [0; 64]).expect("a filler");
                    std::mem::forget(store);
                    return None;
                }
            }
        })
    }
}

/// Keeps no descriptors, and closes them some time after the next barrier, as systemd may since version 254. Ends when
/// nothing comes any more.
pub fn close_late(socket: &UnixDatagram) {
    let mut refused = Vec::new();
    while let Ok((text, sent)) = receive(socket) {
        if text.starts_with("BARRIER=1") {
            drop(sent);
            // Another process of systemd's closes it; this is how late it is.
            thread::sleep(Duration::from_millis(50));
            refused.clear();
        } else {
            refused.extend(sent);
        }
    }
}

/// The next message, with the descriptor that comes with it.
fn receive(socket: &UnixDatagram) -> rustix::io::Result<(String, Option<OwnedFd>)> {
    let mut text = [0; 4096];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut rights = RecvAncillaryBuffer::new(&mut space);
    let buffers = &mut [IoSliceMut::new(&mut text)];
    let read = recvmsg(socket, buffers, &mut rights, RecvFlags::CMSG_CLOEXEC)?;
    let mut sent = rights.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut sent) => sent.next(),
        _ => None,
    });
    let text = String::from_utf8_lossy(&text[..read.bytes]).into_owned();
    Ok((text, sent.next()))
}

/// What becomes of a handover state that is to be stored. A probe is always kept.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It is kept.
    Kept,
    /// It is closed at once.
    Closed,
    /// There is no room for it in the queue of the socket, which is not read any more.
    NoRoom,
    /// It is not read.
    Unread,
}

/// Leaves no room in the queue of this socket.
fn fill(path: &Path) {
    let filler = UnixDatagram::unbound().expect("a socket");
    filler.set_nonblocking(true).expect("a socket");
    while filler.send_to(b"STATUS=filled", path).is_ok() {}
}
