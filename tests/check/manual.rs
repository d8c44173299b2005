//! The plugin's manual page, held against the program: nothing is missing, nothing is made up, and the examples run.

use std::collections::BTreeSet;

use super::{ID, check, check_at, start, timed};
use crate::client::manual::{defaults, options};
use crate::manual::{items, section_of};
use crate::support::{Client, Daemon};

const MANUAL: &str = include_str!("../../man/check_blockchain_tcp.8");

pub fn section(name: &str) -> &'static str {
    section_of(MANUAL, name)
}

/// A line of the plugin without what differs from one time to the next: times, and the id.
fn shape(line: &str) -> String {
    let (text, figures) = line.split_once(" | ").expect("figures");
    let words = text.split(' ').map(|word| match word {
        ID => "UUID",
        word if word.starts_with("0.") => "TIME",
        word => word,
    });
    let words: Vec<&str> = words.collect();
    format!("{} | {}", words.join(" "), timed(figures).1)
}

#[test]
fn every_option_is_in_it_with_its_default_and_no_other() {
    let help = check("--help").lines;
    let options: BTreeSet<String> = options(&help.join("\n")).into_iter().collect();
    assert!(options.contains("Fl \\-id Ar uuid") && options.len() > 10);
    let documented = items(section("OPTIONS"));
    let names = documented.iter().map(|(item, _)| (*item).to_string());
    let names: BTreeSet<String> = names.collect();
    assert_eq!(names.len(), documented.len(), "each once");
    assert_eq!(names, options);
    // The defaults, in the order of both.
    assert_eq!(
        defaults(section("OPTIONS"), "Default:\n.Ql ", ' '),
        defaults(&help.join(" "), "[default: ", ']')
    );
    let synopsis = section("SYNOPSIS");
    for name in names {
        let flag = name.split([' ', ',']).nth(1).expect("a flag");
        let there = synopsis.split_whitespace().any(|word| word == flag);
        assert!(there, "{flag} is not in the synopsis");
    }
}

#[test]
fn every_form_of_a_range_is_one() {
    let daemon = start();
    let forms = items(section("THRESHOLDS"));
    assert_eq!(forms.len(), 5);
    for (item, _) in forms {
        let range = item.trim_start_matches("Ql ").replace("\\&", "");
        let outcome = check_at(&daemon, &format!("-W {range}"));
        let shown = format!(" clients=1;{range};;1");
        assert!(outcome.parts().1.ends_with(&shown), "{outcome:?}");
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
        .filter(|line| !line.contains("--users"))
        .collect();
    assert_eq!(examples.len(), 4);
    for example in examples {
        let arguments = example
            .strip_prefix("-H ledger.example.org")
            .expect("the server of the examples");
        let outcome = check_at(&daemon, arguments);
        assert_eq!(outcome.status, 0, "{example}: {outcome:?}");
        assert!(outcome.parts().0.contains(ID));
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
    assert_eq!(outcome.status, 0);
    let really = shape(&outcome.lines[0]);
    assert_eq!(really, shape(shown.lines().next().expect("a line").trim()));
    let in_manual = section("OUTPUT")
        .lines()
        .find(|line| line.starts_with("BLOCKCHAIN-TCP "));
    assert_eq!(really, shape(in_manual.expect("a line")));
}
