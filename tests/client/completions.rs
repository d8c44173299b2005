//! What the shells offer: each is given the script for it, and asked what it would complete.

use std::path::PathBuf;
use std::process::Command;

use super::run;
use crate::support::terminal::Terminal;
use crate::support::{Scratch, installed};

/// What is typed, and what must be offered for its last word.
const OFFERED: [(&str, &[&str]); 9] = [
    ("wh", &["where", "who", "why"]),
    ("conn", &["connect"]),
    ("--ser", &["--server"]),
    ("--json he", &["help"]),
    ("help whe", &["where"]),
    ("--server localhost whe", &["where"]),
    ("watch --ev", &["--every"]),
    ("bench --dur", &["--duration"]),
    ("completions f", &["fish"]),
];

/// What zsh offers besides.
const HOSTS: (&str, &[&str]) = ("--server localhos", &["localhost"]);

/// The script for this shell, under this name in a folder of its own.
fn script(shell: &str, name: &str) -> (Scratch, PathBuf) {
    let ran = run(["completions", shell]);
    assert_eq!((ran.status, ran.errors.as_str()), (0, ""));
    let scratch = Scratch::new();
    let path = scratch.path().join(name);
    std::fs::write(&path, ran.output).expect("a scratch file");
    (scratch, path)
}

/// What this command prints, the first word of each line, in order.
fn first_words(mut command: Command) -> Vec<String> {
    let output = command.output().expect("it runs");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(errors, "", "{command:?}");
    let output = String::from_utf8(output.stdout).expect("UTF-8");
    let words = output
        .lines()
        .filter_map(|line| line.split_whitespace().next());
    let mut words: Vec<String> = words.map(str::to_string).collect();
    words.sort();
    words
}

#[test]
fn bash_completes() {
    if !installed("bash") {
        return;
    }
    let (_scratch, path) = script("bash", "blockchain-tcp");
    let asking = r#"
        source "$1"
        read -ra COMP_WORDS <<<"blockchain-tcp $2"
        COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
        function=$(complete -p blockchain-tcp | sed 's/.*-F \([^ ]*\).*/\1/')
        "$function" blockchain-tcp "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
        printf '%s\n' "${COMPREPLY[@]}""#;
    let in_capitals: [(&str, &[&str]); 2] =
        [("WH", &["WHERE", "WHO", "WHY"]), ("WHO --js", &["--json"])];
    for (typed, offered) in OFFERED.into_iter().chain(in_capitals) {
        let mut command = Command::new("bash");
        command.args(["--norc", "-c", asking, "bash"]);
        command.arg(&path).arg(typed);
        assert_eq!(first_words(command), offered, "{typed}");
    }
}

#[test]
fn fish_completes() {
    if !installed("fish") {
        return;
    }
    let (scratch, path) = script("fish", "blockchain-tcp.fish");
    // No files.
    let nothing: [(&str, &[&str]); 1] = [("who ", &[])];
    for (typed, offered) in OFFERED.into_iter().chain(nothing) {
        let mut command = Command::new("fish");
        command.env("HOME", scratch.path());
        let asking = "source $argv[1]; complete -C \"blockchain-tcp $argv[2]\"";
        command.args(["--no-config", "-c", asking]);
        command.arg(&path).arg(typed);
        assert_eq!(first_words(command), offered, "{typed}");
    }
}

/// Types each of these in a shell that has said `ready`, and presses Tab. One that is the only one is completed, others are
/// listed.
fn complete_in(mut terminal: Terminal, offers: &[(&str, &[&str])]) {
    terminal.wait_for("ready");
    for (typed, offered) in offers {
        let before = typed
            .rsplit_once(' ')
            .map_or(String::new(), |(before, _)| format!("{before} "));
        // Twice, because bash lists them then.
        terminal.type_in(&format!("blockchain-tcp {typed}\t\t"));
        for word in *offered {
            let whole = format!("blockchain-tcp {before}{word}");
            terminal.wait_until(&whole, |screen| match offered.len() {
                1 => screen.iter().any(|line| line.contains(&whole)),
                _ => screen
                    .iter()
                    .any(|line| line.split_whitespace().any(|shown| shown == *word)),
            });
        }
        // ^A ^K leaves an empty line, and ^L an empty screen.
        terminal.type_in("\x01\x0b\x0c");
        terminal.wait_until("an empty screen", |screen| {
            !screen.iter().any(|line| line.contains("blockchain-tcp "))
        });
    }
    terminal.type_in("\x04");
    terminal.end();
}

#[test]
fn bash_completes_what_is_typed() {
    if !installed("bash") {
        return;
    }
    let (_scratch, path) = script("bash", "blockchain-tcp");
    let mut command = Command::new("bash");
    command
        .args(["--noprofile", "--norc", "-i"])
        .env("PS1", "> ");
    command
        .env("INPUTRC", "/dev/null")
        .env("HISTFILE", "/dev/null");
    let mut terminal = Terminal::start(command, 24, 100);
    terminal.type_in(&format!("source {}; echo rea''dy\r", path.display()));
    complete_in(terminal, &OFFERED);
}

#[test]
fn zsh_completes_what_is_typed() {
    if !installed("zsh") {
        return;
    }
    let (scratch, _) = script("zsh", "_blockchain-tcp");
    let mut command = Command::new("zsh");
    command
        .args(["-f", "-i"])
        .env("PS1", "> ")
        .env("HOME", scratch.path());
    let mut terminal = Terminal::start(command, 24, 100);
    terminal.type_in(&format!(
        "bindkey -e; fpath=({folder} $fpath); autoload -U compinit; compinit -u -d {folder}/dump; echo rea''dy\r",
        folder = scratch.path().display()
    ));
    complete_in(terminal, &[&OFFERED[..], &[HOSTS]].concat());
}
