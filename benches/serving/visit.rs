//! One client from its connect to its first reply, without ever blocking.

use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, connect, recv, send,
    socket_with,
};

use crate::target::{Target, check};
use crate::watch::Watch;
use crate::{Result, sys};
use std::net::SocketAddrV4;

/// A client that is on its way to its first reply.
pub struct Visit {
    /// The connection.
    socket: OwnedFd,
    /// Whether the request is on its way.
    asked: bool,
    /// How much of the reply is there.
    received: usize,
}

impl Visit {
    /// Begins to connect, and asks at once if the connection stands already, as it does over loopback.
    pub fn begin(
        target: &Target,
        source: SocketAddrV4,
        watch: &Watch,
        key: usize,
    ) -> Result<Visit> {
        let socket = socket_with(
            AddressFamily::INET,
            SocketType::STREAM,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )?;
        sys::bind_address_no_port(&socket)?;
        bind(&socket, &source)?;
        match connect(&socket, &target.address) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(error) => return Err(format!("a client can't connect: {error}").into()),
        }
        let mut visit = Visit {
            socket,
            asked: false,
            received: 0,
        };
        visit.ask(target)?;
        watch.add(&visit.socket, key, !visit.asked)?;
        Ok(visit)
    }

    /// Does what can be done now; `true` once the whole reply is there.
    pub fn proceed(&mut self, target: &Target) -> Result<bool> {
        if !self.asked {
            self.ask(target)?;
        }
        if !self.asked {
            return Ok(false);
        }
        let expected = &target.dialect.reply[self.received..];
        let mut bytes = [0; 256];
        match recv(&self.socket, &mut bytes, RecvFlags::empty()) {
            Ok((count, _)) => self.received += check(&bytes[..count], expected)?,
            Err(Errno::AGAIN) => {}
            Err(error) => return Err(format!("a client lost its connection: {error}").into()),
        }
        Ok(self.received == target.dialect.reply.len())
    }

    /// The socket of a client that has its reply.
    pub fn into_socket(self) -> OwnedFd {
        self.socket
    }

    /// Sends the request if the connection stands.
    fn ask(&mut self, target: &Target) -> Result<()> {
        let request = target.dialect.request;
        match send(&self.socket, request, SendFlags::NOSIGNAL) {
            Ok(sent) if sent == request.len() => self.asked = true,
            Ok(_) => return Err("a request didn't fit into an empty socket".into()),
            Err(Errno::AGAIN) => {}
            Err(error) => return Err(format!("a client can't connect: {error}").into()),
        }
        Ok(())
    }
}
