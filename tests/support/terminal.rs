//! A real terminal: a pseudo-terminal with a program in it, and the screen that it would show.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::process::{ioctl_tiocsctty, setsid};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use super::{PATIENCE, wait_for_end};

/// A program in a terminal; killed at the end if it is still there.
pub struct Terminal {
    child: Child,
    keyboard: File,
    seen: Arc<Mutex<Seen>>,
}

struct Seen {
    screen: vt100::Parser,
    all: Vec<u8>,
}

impl Terminal {
    /// Starts `command` in a terminal of this size.
    pub fn start(mut command: Command, rows: u16, columns: u16) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC);
        let master = master.expect("a pseudo-terminal");
        grantpt(&master).expect("granted");
        unlockpt(&master).expect("unlocked");
        let name = ptsname(&master, Vec::new()).expect("a name");
        let slave = rustix::fs::open(&name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty());
        let slave = slave.expect("its other side");
        resize(&master, rows, columns);
        let end = || Stdio::from(slave.try_clone().expect("a descriptor"));
        command.stdin(end()).stdout(end()).stderr(end());
        command.env("TERM", "xterm-256color");
        // A session of its own, whose terminal this is: ^C goes to the program.
        // SAFETY: both are system calls and nothing else.
        #[allow(unsafe_code)]
        unsafe {
            command.pre_exec(|| {
                setsid()?;
                // Standard input is the terminal already.
                ioctl_tiocsctty(rustix::stdio::stdin())?;
                Ok(())
            });
        }
        let child = command.spawn().expect("it starts");
        drop((command, slave));
        let seen = Arc::new(Mutex::new(Seen {
            screen: vt100::Parser::new(rows, columns, 0),
            all: Vec::new(),
        }));
        let keyboard = File::from(master);
        let mut output = keyboard.try_clone().expect("a descriptor");
        let shown = seen.clone();
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            // The end of a pseudo-terminal is an error.
            while let Ok(read) = output.read(&mut bytes)
                && read > 0
            {
                let mut seen = shown.lock().unwrap();
                seen.screen.process(&bytes[..read]);
                seen.all.extend_from_slice(&bytes[..read]);
            }
        });
        Terminal {
            child,
            keyboard,
            seen,
        }
    }

    /// Types this: `\r` is Enter, `\x03` is ^C, `\x04` ^D, `\t` Tab.
    pub fn type_in(&mut self, text: &str) {
        let keys = self.keyboard.write_all(text.as_bytes());
        keys.expect("the terminal takes it");
    }

    /// Gives the terminal another size.
    pub fn resize(&self, rows: u16, columns: u16) {
        let mut seen = self.seen.lock().unwrap();
        seen.screen.screen_mut().set_size(rows, columns);
        resize(self.keyboard.as_fd(), rows, columns);
    }

    /// What the screen shows now, line by line, without blanks at the ends.
    pub fn screen(&self) -> Vec<String> {
        let seen = self.seen.lock().unwrap();
        let screen = seen.screen.screen();
        let rows = screen.rows(0, screen.size().1);
        rows.map(|row| row.trim_end().to_string()).collect()
    }

    /// All bytes so far, as the program wrote them.
    pub fn all(&self) -> String {
        String::from_utf8_lossy(&self.seen.lock().unwrap().all).into_owned()
    }

    /// Whether the cursor shows.
    pub fn shows_cursor(&self) -> bool {
        !self.seen.lock().unwrap().screen.screen().hide_cursor()
    }

    /// Waits until the screen is as wanted.
    pub fn wait_until(&self, what: &str, wanted: impl Fn(&[String]) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !wanted(&self.screen()) {
            assert!(Instant::now() < deadline, "{what}: {:#?}", self.screen());
            std::thread::park_timeout(Duration::from_millis(2));
        }
    }

    /// Waits until a line of the screen contains this.
    pub fn wait_for(&self, text: &str) {
        self.wait_until(text, |screen| screen.iter().any(|line| line.contains(text)));
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for its end.
    pub fn end(&mut self) -> ExitStatus {
        wait_for_end(&mut self.child).expect("it ends")
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn resize(terminal: impl std::os::fd::AsFd, rows: u16, columns: u16) {
    let size = Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(terminal, size).expect("a terminal has a size");
}
