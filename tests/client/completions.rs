//! What the shells offer: each is given the script for it, and asked what it would complete.

use std::path::PathBuf;
use std::process::Command;

use super::run;
use crate::support::Scratch;
use crate::support::terminal::Terminal;

/// What is typed, and what must be offered for its last word.
const OFFERED: [(&str, &[&str]); 11] = [
    ("wh", &["where", "who", "why"]),
    ("conn", &["connect"]),
    ("--ser", &["--server"]),
    ("--json he", &["help"]),
    ("help whe", &["where"]),
    ("--server localhost whe", &["where"]),
    ("watch --ev", &["--every"]),
    ("bench --dur", &["--duration"]),
    ("bench --request wh", &["where", "who", "why"]),
    ("bench -r qui", &["quit"]),
    ("completions f", &["fish"]),
];

/// What bash and zsh offer besides; fish knows no host that is this one.
const HOSTS: [(&str, &[&str]); 3] = [
    ("--server localhos", &["localhost"]),
    ("watch -s localhos", &["localhost"]),
    ("bench localhos", &["localhost"]),
];

/// Where no name of a file belongs, which is everywhere: an option's value, what a task takes, and what a request takes.
const NO_FILES: [&str; 18] = [
    "",
    "--server ",
    "--server=",
    "--server localhost:",
    "connect localhost:",
    "-s ",
    "-t ",
    "--timeout=",
    "connect ",
    "watch ",
    "watch --every ",
    "watch --timeout ",
    "bench --clients ",
    "bench -p ",
    "bench -d ",
    "bench --request ",
    "completions ",
    "add 1 ",
];

/// A folder with a file, the name of which begins with `a-f` as nothing else does.
fn folder() -> Scratch {
    let folder = Scratch::new();
    std::fs::write(folder.path().join("a-file.txt"), "").expect("a file");
    folder
}

/// The HOSTFILE of a bash that knows one host, localhost.
fn one_host(scratch: &Scratch) -> PathBuf {
    let hosts = scratch.path().join("hosts");
    std::fs::write(&hosts, "127.0.0.1 localhost\n").expect("a scratch file");
    hosts
}

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
    needs!("bash");
    let (_folder, path) = script("bash", "blockchain-tcp");
    let asking = r#"
        source "$1"
        read -ra COMP_WORDS <<<"blockchain-tcp $2"
        COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
        function=$(complete -p blockchain-tcp | sed 's/.*-F \([^ ]*\).*/\1/')
        "$function" blockchain-tcp "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
        printf '%s\n' "${COMPREPLY[@]}""#;
    for (typed, offered) in OFFERED {
        let mut command = Command::new("bash");
        command.args(["--norc", "-c", asking, "bash"]);
        command.arg(&path).arg(typed);
        assert_eq!(first_words(command), offered, "{typed}");
    }
}

#[test]
fn fish_completes() {
    needs!("fish");
    let (scratch, path) = script("fish", "blockchain-tcp.fish");
    let folder = folder();
    let files = NO_FILES.map(|before| format!("{before}a-f"));
    let no_files = files.iter().map(|typed| (typed.as_str(), &[][..]));
    for (typed, offered) in OFFERED.into_iter().chain(no_files) {
        let mut command = Command::new("fish");
        command
            .env("HOME", scratch.path())
            .current_dir(folder.path());
        let asking = "source $argv[1]; complete -C \"blockchain-tcp $argv[2]\"";
        command.args(["--no-config", "-c", asking]);
        command.arg(&path).arg(typed);
        assert_eq!(first_words(command), offered, "{typed}");
    }
}

/// Types each of these in a shell that has said `ready` in a [`folder`], and presses Tab. One that is the only one is completed, others
/// are listed, and the file is not.
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
        clear(&mut terminal);
    }
    for before in NO_FILES {
        // What is typed behind the Tab shows what has become of it.
        terminal.type_in(&format!("blockchain-tcp {before}a-f\t\t:"));
        let whole = format!("blockchain-tcp {before}a-f");
        terminal.wait_until(&format!("{whole}:"), |screen| {
            let line = screen.iter().find_map(|line| line.split_once(&whole));
            line.is_some_and(|(_, behind)| behind.contains(':'))
        });
        let screen = terminal.screen();
        assert!(
            screen
                .iter()
                .any(|line| line.ends_with(&format!("{whole}:"))),
            "{screen:#?}"
        );
        clear(&mut terminal);
    }
    terminal.type_in("\x04");
    terminal.end();
}

/// ^A ^K leaves an empty line, and ^L an empty screen.
fn clear(terminal: &mut Terminal) {
    terminal.type_in("\x01\x0b\x0c");
    terminal.wait_until("an empty screen", |screen| {
        !screen.iter().any(|line| line.contains("blockchain-tcp "))
    });
}

#[test]
fn bash_completes_what_is_typed() {
    needs!("bash");
    let (scratch, path) = script("bash", "blockchain-tcp");
    let folder = folder();
    let hosts = one_host(&scratch);
    let mut command = Command::new("bash");
    command
        .args(["--noprofile", "--norc", "-i"])
        .current_dir(folder.path())
        .env("PS1", "> ");
    command
        .env("INPUTRC", "/dev/null")
        .env("HISTFILE", "/dev/null")
        .env("HOSTFILE", hosts);
    let mut terminal = Terminal::start(command, 24, 100);
    terminal.type_in(&format!("source {}; echo rea''dy\r", path.display()));
    complete_in(terminal, &[&OFFERED[..], &HOSTS].concat());
}

#[test]
fn zsh_completes_what_is_typed() {
    needs!("zsh");
    let (scratch, _) = script("zsh", "_blockchain-tcp");
    let folder = folder();
    let mut command = Command::new("zsh");
    command
        .args(["-f", "-i"])
        .current_dir(folder.path())
        .env("PS1", "> ")
        .env("HOME", scratch.path());
    let mut terminal = Terminal::start(command, 24, 100);
    terminal.type_in(&format!(
        "bindkey -e; fpath=({folder} $fpath); autoload -U compinit; compinit -u -d {folder}/dump; echo rea''dy\r",
        folder = scratch.path().display()
    ));
    complete_in(terminal, &[&OFFERED[..], &HOSTS].concat());
}
