//! The documented one-liners, with every netcat that they are documented for.

use crate::support::{Daemon, Scratch};

/// What the documents show: a program and a line for a shell that uses it.
pub fn one_liners() -> impl Iterator<Item = (&'static str, &'static str)> {
    let lines = include_str!("nc/one-liners.txt").lines();
    let lines = lines.filter(|line| !line.starts_with('#'));
    lines.map(|line| {
        let (program, one_liner) = line.split_once(' ').expect("a program and its line");
        (program, one_liner.trim_start())
    })
}

#[test]
fn no_one_liner_is_without_its_test() {
    assert_eq!(one_liners().count(), 3 + 2 + 1 + 1 + 1 + 2);
}

#[test]
fn openbsd_nc() {
    run_one_liners("nc.openbsd", 3);
}

#[test]
fn traditional_nc() {
    run_one_liners("nc.traditional", 2);
}

#[test]
fn nmaps_ncat() {
    run_one_liners("ncat", 1);
}

#[test]
fn busybox_nc() {
    run_one_liners("busybox", 1);
}

#[test]
fn socat() {
    run_one_liners("socat", 1);
}

#[test]
fn bash_alone() {
    run_one_liners("bash", 2);
}

/// Runs all one-liners of this program, of which there is this number.
fn run_one_liners(program: &str, number: usize) {
    let lines = one_liners().filter(|(of, _)| *of == program);
    let lines: Vec<&str> = lines.map(|(_, line)| line).collect();
    assert_eq!(lines.len(), number);
    needs!(program);
    let id = "6f0c2a52-5f0e-4b7e-9a35-0c5f7f5a3c1e";
    let daemon = Daemon::start(["--max-clients", "4", "--server-id", id]);
    for one_liner in lines {
        // The words of the line that are requests, in their order.
        let words = one_liner.split(|character: char| !character.is_ascii_uppercase());
        let replies = words.filter_map(|word| match word {
            "WHO" => Some("1\n"),
            "WHERE" => Some("6f0c2a52-5f0e-4b7e-9a35-0c5f7f5a3c1e\n"),
            "WHY" => Some("42\n"),
            "QUIT" => Some("BYE\n"),
            _ => None,
        });
        let expected: String = replies.collect();
        // Some wait for no more than a second or half of it, in which a busy machine may not get round to an answer.
        let mut printed = String::new();
        for _ in 0..5 {
            daemon.wait_for_others(0);
            printed = shell(one_liner, program, &daemon);
            if printed == expected {
                break;
            }
        }
        assert_eq!(printed, expected, "{one_liner}");
    }
}

/// Runs a documented line in bash, with `nc` for the word nc and the daemon's port for 4242; returns what it prints.
pub fn shell(line: &str, nc: &str, daemon: &Daemon) -> String {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    let scratch = Scratch::new();
    if let Some(file) = std::env::split_paths(&path).find_map(|directory| {
        let file = directory.join(nc);
        file.exists().then_some(file)
    }) {
        std::os::unix::fs::symlink(file, scratch.path().join("nc")).expect("a link");
        let paths = std::iter::once(scratch.path().to_path_buf());
        path = std::env::join_paths(paths.chain(std::env::split_paths(&path))).expect("a path");
    }
    let line = line.replace("4242", &daemon.address.port().to_string());
    // A netcat that hangs is ended by coreutils' timeout.
    let output = std::process::Command::new("timeout")
        .args(["30", "bash", "-c", &line])
        .env("PATH", path)
        .output()
        .expect("timeout and bash run");
    assert_ne!(output.status.code(), Some(124), "it hangs: {line}");
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.stderr.is_empty() {
        eprintln!("{line}: {}", String::from_utf8_lossy(&output.stderr));
    }
    printed
}
