//! The one room for unsafe code: signals, above all the one that wakes a thread which is blocked in a system
//! call; and what systemd passes.
//!
//! A signal whose handler was installed without `SA_RESTART` makes the call that it interrupts fail with `EINTR`
//! (signal(7), "Interruption of system calls and library functions by signal handlers"). That costs a blocked thread
//! nothing until it happens, where polling before each read, or a time-out on it, would cost every request.
//! The signal is `SIGURG`: by default it is ignored, so a stray one does no harm, and nobody sends it by hand.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{FromRawFd as _, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU8, Ordering};

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

/// The sockets that systemd passes (sd_listen_fds(3)), with their names. No LISTEN_ variable is left behind. Call it once,
/// before any thread starts.
pub fn passed_sockets() -> io::Result<Vec<(OwnedFd, String)>> {
    // SAFETY: no other thread reads the environment, because there is none.
    let passed = unsafe { sd_notify::listen_fds_with_names_and_unset_env() }?;
    Ok(passed
        // SAFETY: they were opened for this process (LISTEN_PID says so, and setting close-on-exec succeeded), and nobody
        // else here knows them.
        .map(|(number, name)| (unsafe { OwnedFd::from_raw_fd(number) }, name))
        .collect())
}

/// The descriptor whose number is in this variable, which is not left behind. Call it once, before any thread starts.
pub fn passed_descriptor(variable: &str) -> Option<OwnedFd> {
    let number = std::env::var(variable).ok();
    // SAFETY: no other thread reads the environment, because there is none.
    unsafe { std::env::remove_var(variable) };
    let number: std::os::fd::RawFd = number?.parse().ok()?;
    // SAFETY: fcntl takes integers; it fails for a number that is no open descriptor, and no child gets this one.
    if number < 3 || unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } != 0 {
        return None;
    }
    // SAFETY: it is open, and nobody here knows it yet: the program that ran before in this process left it.
    Some(unsafe { OwnedFd::from_raw_fd(number) })
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
