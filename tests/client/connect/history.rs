//! What was typed before comes back, in the next conversation, too.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use super::{Session, connect};
use crate::support::{Daemon, Scratch};

fn session(daemon: &Daemon, history: &Path) -> Session {
    let mut command = connect(daemon.address, &[]);
    command.env("BLOCKCHAIN_TCP_HISTORY", history);
    Session::run(command, daemon.address)
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path)
        .expect("it is there")
        .permissions()
        .mode()
        & 0o777
}

#[test]
fn the_arrow_up_brings_it_back() {
    let daemon = Daemon::start(["--max-clients", "4"]);
    let scratch = Scratch::new();
    let history = scratch.path().join("a/b/history");
    let mut first = session(&daemon, &history);
    first.type_in("why\r");
    first.shows(&["> why", "42", ">"]);
    first.type_in("why\r ping\rwho\r");
    first.shows(&["> why", "42", ">  ping", "PONG", "> who", "1", ">"]);
    first.type_in("\x1b[A\x1b[A\r");
    first.shows(&["> why", "42", ">"]);
    first.leave();
    let kept = fs::read_to_string(&history).expect("the history");
    assert_eq!(kept, "#V2\nwhy\nwho\nwhy\nexit\n");
    assert_eq!(mode(&history), 0o600);
    assert_eq!(mode(history.parent().expect("a folder")), 0o700);

    let mut second = session(&daemon, &history);
    second.type_in("\x1b[A\x1b[A\x1b[A");
    second.shows(&["> who"]);
    // Searched for.
    second.type_in("\x03");
    second.shows(&["> who", ">"]);
    second.type_in("\x12wh");
    second.terminal.wait_for("(reverse-i-search)`wh': why");
    second.type_in("\r");
    second.shows(&["42", ">"]);
    second.leave();
}

#[test]
fn it_is_where_the_environment_says() {
    let daemon = Daemon::start(["--max-clients", "4"]);
    let scratch = Scratch::new();
    for (variable, file) in [
        ("XDG_STATE_HOME", "blockchain-tcp/history"),
        ("HOME", ".local/state/blockchain-tcp/history"),
    ] {
        let mut command = connect(daemon.address, &[]);
        command.env_remove("BLOCKCHAIN_TCP_HISTORY");
        command.env(variable, scratch.path());
        Session::run(command, daemon.address).leave();
        let kept = fs::read_to_string(scratch.path().join(file));
        assert_eq!(kept.expect(variable), "#V2\nexit\n");
    }
    let nothing = scratch.path().join("nothing");
    let mut command = connect(daemon.address, &[]);
    command.env("HOME", &nothing);
    Session::run(command, daemon.address).leave();
    assert!(!nothing.exists(), "an empty variable means none");
}

#[test]
fn two_at_once_lose_nothing_of_each_other() {
    let daemon = Daemon::start(["--max-clients", "4"]);
    let scratch = Scratch::new();
    let history = scratch.path().join("history");
    let (mut one, mut other) = (session(&daemon, &history), session(&daemon, &history));
    one.type_in("why\r");
    one.shows(&["> why", "42", ">"]);
    other.type_in("who\r");
    other.shows(&["> who", "2", ">"]);
    one.type_in("ping\r");
    one.shows(&["> ping", "PONG", ">"]);
    one.leave();
    other.leave();
    let kept = fs::read_to_string(&history).expect("the history");
    assert_eq!(kept, "#V2\nwhy\nwho\nping\nexit\n");
}

#[test]
fn it_has_an_end() {
    let daemon = Daemon::start(["--max-clients", "4"]);
    let scratch = Scratch::new();
    let history = scratch.path().join("history");
    let lines: String = (0..1500).map(|number| format!("line{number}\n")).collect();
    fs::write(&history, format!("#V2\n{lines}")).expect("a history");
    session(&daemon, &history).leave();
    let kept = fs::read_to_string(&history).expect("the history");
    let kept: Vec<&str> = kept.lines().collect();
    assert_eq!(kept.len(), 1001);
    assert_eq!(kept[1], "line501");
    assert_eq!(kept[1000], "exit");
}

#[test]
fn trouble_with_it_is_said_once_and_harms_nothing() {
    let daemon = Daemon::start(["--max-clients", "4"]);
    let scratch = Scratch::new();
    let file = scratch.path().join("file");
    fs::write(&file, "#V2\n").expect("a file");
    let below = file.join("history");
    let mut session = session(&daemon, &below);
    session.type_in("why\r");
    let said = format!("no history: {}: Not a directory", below.display());
    session.shows(&["> why", &said, "42", ">"]);
    session.type_in("ping\r");
    session.shows(&["> ping", "PONG", ">"]);
    assert_eq!(session.times(&said), 1);
    session.leave();
}
