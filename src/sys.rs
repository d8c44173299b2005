//! The one room for unsafe code: signals, above all the one that wakes a thread which is blocked in a system
//! call; what systemd passes, and what other parents leave behind.
//!
//! A signal whose handler was installed without `SA_RESTART` makes the call that it interrupts fail with `EINTR`
//! (signal(7), "Interruption of system calls and library functions by signal handlers"). That costs a blocked thread
//! nothing until it happens, where polling before each read, or a time-out on it, would cost every request.
//! The signal is `SIGURG`: by default it is ignored, so a stray one does no harm, and nobody sends it by hand.
#![allow(unsafe_code)]

use std::ffi::{CStr, OsStr};
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU8, Ordering};

use log::warn;
use rustix::net::sockopt;
use rustix::thread::Pid;

/// Which of the descriptors 0, 1 and 2 were closed when the process began, a bit each.
static CLOSED: AtomicU8 = AtomicU8::new(0);

/// Looks before std's start, which opens /dev/null in the place of each that is closed.
extern "C" fn look_for_closed() {
    for number in 0..3 {
        // SAFETY: fcntl takes integers; it fails for a number that is no open descriptor, and for nothing else.
        if unsafe { libc::fcntl(number, libc::F_GETFD) } == -1 {
            CLOSED.fetch_or(1 << number, Ordering::Relaxed);
        }
    }
}

/// The functions that the dynamic linker, or the start-up code of the C library, calls before `main`.
#[used]
// SAFETY: the section holds pointers to such functions, which may ignore the arguments; this one needs nothing of std's that has
// to be started.
#[unsafe(link_section = ".init_array")]
static BEFORE_MAIN: extern "C" fn() = look_for_closed;

/// Whether standard input (0), output (1) or error (2) was closed when the process began.
pub fn was_closed(number: RawFd) -> bool {
    CLOSED.load(Ordering::Relaxed) & 1 << number != 0
}

/// Does nothing: that it ran is what interrupts the system call.
extern "C" fn interrupted(_signal: libc::c_int) {}

/// Makes [`interrupt`] work, for the calling thread and those that it starts from now on.
pub fn allow_interrupts() -> io::Result<()> {
    let handler: extern "C" fn(libc::c_int) = interrupted;
    // SAFETY: all zeroes are a valid sigaction and a valid sigset_t; every pointer is to a live local; the handler
    // touches nothing, so that it may run at any point of any thread.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as libc::sighandler_t;
        action.sa_flags = 0; // above all, no SA_RESTART
        if libc::sigaction(libc::SIGURG, &action, std::ptr::null_mut()) != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    unblock(&[libc::SIGURG])
}

/// Lets these signals reach the calling thread, and the threads that it starts from now on: whoever started the process
/// may have blocked them, and a process inherits that (sigprocmask(2)).
pub fn unblock(signals: &[libc::c_int]) -> io::Result<()> {
    mask(libc::SIG_UNBLOCK, signals)
}

/// Keeps these signals from the calling thread, and the threads that it starts from now on. One that no thread may take
/// waits, and goes on waiting in the program that replaces this one (execve(2)).
pub fn block(signals: &[libc::c_int]) -> io::Result<()> {
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

/// Gives this signal back its default, which the parent may have changed to being ignored: a program inherits that
/// (execve(2)).
pub fn reset(signal: libc::c_int) -> io::Result<()> {
    // SAFETY: it takes two integers; SIG_DFL is no function of ours.
    match unsafe { libc::signal(signal, libc::SIG_DFL) } {
        libc::SIG_ERR => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Cancels the timers that a program inherits (execve(2)), whose signals would end it, and says whether one was running. A
/// sandbox may forbid it; then they go on.
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

/// A socket for this port of all IPv6 addresses, which leaves those of IPv4 to another (IPV6_V6ONLY). std can't make one. By way
/// of libc as std's, so that tools which wrap its functions (authbind, mptcpize) work.
pub fn bind_ipv6_only(port: u16) -> io::Result<TcpListener> {
    // SAFETY: these calls take integers, and a pointer to a live local with its size; all zeroes are a valid sockaddr_in6,
    // the unspecified address. The descriptor is new, and nobody else knows it.
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

/// The value of this variable, which is not left behind. Call it before any thread starts.
fn take_variable(name: &str) -> Option<String> {
    let value = std::env::var_os(name);
    // SAFETY: no other thread reads the environment, because there is none.
    unsafe { std::env::remove_var(name) };
    Some(value?.to_string_lossy().into_owned())
}

/// Sets close-on-exec for the descriptor of this number. It fails if none is open.
fn close_on_exec(number: RawFd) -> bool {
    // SAFETY: fcntl takes integers.
    number > 2 && unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } == 0
}

/// The sockets that systemd passes (sd_listen_fds(3)), with their names. A variable that makes no sense counts as unset, and the
/// log says so. No LISTEN_ variable is left behind. Call it once, before any thread starts.
pub fn passed_sockets() -> Vec<(OwnedFd, String)> {
    let [process, number, names] =
        ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"].map(take_variable);
    // Of another process, which has left them to its children, they mean nothing.
    if process != Some(std::process::id().to_string()) {
        return Vec::new();
    }
    let Some(number) = number.filter(|number| !number.is_empty()) else {
        return Vec::new();
    };
    let last = number
        .parse()
        .ok()
        .and_then(|n: u16| RawFd::from(n).checked_add(3));
    let Some(last) = last.filter(|last| (3..*last).all(close_on_exec)) else {
        warn!(value:? = number; "LISTEN_FDS counts as unset: it is not a number of descriptors that are open here");
        return Vec::new();
    };
    // SAFETY: they are open for this process (LISTEN_PID says so), and nobody else here knows them.
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

/// The descriptor whose number is in this variable, which is not left behind. Call it once, before any thread starts.
pub fn passed_descriptor(variable: &str) -> Option<OwnedFd> {
    let number: RawFd = take_variable(variable)?.parse().ok()?;
    // SAFETY: it is open, and nobody here knows it yet: the program that ran before in this process left it.
    close_on_exec(number).then(|| unsafe { OwnedFd::from_raw_fd(number) })
}

/// Connects `socket`, of the family AF_VSOCK, which rustix has no addresses for (vsock(7)).
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

/// The path by which this program was executed (AT_EXECFN in getauxval(3)), empty if that is unknown. Where there is no /proc,
/// older kernels tell it to libc alone.
pub fn executed_path() -> PathBuf {
    // SAFETY: it takes an integer. What comes for this one is null or a string that lives as long as the process.
    let path = unsafe {
        let path = libc::getauxval(libc::AT_EXECFN) as *const libc::c_char;
        match path.is_null() {
            true => return PathBuf::new(),
            false => CStr::from_ptr(path),
        }
    };
    PathBuf::from(OsStr::from_bytes(path.to_bytes()))
}

/// Keeps glibc from reserving 64 MiB of address space for each of up to eight threads a core (mallopt(3), M_ARENA_MAX).
/// Where that is scarce, they would take it from the threads' stacks. Other C libraries don't do so.
pub fn allocate_from_one_arena() {
    // SAFETY: it takes two integers. If it fails, nothing has changed.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Makes a write to a pipe or socket that nobody reads an error instead of the end of the process, as std does at the start.
pub fn ignore_broken_pipes() {
    // SAFETY: it takes two integers; SIG_IGN is no function of ours.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_IGN);
    }
}

/// Interrupts what `thread` of this process is blocked in.
///
/// A thread that has not entered the call yet is missed: whoever must be sure tries again until he sees an effect.
/// A thread that has ended meanwhile is none of this function's business: nothing happens.
pub fn interrupt(thread: Pid) {
    // SAFETY: tgkill takes three integers and looks at no memory; it reaches threads of this process alone, all of
    // which are ready for the signal or ignore it.
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
