//! The manual page and the settings file of the package, held against the program: nothing is missing, nothing is made up.

use std::collections::BTreeSet;
use std::process::Command;

use shared::command::SETS;

use crate::nc::shell;
use crate::settings::{FLAGS, variable_of};
use crate::support::{Daemon, installed_for_part, program};

const MANUAL: &str = include_str!("../man/blockchain-tcpd.8");

/// The source of a section of a manual, from its heading to the next.
pub fn section_of(manual: &'static str, name: &str) -> &'static str {
    let (_, rest) = manual
        .split_once(&format!("\n.Sh {name}\n"))
        .unwrap_or_else(|| panic!("a section {name}"));
    rest.split("\n.Sh ").next().unwrap_or_default()
}

fn section(name: &str) -> &'static str {
    section_of(MANUAL, name)
}

/// The items of the lists in a section, each with the text below it.
pub fn items(section: &str) -> Vec<(&str, &str)> {
    let items = section.split("\n.It ").skip(1);
    items
        .map(|item| item.split_once('\n').unwrap_or((item, "")))
        .collect()
}

/// An option as the manual's source has it: from a line of `--help` such as `-H, --hostname <HOST>  Name …`.
pub fn as_source(line: &str) -> String {
    let line = line
        .split("  ")
        .next()
        .unwrap_or_default()
        .replace("...", "");
    let words = line
        .split_whitespace()
        .map(|word| match word.strip_prefix("--") {
            Some(long) => format!("Fl \\-{long}"),
            None if word.starts_with('-') => format!("Fl {} ,", word.trim_matches(['-', ','])),
            None => format!("Ar {}", word.trim_matches(['<', '>']).to_lowercase()),
        });
    words.collect::<Vec<_>>().join(" ")
}

#[test]
fn every_option_is_in_it_with_its_variable_and_default_and_no_other() {
    let synopsis = MANUAL.split_once("\n.Sh SYNOPSIS\n").expect("one").1;
    let documented = items(section("OPTIONS"));
    assert_eq!(documented.len(), FLAGS.len());
    for ((item, text), (flag, _, default)) in documented.iter().zip(FLAGS) {
        let name = flag.trim_start_matches('-');
        let (option, variable) = item.split_once(" , Ev ").expect("a flag and a variable");
        let option = option.strip_prefix("Fl \\-").expect("a flag");
        let (option, unit) = option.split_once(" Ar ").expect("what it takes");
        assert_eq!(option, name, "in the order of --help");
        assert_eq!(variable, variable_of(flag));
        assert!(
            synopsis.contains(&format!(".Op Fl \\-{name} Ar {unit}\n")),
            "{name}"
        );
        let (_, said) = text.split_once("Default:").expect("a default");
        for default in default.unwrap_or_default().split_whitespace() {
            assert!(said.contains(&format!(".Ql {default}")), "{name}: {said}");
        }
    }
}

/// The part of the manual that says which commands there are, as the table has them.
fn commands_of_the_table() -> String {
    let needed_first = |name: &str| (name != "server", name.to_string());
    let mut sets = SETS.to_vec();
    sets.sort_by_key(|(name, _)| needed_first(name));
    let mut text = String::new();
    for (name, set) in sets {
        text += &format!(".Pp\nThe set\n.Ql {name} :\n.Bl -tag -width \"HELP [COMMAND]\"\n");
        for entry in set {
            let arguments = match &*entry.arguments() {
                "" => String::new(),
                arguments => format!(" Ar {arguments}"),
            };
            let (first, rest) = entry.summary.split_at(1);
            let summary = format!("{}{rest}.", first.to_uppercase());
            text += &format!(".It Ql {}{arguments}\n{summary}\n", entry.name);
        }
        text += ".El\n";
    }
    text
}

#[test]
fn the_commands_in_it_are_those_of_the_table() {
    const BEGIN: &str = ".\\\" The commands: make manual\n";
    const END: &str = ".\\\" End of the commands\n";
    let (before, rest) = MANUAL.split_once(BEGIN).expect("their beginning");
    let (written, after) = rest.split_once(END).expect("their end");
    let right = commands_of_the_table();
    if std::env::var_os("BLOCKCHAIN_TCPD_WRITE_MANUAL").is_some_and(|write| write == "1") {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/man/blockchain-tcpd.8");
        let manual = [before, BEGIN, &right, END, after].concat();
        std::fs::write(file, manual).expect("the manual can be written");
    } else {
        assert_eq!(written, right, "make manual mends it");
    }
}

#[test]
fn every_command_and_error_is_in_it_and_no_other() {
    let daemon = Daemon::start(["--max-clients", "2", "--commands", "server,calc"]);
    let help = daemon.ask("HELP\n");
    let commands: BTreeSet<&str> = help.split_whitespace().collect();
    let document = include_str!("../docs/protocol.md");
    let errors: BTreeSet<&str> = document
        .split("`ERR ")
        .skip(1)
        .filter_map(|rest| rest.split('`').next())
        .filter(|word| !word.is_empty() && word.chars().all(|c| c.is_ascii_uppercase()))
        .collect();
    let items = items(section("PROTOCOL"));
    let words: Vec<&str> = items
        .iter()
        .filter_map(|(item, _)| item.strip_prefix("Ql ")?.split(' ').next())
        .collect();
    let documented: BTreeSet<&str> = words.iter().copied().collect();
    assert_eq!(words.len(), documented.len(), "each once");
    assert_eq!(documented, &commands | &errors);
}

#[test]
fn every_exit_status_is_in_it_and_no_other() {
    let documented: BTreeSet<u8> = items(section("EXIT STATUS"))
        .iter()
        .map(|(item, _)| item.parse().expect("a number"))
        .collect();
    let errors = include_str!("../src/error.rs");
    let (_, table) = errors
        .split_once("pub fn exit_status")
        .expect("it is there");
    let (table, _) = table.split_once("\n    }\n").expect("its end");
    let mut returned: BTreeSet<u8> = table
        .split("=> ")
        .skip(1)
        .filter_map(|arm| arm.split([',', '\n']).next()?.trim().parse().ok())
        .collect();
    returned.insert(0);
    assert_eq!(documented, returned);
}

#[test]
fn its_examples_do_what_they_are_for() {
    let daemon = Daemon::start(["--max-clients", "4"]);
    let examples = section("EXAMPLES");
    let asking: Vec<String> = examples
        .lines()
        .filter(|line| line.starts_with("printf "))
        .map(|line| line.replace("\\e", "\\"))
        .collect();
    assert_eq!(asking.len(), 5);
    for line in asking {
        let (_, netcat) = line.split_once("| ").expect("a netcat");
        let netcat = netcat.split(' ').next().expect("its name");
        if installed_for_part(netcat) {
            daemon.wait_for_others(0);
            assert_eq!(shell(&line, netcat, &daemon), "1\n", "{line}");
        }
    }
    let mut asking = Command::new(CLIENT.as_str());
    let by_client = examples
        .lines()
        .find_map(|line| line.strip_prefix(".Dl blockchain-tcp "));
    daemon.wait_for_others(0);
    asking.args(by_client.expect("one").split(' '));
    asking.env("BLOCKCHAIN_TCP_SERVER", daemon.address.to_string());
    assert_eq!(asking.output().expect("it runs").stdout, b"1\n");
    let by_hand = examples
        .lines()
        .find_map(|line| line.strip_prefix(".Dl blockchain-tcpd "))
        .expect("one");
    let mut command = program();
    command.args(by_hand.split(' '));
    Daemon::run(command).stop();
}

/// All but the addresses, which are the socket units' affair, are there and commented out with their defaults.
#[test]
fn the_settings_file_of_the_package_has_every_setting_with_its_default() {
    let settings = include_str!("../packaging/debian/blockchain-tcpd.default");
    let mut lines = settings
        .lines()
        .filter_map(|line| line.strip_prefix("#BLOCKCHAIN_TCPD_"));
    let settings_of_ours = FLAGS
        .iter()
        .filter(|(flag, ..)| !["--listen", "--http"].contains(flag));
    for (flag, _, default) in settings_of_ours {
        let (name, value) = lines
            .next()
            .and_then(|line| line.split_once('='))
            .expect(flag);
        assert_eq!(format!("BLOCKCHAIN_TCPD_{name}"), variable_of(flag));
        if let Some(default) = default {
            assert_eq!(value, *default);
        }
    }
    assert_eq!(lines.next(), None);
    let set = settings
        .lines()
        .find(|line| !line.is_empty() && !line.starts_with('#'));
    assert_eq!(set, None, "only comments");
}
