//! Standard input, output and error with the settings of the parent process: closed descriptors are
//! errors, and non-blocking ones are polled.
//!
//! The open file description determines whether a descriptor blocks, and other processes share it
//! (Node.js and ssh make theirs non-blocking), so it is left unchanged. std, in contrast, treats a
//! closed output as one that accepts everything.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::{Errno, retry_on_intr};
use rustix::stdio::{stderr, stdin, stdout};

use crate::sys::was_closed;

/// Writes all of `text` to standard output.
pub fn print(text: &str) -> io::Result<()> {
    write_all(stdout(), text.as_bytes())
}

/// Writes `text` to standard error. A failure can't be reported anywhere.
pub fn print_error(text: &str) {
    let _ = write_all(stderr(), text.as_bytes());
}

/// Fails if standard output was closed when the process began.
pub fn has_output() -> io::Result<()> {
    is_open(stdout())
}

/// Reads from standard input; waits until there is data. Returns 0 at the end of the input.
pub fn read(buffer: &mut [u8]) -> io::Result<usize> {
    let input = stdin();
    is_open(input)?;
    loop {
        match retry_on_intr(|| rustix::io::read(input, &mut *buffer)) {
            Err(Errno::AGAIN) => wait(input, PollFlags::IN)?,
            read => return Ok(read?),
        }
    }
}

/// Waits until standard input has data or has ended.
pub fn wait_for_input() -> io::Result<()> {
    wait(stdin(), PollFlags::IN)
}

fn write_all(output: BorrowedFd<'_>, mut bytes: &[u8]) -> io::Result<()> {
    is_open(output)?;
    while !bytes.is_empty() {
        match retry_on_intr(|| rustix::io::write(output, bytes)) {
            Ok(written) => bytes = &bytes[written..],
            Err(Errno::AGAIN) => wait(output, PollFlags::OUT)?,
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

/// Waits until the descriptor is ready or has failed, which the next call reports.
fn wait(descriptor: BorrowedFd<'_>, ready: PollFlags) -> io::Result<()> {
    retry_on_intr(|| poll(&mut [PollFd::new(&descriptor, ready)], None))?;
    Ok(())
}
