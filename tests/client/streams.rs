//! Standard streams that do not block, as another program may leave them: the client waits for them.

use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::process::Stdio;

use super::{client, ran};
use crate::support::{Daemon, wait_until};

#[test]
fn a_standard_error_that_does_not_block_is_waited_for() {
    let daemon = Daemon::start(["--max-clients", "4"]);
    let (mut reader, mut writer) = std::io::pipe().expect("a pipe");
    rustix::io::ioctl_fionbio(&writer, true).expect("a flag");
    let mut full = 0;
    while let Ok(written) = writer.write(&[b'x'; 4096]) {
        full += written;
    }
    let mut command = client();
    command.args(["-s", &daemon.address.to_string(), "foo"]);
    let mut child = command.stderr(writer).spawn().expect("it starts");
    drop(command);
    let stat = format!("/proc/{}/stat", child.id());
    // It has asked, and either waits or has given up.
    wait_until("it sleeps or has ended", || {
        let stat = std::fs::read_to_string(&stat).unwrap_or_default();
        daemon.ask("WHO\n") == "1\n"
            && (stat.is_empty() || stat.contains(") S ") || stat.contains(") Z "))
    });
    let mut all = String::new();
    reader.read_to_string(&mut all).expect("ASCII");
    let said = "ERR UNKNOWN no such command: \"foo\" (try HELP)\n";
    assert_eq!(&all[full..], said);
    assert_eq!(child.wait().expect("it ends").code(), Some(1));
}

#[test]
fn an_output_and_an_input_that_do_not_block_are_waited_for() {
    /// The size of the pipe, and of an id with its line end.
    const PAGE: usize = 4096;
    const REPLY: usize = 37;
    let daemon = Daemon::start(["--max-clients", "4"]);
    let lines = 5000;
    let (mut reader, writer) = std::io::pipe().expect("a pipe");
    rustix::pipe::fcntl_setpipe_size(&writer, PAGE).expect("a size");
    let (input, mut keyboard) = std::io::pipe().expect("a pipe");
    for end in [writer.as_fd(), input.as_fd()] {
        rustix::io::ioctl_fionbio(end, true).expect("a flag");
    }
    let mut command = client();
    command.args(["connect", &daemon.address.to_string()]);
    command.stdin(input).stdout(writer).stderr(Stdio::piped());
    let mut child = command.spawn().expect("it starts");
    drop(command);
    // It waits for input now.
    daemon.wait_for_others(1);
    let writing = std::thread::spawn(move || {
        // It may have gone.
        let _ = keyboard.write_all("WHERE\n".repeat(lines).as_bytes());
    });
    // Nothing is read before the pipe is full.
    let mut replies = 0;
    loop {
        wait_until("the pipe is full, or it has gone", || {
            let waiting = rustix::io::ioctl_fionread(&reader).expect("a pipe") as usize;
            waiting + REPLY > PAGE || child.try_wait().expect("it is our child").is_some()
        });
        match reader.read(&mut [0; PAGE]).expect("a pipe") {
            0 => break,
            read => replies += read,
        }
    }
    let ended = ran(child.wait_with_output().expect("it ends"));
    assert_eq!((ended.status, ended.errors.as_str()), (0, ""));
    assert_eq!(replies, lines * REPLY);
    writing.join().expect("written");
}
