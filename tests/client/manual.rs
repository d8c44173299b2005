//! The client's manual page, held against `--help` and the program: nothing is missing, nothing is made up, and the examples run.

use std::collections::BTreeSet;
use std::process::Command;

use shared::command::{SETS, sets};

use super::{Ran, client, ran, run};
use crate::manual::{as_source, items, section_of};
use crate::project;
use crate::support::{Client, Daemon, Scratch};

const MANUAL: &str = include_str!("../../man/blockchain-tcp.1");

const ID: &str = "6f0c2a52-5f0e-4b7e-9a35-0c5f7f5a3c1e";

fn section(name: &str) -> &'static str {
    section_of(MANUAL, name)
}

fn help(arguments: &[&str]) -> String {
    let ran = run(arguments.iter().chain(&["--help"]));
    assert_eq!((ran.status, ran.errors.as_str()), (0, ""));
    ran.output
}

/// The rows of `--help` below this heading, each its first word and the rest.
fn rows<'a>(help: &'a str, heading: &str) -> Vec<(&'a str, &'a str)> {
    let (_, rows) = help
        .split_once(&format!("\n{heading}:\n"))
        .unwrap_or_else(|| panic!("no {heading} in {help}"));
    let rows = rows.lines().take_while(|row| row.starts_with("  "));
    rows.map(|row| row.trim_start().split_once(' ').expect("two words"))
        .collect()
}

/// The options of a help, as the manual's source has them.
pub fn options(help: &str) -> Vec<String> {
    help.lines()
        .map(str::trim_start)
        .filter(|line| line.starts_with('-'))
        .map(as_source)
        .collect()
}

/// The defaults that a help or a manual's section shows, in its order.
pub fn defaults<'a>(text: &'a str, before: &str, behind: char) -> Vec<&'a str> {
    text.split(before)
        .skip(1)
        .filter_map(|rest| rest.split(behind).next())
        .collect()
}

fn tasks() -> Vec<String> {
    let help = help(&[]);
    let rows = rows(&help, "Tasks");
    rows.iter().map(|(name, _)| (*name).to_string()).collect()
}

#[test]
fn every_task_is_in_it_and_no_other() {
    let (_, described) = section("DESCRIPTION")
        .split_once("\n.Ss Tasks\n")
        .expect("the tasks");
    let described: Vec<&str> = items(described)
        .iter()
        .filter_map(|(item, _)| item.strip_prefix("Cm ")?.split(' ').next())
        .collect();
    let synopsis = section("SYNOPSIS").lines();
    let shown: Vec<&str> = synopsis
        .filter_map(|line| line.strip_prefix(".Cm "))
        .collect();
    assert_eq!(described, tasks());
    assert_eq!(shown, tasks());
}

#[test]
fn every_option_is_in_it_with_its_default_and_no_other() {
    let mut parts = section("OPTIONS").split("\n.Pp\nFor\n.Cm ");
    let for_all = parts.next().expect("those of all tasks");
    let documented = |part: &str| -> Vec<String> {
        let names = items(part).into_iter();
        names.map(|(item, _)| item.to_string()).collect()
    };
    let mut shown = help(&[]);
    assert_eq!(documented(for_all), options(&shown));
    let of_all: BTreeSet<String> = options(&shown).into_iter().collect();
    assert_eq!(of_all.len(), 7);
    let parts: Vec<(&str, &str)> = parts
        .map(|part| part.split_once(" :\n").expect("a task"))
        .collect();
    for task in tasks() {
        let help = help(&[&task]);
        let mut own = options(&help);
        own.retain(|option| !of_all.contains(option));
        let part = parts.iter().find(|(name, _)| *name == task);
        let part = part.map_or("", |(_, part)| part);
        assert_eq!(documented(part), own, "{task}");
        let own_help = help.lines().filter(|line| {
            let name = as_source(line.trim_start());
            own.contains(&name)
        });
        shown += &own_help.collect::<Vec<_>>().join("\n");
        // Each is in the synopsis of its task.
        let synopsis = section("SYNOPSIS").split("\n.Nm\n");
        let line = synopsis
            .filter(|line| line.contains(&format!(".Cm {task}\n")))
            .collect::<String>();
        for option in own {
            let (short, _) = option.split_once(" ,").expect("a short form");
            assert!(line.contains(&format!(".Op {short} ")), "{option}: {line}");
        }
    }
    assert_eq!(
        defaults(section("OPTIONS"), "Default:\n.Ql ", ' '),
        defaults(&shown, "[default: ", ']')
    );
}

#[test]
fn every_variable_is_in_it_and_no_other() {
    let mut helps = help(&[]);
    for task in tasks() {
        helps += &help(&[&task]);
    }
    let variables: BTreeSet<&str> = helps
        .split(|character: char| !character.is_ascii_uppercase() && character != '_')
        .filter(|word| word.starts_with("BLOCKCHAIN_TCP_") || word.starts_with("XDG_"))
        .collect();
    let documented = items(section("ENVIRONMENT"));
    let named: BTreeSet<&str> = documented
        .iter()
        .map(|(item, _)| item.strip_prefix("Ev ").expect("a variable"))
        .collect();
    assert_eq!(named.len(), documented.len(), "each once");
    assert_eq!(named, variables);
    assert!(named.len() >= 4, "{named:?}");
}

#[test]
fn every_exit_status_is_in_it_and_in_the_help_and_no_other() {
    let statuses = |rows: Vec<(&str, &str)>| -> Vec<u8> {
        let numbers = rows.iter().map(|(status, _)| status.parse());
        numbers.map(|status| status.expect("a number")).collect()
    };
    let documented = statuses(items(section("EXIT STATUS")));
    assert_eq!(documented, statuses(rows(&help(&[]), "Exit status")));
    let failures = include_str!("../../crates/client/src/failure.rs");
    // Each is a constant: `pub const REFUSED: u8 = 1;`.
    let constants = failures
        .lines()
        .filter_map(|line| line.split_once(": u8 = "));
    let returned = constants.map(|(_, status)| status.trim_end_matches(';').parse());
    let returned = returned.map(|status| status.expect("a number"));
    let returned: BTreeSet<u8> = returned.chain([0]).collect();
    assert_eq!(documented.into_iter().collect::<BTreeSet<_>>(), returned);
}

#[test]
fn the_help_of_a_request_shows_how_it_is_written() {
    for entry in sets::all() {
        let name = entry.name.to_lowercase();
        for written in [name.as_str(), entry.name] {
            let help = help(&[written]);
            let usage = format!(
                "Usage: blockchain-tcp [OPTIONS] {name} {}",
                entry.arguments()
            );
            assert!(help.lines().any(|line| line == usage.trim_end()), "{help}");
            assert!(help.starts_with(entry.summary), "{help}");
        }
    }
}

#[test]
fn the_help_names_every_command_of_the_server() {
    let daemon = Daemon::start(["--max-clients", "4"]);
    let help = help(&[]);
    let offered = rows(&help, "Requests");
    for command in daemon.ask("HELP\n").split_whitespace() {
        let said = daemon.ask(format!("HELP {command}\n"));
        let (_, summary) = said.trim_end().split_once(": ").expect("what it does");
        let name = command.to_lowercase();
        let row = offered.iter().find(|(offered, _)| *offered == name);
        let row = row.unwrap_or_else(|| panic!("no {name} in {help}"));
        assert!(row.1.ends_with(&format!(" {summary}")), "{row:?}");
    }
    for (set, entries) in SETS.iter().filter(|(set, _)| *set != "server") {
        let heading = format!("Requests to a server with --commands server,{set}");
        let offered: Vec<String> = rows(&help, &heading)
            .iter()
            .map(|(name, _)| name.to_uppercase())
            .collect();
        let names: Vec<&str> = entries.iter().map(|entry| entry.name).collect();
        assert_eq!(offered, names);
    }
}

/// The literal blocks of the examples, as a shell reads them.
fn examples() -> Vec<String> {
    let blocks = section("EXAMPLES").split(".Bd -literal -offset indent\n");
    blocks
        .skip(1)
        .map(|block| {
            let (block, _) = block.split_once(".Ed").expect("its end");
            block.replace("\\e", "\\")
        })
        .collect()
}

/// Runs a script of a document, with our client and this server, which is the one at all addresses of the examples, too.
fn script(text: &str, server: &Daemon) -> Ran {
    let address = server.address.to_string();
    let text = ["ledger", "one", "two"]
        .iter()
        .fold(text.to_string(), |text, name| {
            text.replace(&format!("{name}.example.org"), &address)
        });
    let scratch = Scratch::new();
    let path = std::env::var("PATH").expect("a path");
    std::os::unix::fs::symlink(
        client().get_program(),
        scratch.path().join("blockchain-tcp"),
    )
    .expect("a link");
    let mut shell = Command::new("bash");
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("BLOCKCHAIN_TCP") {
            shell.env_remove(name);
        }
    }
    shell
        .args(["-c", &text])
        .current_dir(scratch.path())
        .env("HOME", scratch.path())
        .env("PATH", format!("{}:{path}", scratch.path().display()))
        .env("BLOCKCHAIN_TCP_SERVER", address);
    let mut ran = ran(shell.output().expect("it runs"));
    // What it has written to a file counts as printed.
    if let Ok(log) = std::fs::read_to_string(scratch.path().join("clients.log")) {
        ran.output += &log;
    }
    ran
}

/// The example that has these words, and what it prints on a server with three clients besides.
fn example(words: &str, check: impl Fn(&Ran) -> bool) {
    needs!("bash", "jq");
    let examples = examples();
    let found = examples.iter().filter(|text| text.contains(words));
    let found: Vec<&String> = found.collect();
    assert_eq!(found.len(), 1, "{words}: {examples:?}");
    let daemon = Daemon::start(["--max-clients", "20", "--server-id", ID]);
    let _others: Vec<Client> = (0..3).map(|_| daemon.connect()).collect();
    daemon.wait_for_others(3);
    let ran = script(found[0], &daemon);
    assert_eq!(ran.errors, "", "{words}: {ran:?}");
    assert!(check(&ran), "{words}: {ran:?}");
}

fn prints(output: &str) -> impl Fn(&Ran) -> bool {
    move |ran| (ran.status, ran.output.as_str()) == (0, output)
}

#[test]
fn no_example_is_without_its_test() {
    assert_eq!(examples().len(), 10);
}

#[test]
fn the_examples_of_one_question_do_what_they_are_for() {
    let plain = examples()
        .into_iter()
        .find(|text| text == "blockchain-tcp who\n");
    assert!(plain.is_some());
    example("count=$(", prints("4 clients\n"));
    example(" where)", prints(""));
    example(" jq ", prints("4\n4\n"));
    example("until ", prints("PONG\n"));
    example("source ", prints(""));
}

/// What they do where they can't do what they are for.
#[test]
fn the_examples_of_one_question_fail_as_they_must() {
    needs!("bash");
    let find = |words: &str| {
        let mut examples = examples().into_iter();
        examples.find(|text| text.contains(words)).expect(words)
    };
    let daemon = Daemon::start(["--max-clients", "1", "--queue", "0"]);
    // Another id.
    assert_eq!(script(&find(" where)"), &daemon).status, 1);
    daemon.wait_for_others(0);
    let somebody = daemon.connect();
    crate::support::wait_until("it is full", || {
        script("blockchain-tcp who", &daemon).status == 75
    });
    let ran = script(&find("count=$("), &daemon);
    assert_eq!((ran.status, ran.output.as_str()), (75, ""), "{ran:?}");
    // It waits for room, and is told when it has waited long enough.
    let waiting = find("until ").replace("SECONDS + 60", "SECONDS + 1");
    let ran = script(&waiting, &daemon);
    assert_eq!((ran.status, ran.output.as_str()), (1, ""), "{ran:?}");
    assert!(ran.errors.starts_with("ERR BUSY "), "{ran:?}");
    drop(somebody);
}

#[test]
fn the_example_of_a_pipe_does_what_it_is_for() {
    example("| blockchain-tcp connect", |ran| {
        prints(&format!("4\n{ID}\n42\n"))(ran)
    });
}

#[test]
fn the_example_of_watching_does_what_it_is_for() {
    example("watch", |ran| {
        let mut lines = ran.output.lines();
        // The status is that of timeout.
        ran.status == 124
            && ran.output.lines().count() >= 3
            && lines.all(|line| line.len() == 26 && line.ends_with("Z 4"))
    });
}

#[test]
fn the_example_of_measuring_does_what_it_is_for() {
    for words in ["bench --clients", "bench --rate"] {
        example(words, |ran| ran.status == 0 && !ran.output.is_empty());
    }
}

/// An object in a literal block, without what differs from one time to the next.
fn shape(object: &str) -> serde_json::Value {
    let mut object: serde_json::Value = serde_json::from_str(object).expect("JSON");
    assert!(object["seconds"].take().is_f64(), "{object}");
    object
}

#[test]
fn json_is_as_it_shows() {
    let objects = section("JSON")
        .lines()
        .filter(|line| line.starts_with('{'))
        .map(|line| line.replace("\\e", "\\"));
    let objects: Vec<String> = objects.collect();
    assert_eq!(objects.len(), 2);
    let daemon = Daemon::start(["--max-clients", "20"]);
    let _others: Vec<Client> = (0..16).map(|_| daemon.connect()).collect();
    daemon.wait_for_others(16);
    let address = daemon.address.to_string();
    for (object, request) in objects.iter().zip(["who", "FOO"]) {
        let ran = run(["-s", &address, "--json", request]);
        assert_eq!(shape(&ran.output), shape(object));
    }
}

/// Those in README's section about the client.
#[test]
fn readme_shows_what_it_prints() {
    needs!("bash");
    let readme = include_str!("../../README.md");
    let mut examples = project::examples(readme);
    examples.retain(|example| example.command.contains("blockchain-tcp "));
    assert!(!examples.is_empty());
    let daemon = Daemon::start(["--max-clients", "20", "--server-id", ID]);
    let _others: Vec<Client> = (0..16).map(|_| daemon.connect()).collect();
    daemon.wait_for_others(16);
    for example in examples {
        // In the order in which a person sees it.
        let command = format!("exec 2>&1; {}", example.command);
        assert_eq!(script(&command, &daemon).output, example.printed);
    }
}
