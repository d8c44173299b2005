//! Errors that end the daemon, with messages that say what to do, and their exit statuses
//! (sysexits.h).

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use shared::text::without_errno;

/// Error that ends the daemon, at start or later. `Display` is the operator's message;
/// [`Error::exit_status`] is for the caller of the program.
#[derive(Debug)]
pub enum Error {
    /// The command line is invalid. The text is the whole message.
    Usage(String),
    /// An environment variable is invalid. The text is the whole message.
    Variable(String),
    /// The cluster options are invalid. The text is the whole message.
    Cluster(String),
    /// The sockets that systemd passes are invalid here. The text is the whole message.
    Passed(String),
    /// Listening on an address fails.
    Listen {
        /// Requested address.
        address: SocketAddr,
        /// System error.
        source: io::Error,
    },
    /// A listening socket has failed for good.
    Accept {
        /// Its address.
        address: SocketAddr,
        /// System error.
        source: io::Error,
    },
    /// The front is gone, which only a panic can cause.
    FrontGone,
    /// `--max-clients` needs more threads than the system grants.
    Threads {
        /// Number of clients that were requested.
        asked: usize,
        /// Number of clients that there is room for.
        room: usize,
        /// The limit: its name and value, and which settings change it.
        limit: String,
    },
    /// The system refuses to start the worker threads, although its limits allow them.
    Spawn(String),
    /// The limit on descriptors leaves no room for a client.
    Descriptors {
        /// The limit.
        limit: u64,
    },
    /// The id file does not hold an id.
    IdDamaged {
        /// Path of the file.
        path: PathBuf,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The preflight check fails: the program that runs it uses another version of the handover
    /// state.
    HandoverVersion {
        /// That version.
        version: String,
    },
    /// Another process uses the state directory.
    StateInUse {
        /// Path of the directory.
        directory: PathBuf,
    },
    /// Locking the state directory, against other processes, fails.
    StateLock {
        /// Path of the directory.
        directory: PathBuf,
        /// System error.
        source: io::Error,
    },
    /// The state directory can't be used.
    State {
        /// Action that failed: a verb and its object.
        action: String,
        /// System error.
        source: io::Error,
    },
    /// Printing the requested text fails.
    Print(io::Error),
    /// Another system call fails, which the system usually grants.
    System {
        /// Action that failed: a verb and its object.
        action: &'static str,
        /// System error.
        source: io::Error,
    },
}

impl Error {
    /// Returns the exit status: 64 usage, 71 system error, 78 configuration.
    pub fn exit_status(&self) -> u8 {
        match self {
            Error::Usage(_) => 64,
            Error::Listen { .. }
            | Error::Accept { .. }
            | Error::FrontGone
            | Error::Threads { .. }
            | Error::Spawn(_)
            | Error::Descriptors { .. }
            | Error::StateLock { .. }
            | Error::State { .. }
            | Error::Print(_)
            | Error::System { .. } => 71,
            Error::Variable(_)
            | Error::Cluster(_)
            | Error::Passed(_)
            | Error::IdDamaged { .. }
            | Error::HandoverVersion { .. }
            | Error::StateInUse { .. } => 78,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Usage(text)
            | Error::Variable(text)
            | Error::Cluster(text)
            | Error::Passed(text) => f.write_str(text),
            Error::Listen { address, source } => {
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
                let why = without_errno(source);
                write!(f, "can't listen on {address}: {why}{hint}")
            }
            Error::Accept { address, source } => write!(
                f,
                "can't accept clients on {address} any more: {}",
                without_errno(source)
            ),
            Error::FrontGone => {
                f.write_str("nothing accepts clients any more; the log above says why")
            }
            Error::Threads { asked, room, limit } => write!(
                f,
                "--max-clients {asked} needs a thread for each client, and there is room for {room}: {limit}; \
                 raise that limit or lower --max-clients"
            ),
            Error::Spawn(reason) => write!(
                f,
                "can't start the worker threads: {reason}; lower --max-clients or raise the limit on threads \
                 (ulimit -u, TasksMax=)"
            ),
            Error::Descriptors { limit } => write!(
                f,
                "the limit of {limit} open files leaves no room for clients; raise it (ulimit -n, LimitNOFILE=)"
            ),
            Error::IdDamaged { path, problem } => write!(
                f,
                "the server's id in {} is damaged: {problem}; write the right id into it, or remove it to \
                 get a new one",
                path.display()
            ),
            Error::HandoverVersion { version } => write!(
                f,
                "the running program uses version {version} of the handover state, and this one reads another; \
                 restart the service instead, which closes the clients"
            ),
            Error::StateInUse { directory } => write!(
                f,
                "the state directory {} is used by another process; give each server its own --state-directory",
                directory.display()
            ),
            Error::StateLock { directory, source } => write!(
                f,
                "can't lock the state directory {}: {}; if its file system has no locks, choose a directory on a local disk, or set \
                 --server-id instead of the state directory",
                directory.display(),
                without_errno(source)
            ),
            Error::State { action, source } => {
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
                write!(f, "can't {action}: {}{hint}", without_errno(source))
            }
            Error::Print(source) => write!(
                f,
                "can't write to standard output: {}",
                without_errno(source)
            ),
            Error::System { action, source } => {
                write!(f, "can't {action}: {}", without_errno(source))
            }
        }
    }
}

impl std::error::Error for Error {}
