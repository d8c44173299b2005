//! System calls that need unsafe code, the only ones in this crate: signals, among them the one
//! that interrupts a thread blocked in a system call, sockets that systemd passes, and inherited
//! process state.
//!
//! A signal whose handler was installed without `SA_RESTART` makes the interrupted system call fail
//! with `EINTR` (signal(7), "Interruption of system calls and library functions by signal
//! handlers"). This costs a blocked thread nothing until it happens; polling before each read, or a
//! time-out on it, would cost every request. The signal is `SIGURG`: it is ignored by default, so a
//! stray one is harmless, and nobody sends it by hand.
#![allow(unsafe_code)]

use std::ffi::{CStr, OsStr, OsString};
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU8, Ordering};

use log::warn;
use rustix::net::sockopt;
use rustix::thread::Pid;

/// Bit set of the descriptors 0, 1 and 2 that were closed when the process began.
static CLOSED: AtomicU8 = AtomicU8::new(0);

/// Records the closed descriptors before std's start-up code opens /dev/null in place of each.
extern "C" fn record_closed() {
    for number in 0..3 {
        // SAFETY: fcntl takes integers; it fails only for a number that is not an open descriptor.
        if unsafe { libc::fcntl(number, libc::F_GETFD) } == -1 {
            CLOSED.fetch_or(1 << number, Ordering::Relaxed);
        }
    }
}

/// Function that the dynamic linker, or the start-up code of the C library, calls before `main`.
#[used]
// SAFETY: the section holds pointers to functions that may ignore their arguments; this one uses
// nothing of std's that has to be initialized.
#[unsafe(link_section = ".init_array")]
static BEFORE_MAIN: extern "C" fn() = record_closed;

/// Returns whether standard input (0), output (1) or error (2) was closed when the process began.
pub fn was_closed(number: RawFd) -> bool {
    CLOSED.load(Ordering::Relaxed) & 1 << number != 0
}

/// Empty signal handler: running it interrupts the system call.
extern "C" fn interrupted(_signal: libc::c_int) {}

/// Enables [`interrupt`] for the calling thread and those that it starts from now on.
pub fn allow_interrupts() -> io::Result<()> {
    let handler: extern "C" fn(libc::c_int) = interrupted;
    // SAFETY: all zeroes are a valid sigaction and a valid sigset_t; every pointer is to a live
    // local; the handler accesses nothing, so it may run at any point of any thread.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as libc::sighandler_t;
        action.sa_flags = 0; // without SA_RESTART
        if libc::sigaction(libc::SIGURG, &action, std::ptr::null_mut()) != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    unblock_signals(&[libc::SIGURG])
}

/// Unblocks these signals for the calling thread and those that it starts from now on. A process
/// inherits blocked signals from its parent (sigprocmask(2)).
pub fn unblock_signals(signals: &[libc::c_int]) -> io::Result<()> {
    mask(libc::SIG_UNBLOCK, signals)
}

/// Blocks these signals for the calling thread and those that it starts from now on. A signal that
/// every thread blocks stays pending, even in the program that replaces this one (execve(2)).
pub fn block_signals(signals: &[libc::c_int]) -> io::Result<()> {
    mask(libc::SIG_BLOCK, signals)
}

fn mask(how: libc::c_int, signals: &[libc::c_int]) -> io::Result<()> {
    // SAFETY: all zeroes are a valid sigset_t, and every pointer is to a live local.
    unsafe {
        let mut mask: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut mask);
        for signal in signals {
            libc::sigaddset(&mut mask, *signal);
        }
        match libc::pthread_sigmask(how, &mask, std::ptr::null_mut()) {
            0 => Ok(()),
            code => Err(io::Error::from_raw_os_error(code)),
        }
    }
}

/// Restores the default action of this signal. A program inherits ignored signals from its parent
/// (execve(2)).
pub fn reset_signal(signal: libc::c_int) -> io::Result<()> {
    // SAFETY: it takes two integers; SIG_DFL is not a function of this crate.
    match unsafe { libc::signal(signal, libc::SIG_DFL) } {
        libc::SIG_ERR => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Cancels inherited timers (execve(2)), whose signals would end the process. Returns whether one
/// was running. If a sandbox forbids this, they continue.
pub fn cancel_timers() -> bool {
    let mut running = false;
    for timer in [libc::ITIMER_REAL, libc::ITIMER_VIRTUAL, libc::ITIMER_PROF] {
        // SAFETY: all zeroes are a valid itimerval, and both pointers are to live locals.
        unsafe {
            let never: libc::itimerval = std::mem::zeroed();
            let mut before = never;
            let cancelled = libc::setitimer(timer, &never, &mut before) == 0;
            let left = (before.it_value.tv_sec, before.it_value.tv_usec);
            running |= cancelled && left != (0, 0);
        }
    }
    running
}

/// Binds a TCP socket to this port of all IPv6 addresses and leaves the IPv4 addresses to another
/// socket (IPV6_V6ONLY), which std can't do. Calls libc, as std does, so that tools that wrap its
/// functions (authbind, mptcpize) work.
pub fn bind_ipv6_only(port: u16) -> io::Result<TcpListener> {
    // SAFETY: these calls take integers, and a pointer to a live local with its size; all zeroes
    // are a valid sockaddr_in6, the unspecified address. The descriptor is new and has no other
    // owner.
    unsafe {
        let number = libc::socket(libc::AF_INET6, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0);
        if number < 0 {
            return Err(io::Error::last_os_error());
        }
        let socket = TcpListener::from_raw_fd(number);
        sockopt::set_socket_reuseaddr(&socket, true)?;
        sockopt::set_ipv6_v6only(&socket, true)?;
        let mut address: libc::sockaddr_in6 = std::mem::zeroed();
        address.sin6_family = libc::AF_INET6 as libc::sa_family_t;
        address.sin6_port = port.to_be();
        let size = size_of::<libc::sockaddr_in6>() as libc::socklen_t;
        match libc::bind(number, (&raw const address).cast(), size) {
            0 => Ok(socket),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// Returns the value of this environment variable and removes it. Call it before any thread starts.
fn take_variable(name: &str) -> Option<String> {
    let value = std::env::var_os(name);
    // SAFETY: no other thread exists that could read the environment.
    unsafe { std::env::remove_var(name) };
    Some(value?.to_string_lossy().into_owned())
}

/// Sets close-on-exec for this descriptor. Returns false for descriptors 0 to 2 and those that are
/// not open.
fn close_on_exec(number: RawFd) -> bool {
    // SAFETY: fcntl takes integers.
    number > 2 && unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } == 0
}

/// Returns the sockets that systemd passes (sd_listen_fds(3)), with their names. Treats an invalid
/// variable as unset and logs it. Removes all LISTEN_ variables. Call it once, before any thread
/// starts.
pub fn passed_sockets() -> Vec<(OwnedFd, String)> {
    let [process, number, names] =
        ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"].map(take_variable);
    let process = OsString::from(process.unwrap_or_default());
    // Variables that were inherited from another process are meaningless here.
    if process_id("LISTEN_PID", &process) != Some(std::process::id()) {
        return Vec::new();
    }
    let Some(number) = number.filter(|number| !number.is_empty()) else {
        return Vec::new();
    };
    let last = number.parse().ok().map(|n: u16| RawFd::from(n) + 3);
    let Some(last) = last.filter(|last| (3..*last).all(close_on_exec)) else {
        warn!(value:? = number; "LISTEN_FDS counts as unset: it is not a number of descriptors that are open here");
        return Vec::new();
    };
    // SAFETY: they are open for this process (LISTEN_PID says so) and have no other owner here.
    let sockets = (3..last).map(|number| unsafe { OwnedFd::from_raw_fd(number) });
    let sockets: Vec<OwnedFd> = sockets.collect();
    let mut all: Vec<String> = match &names {
        Some(names) => names.split(':').map(str::to_string).collect(),
        None => Vec::new(),
    };
    if all.len() != sockets.len() {
        if !sockets.is_empty() && names.is_some_and(|names| !names.is_empty()) {
            warn!(sockets = sockets.len(); "LISTEN_FDNAMES counts as unset: it does not have a name for each socket");
        }
        all = vec!["unknown".to_string(); sockets.len()];
    }
    sockets.into_iter().zip(all).collect()
}

/// Returns the process id in the `value` of a variable, if it is one. Logs a value that is not.
pub fn process_id(variable: &str, value: &OsStr) -> Option<u32> {
    let id = value.to_str().and_then(|value| value.parse().ok());
    let id = id.filter(|id| *id != 0);
    if id.is_none() && !value.is_empty() {
        warn!(value:? = value; "{variable} counts as unset: it is not the id of a process");
    }
    id
}

/// Returns the descriptor whose number is in this variable, and removes the variable. Call it once,
/// before any thread starts.
pub fn passed_descriptor(variable: &str) -> Option<OwnedFd> {
    let number: RawFd = take_variable(variable)?.parse().ok()?;
    // SAFETY: it is open, and has no owner yet: the program that this one replaced left it.
    close_on_exec(number).then(|| unsafe { OwnedFd::from_raw_fd(number) })
}

/// Connects an AF_VSOCK `socket`; rustix has no addresses for this family (vsock(7)).
pub fn connect_vsock(socket: BorrowedFd<'_>, cid: u32, port: u32) -> io::Result<()> {
    // SAFETY: all zeroes are a valid sockaddr_vm; the pointer is to a live local of this size.
    let connected = unsafe {
        let mut address: libc::sockaddr_vm = std::mem::zeroed();
        address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
        address.svm_cid = cid;
        address.svm_port = port;
        let size = size_of_val(&address) as libc::socklen_t;
        libc::connect(socket.as_raw_fd(), (&raw const address).cast(), size)
    };
    match connected {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Returns the path by which this program was executed (AT_EXECFN in getauxval(3)), or an empty
/// path if it is unknown. Without /proc, older kernels tell it only to libc.
pub fn executed_path() -> PathBuf {
    // SAFETY: it takes an integer. The result for this one is null or a string that lives as long
    // as the process.
    let path = unsafe {
        let path = libc::getauxval(libc::AT_EXECFN) as *const libc::c_char;
        match path.is_null() {
            true => return PathBuf::new(),
            false => CStr::from_ptr(path),
        }
    };
    PathBuf::from(OsStr::from_bytes(path.to_bytes()))
}

/// Restricts glibc to one malloc arena (mallopt(3), M_ARENA_MAX). By default it reserves 64 MiB of
/// address space for each of up to eight threads per core, and where that is limited, thread stacks
/// would lack it. Other C libraries do not reserve arenas.
pub fn allocate_from_one_arena() {
    // SAFETY: it takes two integers. On failure, nothing has changed.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Ignores SIGPIPE, as std does at the start: a write to a pipe or socket without a reader then
/// fails instead of ending the process.
pub fn ignore_broken_pipes() {
    // SAFETY: it takes two integers; SIG_IGN is not a function of this crate.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_IGN);
    }
}

/// Interrupts the system call in which `thread` of this process is blocked.
///
/// A thread that has not entered the call yet is missed: a caller that must be sure repeats this
/// until it sees an effect. For a thread that has ended, nothing happens.
pub fn interrupt(thread: Pid) {
    // SAFETY: tgkill takes three integers and accesses no memory; it reaches only threads of this
    // process, all of which handle the signal or ignore it.
    unsafe {
        libc::syscall(
            libc::SYS_tgkill,
            rustix::process::getpid().as_raw_nonzero().get(),
            thread.as_raw_nonzero().get(),
            libc::SIGURG,
        );
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_blocked_read_is_interrupted_and_nothing_is_lost() {
        allow_interrupts().unwrap();
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let (tid, tids) = mpsc::channel();
        let blocked = std::thread::spawn(move || {
            tid.send(rustix::thread::gettid()).unwrap();
            let first = rustix::io::read(reader.as_fd(), &mut [0u8; 8]);
            (first, reader)
        });
        let thread = tids.recv().unwrap();
        while !blocked.is_finished() {
            interrupt(thread);
            std::thread::yield_now();
        }
        let (first, reader) = blocked.join().unwrap();
        assert_eq!(first, Err(rustix::io::Errno::INTR));
        rustix::io::write(&writer, b"later").unwrap();
        let mut buffer = [0u8; 8];
        assert_eq!(rustix::io::read(&reader, &mut buffer), Ok(5));
    }
}
