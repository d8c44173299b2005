//! Standard input, output and error as the parent has left them: closed ones are errors, and non-blocking ones are waited for.
//!
//! Whether a descriptor blocks is a matter of its open file description, which other processes share (Node.js and ssh make theirs
//! non-blocking): that is not changed. std takes an output that was closed for one that takes everything.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::stdio::{stderr, stdin, stdout};

use crate::sys::was_closed;

/// Prints this text on standard output, all of it.
pub fn print(text: &str) -> io::Result<()> {
    write_all(stdout(), text.as_bytes())
}

/// Prints this text on standard error. A failure can be reported nowhere.
pub fn print_error(text: &str) {
    let _ = write_all(stderr(), text.as_bytes());
}

/// An error if standard output was closed from the beginning.
pub fn has_output() -> io::Result<()> {
    is_open(stdout())
}

/// Reads what there is of standard input, and waits until there is something. Nothing is its end.
pub fn read(buffer: &mut [u8]) -> io::Result<usize> {
    let input = stdin();
    is_open(input)?;
    loop {
        match rustix::io::read(input, &mut *buffer) {
            Err(Errno::AGAIN) => wait(input, PollFlags::IN)?,
            Err(Errno::INTR) => {}
            read => return Ok(read?),
        }
    }
}

/// Waits until there is something to be read from standard input, its end included.
pub fn wait_for_input() -> io::Result<()> {
    wait(stdin(), PollFlags::IN)
}

fn write_all(output: BorrowedFd<'_>, mut bytes: &[u8]) -> io::Result<()> {
    is_open(output)?;
    while !bytes.is_empty() {
        match rustix::io::write(output, bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(Errno::AGAIN) => wait(output, PollFlags::OUT)?,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn is_open(descriptor: BorrowedFd<'_>) -> io::Result<()> {
    match was_closed(descriptor.as_raw_fd()) {
        true => Err(Errno::BADF.into()),
        false => Ok(()),
    }
}

/// Waits until this is ready, or will never be, which the next call tells.
fn wait(descriptor: BorrowedFd<'_>, ready: PollFlags) -> io::Result<()> {
    loop {
        match poll(&mut [PollFd::new(&descriptor, ready)], None) {
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
