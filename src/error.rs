//! Errors that end the daemon, with messages that say what to do, and their exit statuses
//! (sysexits.h).

use std::fmt;
use std::io;
use std::net::SocketAddr;

use shared::text::without_errno;

/// Error that ends the daemon, at start or later, with the operator's message.
/// [`Error::exit_status`] is for the caller of the program.
#[derive(Debug)]
pub enum Error {
    /// The command line is invalid.
    Usage(String),
    /// A setting, or what it names, can't be used.
    Configuration(String),
    /// Another process uses the state directory.
    StateInUse(String),
    /// This machine lacks an address to listen on.
    NoSuchAddress(String),
    /// The system refuses something, or the daemon fails.
    System(String),
}

impl Error {
    /// Creates the error for a failed system call; `action` is a verb and its object.
    pub fn system(action: impl fmt::Display, source: &io::Error) -> Self {
        Error::System(format!("can't {action}: {}", without_errno(source)))
    }

    /// Creates the error for a failed use of the state directory; `action` is a verb and its
    /// object.
    pub fn state(action: impl fmt::Display, source: &io::Error) -> Self {
        let hint = match source.kind() {
            io::ErrorKind::NotFound => "; create the directory first",
            io::ErrorKind::NotADirectory => "; name a directory",
            io::ErrorKind::IsADirectory => "; move the directory of this name elsewhere",
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                "; let this user read and write there, or set --server-id instead of the state directory"
            }
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                "; make room there and start again"
            }
            io::ErrorKind::FileTooLarge => {
                "; raise the limit on the size of files (ulimit -f, LimitFSIZE=)"
            }
            _ => "",
        };
        Error::System(format!("can't {action}: {}{hint}", without_errno(source)))
    }

    /// Creates the error for a failure to listen on `address`.
    pub fn listen(address: SocketAddr, source: &io::Error) -> Self {
        let port = address.port();
        let in_use = format!(
            "; another process has this port (see: ss -ltnp 'sport = :{port}'), or another address of this daemon covers it"
        );
        let hint = match source.kind() {
            io::ErrorKind::AddrInUse => &in_use,
            io::ErrorKind::PermissionDenied => {
                "; ports below 1024 need root or CAP_NET_BIND_SERVICE"
            }
            _ if source.raw_os_error() == Some(libc::EMFILE) => {
                "; raise the limit on open files (ulimit -n, LimitNOFILE=)"
            }
            io::ErrorKind::InvalidInput if address.is_ipv6() => {
                "; a link-local address needs the number of its interface, as in [fe80::1%2]:4242 (see: ip link)"
            }
            io::ErrorKind::AddrNotAvailable => {
                "; no interface of this machine has this address (see: ip address)"
            }
            _ => "",
        };
        let text = format!("can't listen on {address}: {}{hint}", without_errno(source));
        // A machine without IPv6 has no `[::1]`.
        match source.kind() == io::ErrorKind::AddrNotAvailable
            || source.raw_os_error() == Some(libc::EAFNOSUPPORT)
        {
            true => Error::NoSuchAddress(text),
            false => Error::System(text),
        }
    }

    /// Returns the exit status: 64 usage, 71 system error, 78 configuration.
    pub fn exit_status(&self) -> u8 {
        match self {
            Error::Usage(_) => 64,
            Error::NoSuchAddress(_) | Error::System(_) => 71,
            Error::Configuration(_) | Error::StateInUse(_) => 78,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Usage(text)
            | Error::Configuration(text)
            | Error::StateInUse(text)
            | Error::NoSuchAddress(text)
            | Error::System(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for Error {}
