//! The README of the samples: every command that it shows, run as it is shown.

use std::process::Command;

use super::{SAMPLES, anywhere, folder, out};
use crate::project::examples;
use crate::support::{Daemon, Scratch, installed};

fn readme() -> String {
    std::fs::read_to_string(folder().join("README.md")).expect("it is there")
}

/// Runs a line of bash in a copy of the samples, with the daemon's port for 4242, and returns all that it prints.
fn shell(line: &str, daemon: &Daemon) -> String {
    let scratch = Scratch::new();
    let mut copy = Command::new("cp");
    let copied = copy.arg("-r").arg(folder()).arg(scratch.path()).status();
    assert!(copied.is_ok_and(|status| status.success()));
    let line = line.replace("4242", &daemon.address.port().to_string());
    std::fs::create_dir_all(out()).expect("a folder");
    let output = anywhere(&mut Command::new("timeout"))
        .args(["120", "bash", "-c", &format!("exec 2>&1; {line}")])
        .current_dir(scratch.path().join("clients"))
        .output()
        .expect("timeout and bash run");
    String::from_utf8(output.stdout).expect("ASCII")
}

#[test]
fn every_sample_is_run_as_readme_shows() {
    let id = "6f0c2a52-5f0e-4b7e-9a35-0c5f7f5a3c1e";
    let daemon = Daemon::start(["--server-id", id]);
    let readme = readme();
    let rows = readme.lines().filter(|line| line.starts_with("| "));
    let rows: Vec<&str> = rows.skip(1).collect();
    assert_eq!(rows.len(), SAMPLES.len());
    for sample in SAMPLES {
        let file = sample.file;
        let named = |row: &&&str| row.contains(&format!("[{file}]({file})"));
        let row = rows.iter().find(named).unwrap_or_else(|| panic!("{file}"));
        let command = row.split('`').nth(1).expect("a command");
        assert!(command.contains(file) && command.ends_with(" localhost 4242 WHO WHERE WHY"));
        let program = command.split(' ').next().expect("a program");
        if sample.installed() && installed(program) {
            let expected = format!("WHO\t1\nWHERE\t{id}\nWHY\t42\n");
            assert_eq!(shell(command, &daemon), expected, "{command}");
            daemon.wait_for_others(0);
        }
    }
}

#[test]
fn its_examples_print_what_they_show() {
    let daemon = Daemon::start([""; 0]);
    let examples = examples(&readme());
    assert!(!examples.is_empty());
    for example in examples {
        let program = example.command.split(' ').next().expect("a program");
        if installed(program) {
            let printed = shell(&example.command, &daemon);
            let mut lines: Vec<&str> = printed.lines().collect();
            let mut shown: Vec<&str> = example.printed.lines().collect();
            // Two streams: which is first is not said.
            lines.sort_unstable();
            shown.sort_unstable();
            assert_eq!(lines, shown, "{}", example.command);
        }
    }
}
