//! The plugin's manual page, held against the program: nothing is missing, nothing is made up, and the examples run.

use std::collections::BTreeSet;

use super::{ID, OK, check, check_at, start, timed};
use crate::manual::{as_source, items, section_of};
use crate::support::{Client, Daemon};

const MANUAL: &str = include_str!("../../man/check_blockchain_tcp.8");

fn section(name: &str) -> &'static str {
    section_of(MANUAL, name)
}

/// A line of the plugin without what differs from one time to the next: times, and the id.
fn shape(line: &str) -> String {
    let (text, figures) = line
        .split_once(" | ")
        .unwrap_or_else(|| panic!("no figures: {line}"));
    let words = text.replace(ID, "UUID");
    let words = words
        .split(' ')
        .map(|word| if word.starts_with("0.") { "TIME" } else { word });
    format!(
        "{} | {}",
        words.collect::<Vec<_>>().join(" "),
        timed(figures).1
    )
}

#[test]
fn every_option_is_in_it_with_its_default_and_no_other() {
    let help = check(["--help"]).lines;
    let options: Vec<String> = help
        .iter()
        .map(|line| line.trim_start())
        .filter(|line| line.starts_with('-'))
        .map(as_source)
        .collect();
    assert!(
        options.len() > 10 && options.contains(&"Fl \\-id Ar uuid".to_string()),
        "{options:?}"
    );
    let documented = items(section("OPTIONS"));
    let names: BTreeSet<String> = documented
        .iter()
        .map(|(item, _)| (*item).to_string())
        .collect();
    assert_eq!(names.len(), documented.len(), "each once");
    assert_eq!(names, options.into_iter().collect());
    // The defaults, in the order of both.
    let help = help.join(" ");
    let shown: Vec<&str> = help
        .split("[default: ")
        .skip(1)
        .filter_map(|rest| rest.split(']').next())
        .collect();
    let defaults = documented
        .iter()
        .filter_map(|(_, text)| text.split_once("Default:\n.Ql ")?.1.split(' ').next());
    assert_eq!(defaults.collect::<Vec<_>>(), shown);
    let synopsis = section("SYNOPSIS");
    for name in names {
        let flag = name.split([' ', ',']).nth(1).expect("a flag");
        let there = synopsis.split_whitespace().any(|word| word == flag);
        assert!(there, "{flag} is not in the synopsis");
    }
}

#[test]
fn every_exit_status_is_in_it_with_its_name_and_no_other() {
    let statuses = items(section("EXIT STATUS"));
    let named: Vec<(&str, &str)> = statuses
        .iter()
        .map(|(item, text)| (*item, text.split(':').next().unwrap_or_default()))
        .collect();
    assert_eq!(
        named,
        [
            ("0", "OK"),
            ("1", "WARNING"),
            ("2", "CRITICAL"),
            ("3", "UNKNOWN")
        ]
    );
}

#[test]
fn every_form_of_a_range_is_one() {
    let daemon = start();
    let forms = items(section("THRESHOLDS"));
    assert_eq!(forms.len(), 5);
    for (item, _) in forms {
        let range = item.trim_start_matches("Ql ").replace("\\&", "");
        let outcome = check_at(&daemon, &format!("-W {range}"));
        assert!(
            outcome
                .figures()
                .ends_with(&format!(" clients=1;{range};;1")),
            "{outcome:?}"
        );
    }
}

#[test]
fn its_examples_do_what_they_are_for() {
    let daemon = start();
    let _somebody = daemon.connect();
    daemon.wait_for_others(1);
    let lines = section("EXAMPLES").lines();
    let examples: Vec<&str> = lines
        .filter_map(|line| line.strip_prefix(".Dl check_blockchain_tcp "))
        .collect();
    assert_eq!(examples.len(), 4);
    for example in examples {
        let arguments = example
            .strip_prefix("-H ledger.example.org")
            .expect("the server of the examples");
        let outcome = check_at(&daemon, arguments);
        assert_eq!(outcome.status, OK, "{example}: {outcome:?}");
        assert!(outcome.text().contains(ID));
    }
}

#[test]
fn the_line_is_as_readme_and_manual_show_it() {
    let daemon = Daemon::start(["--max-clients", "16", "--server-id", ID]);
    let _others: Vec<Client> = (0..11).map(|_| daemon.connect()).collect();
    daemon.wait_for_others(11);
    let readme = include_str!("../../README.md");
    let (_, shown) = readme
        .split_once("$ /usr/lib/nagios/plugins/check_blockchain_tcp -H localhost ")
        .expect("it is shown");
    let (arguments, shown) = shown.split_once('\n').expect("what it prints");
    let outcome = check_at(&daemon, arguments);
    assert_eq!(outcome.status, OK);
    let really = shape(&outcome.lines[0]);
    assert_eq!(really, shape(shown.lines().next().expect("a line").trim()));
    let in_manual = section("OUTPUT")
        .lines()
        .find(|line| line.starts_with("BLOCKCHAIN-TCP "));
    assert_eq!(really, shape(in_manual.expect("a line")));
}
