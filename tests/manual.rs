//! The manual page and the settings file of the package, held against the program: nothing is missing, nothing is made up.

use std::collections::BTreeSet;
use std::process::Command;

use shared::command::{SETS, sets};

use crate::nc::shell;
use crate::protocol::words_of_the_document;
use crate::settings::{flags, variable_of};
use crate::support::{CLIENT, Daemon, assert_contains, installed_for_part, program};

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
    let option = line.split("  ").next().unwrap_or_default();
    let option = option.replace("...", "");
    let words = option.split_whitespace();
    let words = words.map(|word| match word.strip_prefix("--") {
        Some(long) => format!("Fl \\-{long}"),
        None if word.starts_with('-') => format!("Fl {} ,", word.trim_matches(['-', ','])),
        None => format!("Ar {}", word.trim_matches(['<', '>']).to_lowercase()),
    });
    words.collect::<Vec<_>>().join(" ")
}

#[test]
fn the_options_are_those_of_the_program_with_variables_and_defaults() {
    let synopsis = section("SYNOPSIS");
    let documented = items(section("OPTIONS"));
    assert_eq!(documented.len(), flags().len());
    // In the order of --help.
    for ((item, text), (flag, _, default)) in documented.iter().zip(flags()) {
        let option = flag.replacen("--", "Fl \\-", 1);
        let (option, unit) = (
            format!("{option} Ar "),
            item.strip_prefix(&format!("{option} Ar ")),
        );
        let (unit, variable) = unit.and_then(|rest| rest.split_once(" , Ev ")).expect(item);
        assert_eq!(variable, variable_of(flag));
        assert_contains(synopsis, &format!(".Op {option}{unit}\n"));
        let (_, said) = text.split_once("Default:").expect("a default");
        for default in default.unwrap_or_default().split_whitespace() {
            assert_contains(said, &format!(".Ql {default}"));
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
fn the_words_of_the_protocol_are_its_commands_and_errors() {
    let items = items(section("PROTOCOL"));
    let words = items
        .iter()
        .filter_map(|(item, _)| item.strip_prefix("Ql ")?.split(' ').next());
    let commands = sets::all().map(|command| command.name);
    let errors = words_of_the_document().into_iter();
    let mut expected: Vec<&str> = commands.chain(errors).collect();
    let mut words: Vec<&str> = words.collect();
    words.sort_unstable();
    expected.sort_unstable();
    assert_eq!(words, expected);
}

#[test]
fn the_exit_statuses_are_those_of_the_program() {
    let documented = items(section("EXIT STATUS"));
    let documented = documented
        .iter()
        .map(|(item, _)| item.parse().expect("a number"));
    let table = include_str!("../src/error.rs").split_once("pub fn exit_status");
    let table = table
        .expect("it is there")
        .1
        .split("\n    }\n")
        .next()
        .unwrap_or_default();
    let arms = table.split("=> ").skip(1);
    let returned = arms.filter_map(|arm| arm.split([',', '\n']).next()?.trim().parse().ok());
    let returned: BTreeSet<u8> = returned.chain([0]).collect();
    assert_eq!(documented.collect::<BTreeSet<u8>>(), returned);
}

#[test]
fn its_examples_do_what_they_are_for() {
    let daemon = Daemon::start(["--max-clients", "4"]);
    let examples = |beginning: &'static str| {
        let lines = section("EXAMPLES").lines();
        lines.filter_map(move |line| line.strip_prefix(beginning))
    };
    assert_eq!(examples("printf ").count(), 5);
    for line in examples("printf ") {
        let line = format!("printf {}", line.replace("\\e", "\\"));
        let (_, netcat) = line.split_once("| ").expect("a netcat");
        let netcat = netcat.split(' ').next().expect("its name");
        if installed_for_part(netcat) {
            daemon.wait_for_others(0);
            assert_eq!(shell(&line, netcat, &daemon), "1\n", "{line}");
        }
    }
    daemon.wait_for_others(0);
    let mut client = Command::new(CLIENT.as_str());
    let arguments = examples(".Dl blockchain-tcp ").next().expect("one");
    client.args(arguments.split(' '));
    client.env("BLOCKCHAIN_TCP_SERVER", daemon.address.to_string());
    assert_eq!(client.output().expect("it runs").stdout, b"1\n");
    let mut command = program();
    let arguments = examples(".Dl blockchain-tcpd ").next().expect("one");
    command.args(arguments.split(' '));
    Daemon::run(command).stop();
}

/// All but the addresses, which are the socket units' affair, are there and commented out with their defaults.
#[test]
fn the_settings_file_of_the_package_has_every_setting_with_its_default() {
    let settings = include_str!("../packaging/debian/blockchain-tcpd.default");
    let is_set = |line: &str| !line.is_empty() && !line.starts_with('#');
    assert_eq!(settings.lines().find(|line| is_set(line)), None);
    let lines = settings.lines();
    let mut lines = lines.filter_map(|line| line.strip_prefix('#')?.split_once('='));
    let mut next = || lines.find(|(name, _)| name.starts_with("BLOCKCHAIN_TCPD_"));
    for (flag, _, default) in flags() {
        if !["--listen", "--http"].contains(&flag) {
            let (name, value) = next().expect(flag);
            assert_eq!(name, variable_of(flag));
            assert_eq!(value, default.unwrap_or(value));
        }
    }
    assert_eq!(next(), None);
}
