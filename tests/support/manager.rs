//! A service manager in systemd's place: what it is told, and its file descriptor store.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::thread::{self, JoinHandle};

use blockchain_tcpd::handover_state;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use super::{PATIENCE, Scratch};

/// Its socket, which nobody reads unless a method here does.
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
        let filler = UnixDatagram::unbound().expect("a socket");
        filler.set_nonblocking(true).expect("a socket");
        while filler.send_to(b"STATUS=filled", self.path()).is_ok() {}
    }

    /// The lines of the next message. Descriptors that come with it are closed.
    pub fn next(&self) -> Vec<String> {
        let mut message = [0; 4096];
        let length = self.socket.recv(&mut message).expect("a message in time");
        let text = std::str::from_utf8(&message[..length]).expect("ASCII");
        text.lines().map(str::to_string).collect()
    }

    /// Waits for a message with a line that begins so, and returns it.
    pub fn wait_for(&self, line: &str) -> Vec<String> {
        loop {
            let message = self.next();
            if message.iter().any(|told| told.starts_with(line)) {
                return message;
            }
        }
    }

    /// Keeps descriptors until a barrier that comes behind a pack, and returns the pack. Nothing else may be kept by then.
    pub fn keep(&self) -> JoinHandle<OwnedFd> {
        let socket = self.socket.try_clone().expect("a socket");
        thread::spawn(move || {
            let mut store: Vec<(String, OwnedFd)> = Vec::new();
            loop {
                let mut text = [0; 4096];
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
                let mut rights = RecvAncillaryBuffer::new(&mut space);
                let buffers = &mut [IoSliceMut::new(&mut text)];
                let read = recvmsg(&socket, buffers, &mut rights, RecvFlags::CMSG_CLOEXEC);
                let length = read.expect("a message in time").bytes;
                let mut sent = rights.drain().filter_map(|message| match message {
                    RecvAncillaryMessage::ScmRights(mut sent) => sent.next(),
                    _ => None,
                });
                let text = String::from_utf8_lossy(&text[..length]).into_owned();
                let said = |line: &str| text.lines().any(|said| said == line);
                let name = text.lines().find_map(|line| line.strip_prefix("FDNAME="));
                if said("FDSTORE=1") {
                    let sent = sent.next().expect("a descriptor");
                    store.push((name.expect("its name").to_string(), sent));
                } else if said("FDSTOREREMOVE=1") {
                    store.retain(|(kept, _)| Some(&**kept) != name);
                } else if said("BARRIER=1")
                    && store.iter().any(|(name, _)| name == handover_state::NAME)
                {
                    assert_eq!(store.len(), 1, "{store:?}");
                    return store.remove(0).1;
                }
            }
        })
    }
}
