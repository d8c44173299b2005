//! What the process that starts the daemon leaves behind: signals that are ignored or blocked, timers, limits, a umask,
//! descriptors, a working directory.

use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::handover::replace;
use crate::support::kernel::{shell, through};
use crate::support::{Daemon, Scratch, run_to_end};

/// The daemon behind a shell's commands.
fn after(commands: &str, arguments: &[&str]) -> Daemon {
    Daemon::start_through(&shell(commands), arguments)
}

/// Whether a client and a half of its request survive two handovers.
fn hands_over_twice(daemon: Daemon) {
    let mut client = daemon.connect();
    client.send("WH");
    for _ in 0..2 {
        replace(&daemon);
    }
    assert_eq!(client.ask("Y"), "42");
    daemon.stop();
}

#[test]
fn signals_that_its_parent_ignores_and_blocks_are_heard() {
    let wrapper = ["env", "--ignore-signal", "--block-signal"];
    needs!(run & wrapper);
    let daemon = Daemon::start_through(&wrapper, ["--max-clients", "8"]);
    for signal in ["HUP", "USR1"] {
        daemon.signal(signal);
        let said = format!("SIG{signal} changes nothing");
        daemon.log().wait_for(&said);
    }
    // With SIGCHLD ignored it could not wait for the new program's trial.
    hands_over_twice(daemon);
}

#[test]
fn a_timer_of_its_parent_does_not_end_it() {
    needs!("perl");
    let timer = "use Time::HiRes; Time::HiRes::ualarm(300_000); exec @ARGV";
    let daemon = Daemon::start_through(&["perl", "-e", timer], ["--max-clients", "8"]);
    let said = " WARN  a timer of the process that started this one";
    daemon.log().wait_for(said);
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(600) {
        assert_eq!(daemon.ask("WHY\n"), "42\n");
    }
    daemon.stop();
}

/// The shell's limit is where SIGKILL comes; the signal before it comes again after each second.
#[test]
fn before_a_limit_on_processor_time_it_drains() {
    let mut daemon = after("ulimit -t 600 || exit", &["--max-clients", "8"]);
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", daemon.pid())).unwrap();
    let limit = limits.lines().find(|line| line.starts_with("Max cpu time"));
    let limit: Vec<&str> = limit.unwrap().split_whitespace().collect();
    assert_eq!(limit[3..], ["599", "600", "seconds"]);
    let mut client = daemon.connect();
    client.send("WHY\nWH");
    assert_eq!(client.line().as_deref(), Some("42"));
    for _ in 0..2 {
        daemon.signal_if_there("XCPU");
    }
    assert_eq!(client.rest(), "");
    assert!(daemon.wait().success());
    let log = daemon.log().whole();
    assert!(log.contains("stopping reason=SIGXCPU clients=1"), "{log}");
}

#[test]
fn with_any_umask_this_user_reads_the_id_and_no_other_writes_it() {
    for (umask, expected) in [("0777", 0o600), ("0077", 0o600), ("0", 0o644)] {
        let scratch = Scratch::new();
        let directory = scratch.path().to_str().unwrap();
        let arguments = ["--max-clients", "2", "--state-directory", directory];
        after(&format!("umask {umask}"), &arguments).stop();
        let file = std::fs::metadata(scratch.path().join("server-id")).unwrap();
        assert_eq!(file.permissions().mode() & 0o777, expected, "{umask}");
    }
}

#[test]
fn an_id_that_a_limit_on_files_forbids_is_an_error_that_names_it() {
    let scratch = Scratch::new();
    let mut command = through(&shell("ulimit -f 0 || exit"));
    command.args(["--listen", "127.0.0.1:0", "--state-directory"]);
    command.arg(scratch.path());
    let (status, said) = run_to_end(command);
    assert_eq!(status, 71, "{said}");
    assert!(said.contains("File too large; raise the limit"), "{said}");
    assert!(said.contains("LimitFSIZE="), "{said}");
}

/// So setlock, chpst and scripts keep a second one away: closed, the descriptor would keep nobody.
#[test]
fn a_lock_that_its_parent_left_open_is_held_over_a_handover() {
    let scratch = Scratch::new();
    let lock = scratch.path().join("lock");
    let is_free = || {
        let mut flock = Command::new("flock");
        flock.arg("-n").arg(&lock).arg("true");
        flock.status().unwrap().success()
    };
    let hold = format!("exec 9>{} && flock 9 || exit", lock.display());
    let daemon = after(&hold, &["--max-clients", "8"]);
    assert!(!is_free());
    replace(&daemon);
    assert!(!is_free());
    daemon.stop();
    assert!(is_free());
}

#[test]
fn without_standard_descriptors_and_with_its_directory_gone_it_hands_over() {
    let scratch = Scratch::new();
    let gone = scratch.path().join("gone");
    std::fs::create_dir(&gone).unwrap();
    let gone = gone.display();
    let prepare = format!("cd {gone} && rmdir {gone} && exec <&- >&- || exit");
    hands_over_twice(after(&prepare, &["--max-clients", "8"]));
}

#[test]
fn a_relative_state_directory_is_the_same_after_a_handover() {
    let scratch = Scratch::new();
    std::fs::create_dir(scratch.path().join("state")).unwrap();
    let prepare = format!("cd {} || exit", scratch.path().display());
    let daemon = after(&prepare, &["--state-directory", "state"]);
    let id = daemon.ask("WHERE\n");
    replace(&daemon);
    assert_eq!(daemon.ask("WHERE\n"), id);
    let log = daemon.stop();
    assert!(!log.contains("ERROR"), "{log}");
    let kept = std::fs::read_to_string(scratch.path().join("state/server-id")).unwrap();
    assert_eq!(kept, id);
}
