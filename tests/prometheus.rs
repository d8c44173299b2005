//! What watches the daemon: the examples for Prometheus and the blackbox exporter, the rules, the dashboard, their documents.
//!
//! Which names there are and where they are used is in `names`, the dashboard and its drawing in `dashboard`, a whole run with
//! a real Prometheus in `watched`.

mod dashboard;
mod names;
mod watched;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{Scratch, clean};

/// Where the examples are.
fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/prometheus")
}

fn read(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{file}: {error}"))
}

/// The names of the files of a folder of the examples, in their order.
fn listed(within: &str) -> Vec<String> {
    let entries = fs::read_dir(folder().join(within)).expect("a folder");
    let names = entries.map(|entry| entry.expect("an entry").file_name().into_string());
    let mut names: Vec<String> = names.map(|name| name.expect("UTF-8")).collect();
    names.sort();
    assert!(!names.is_empty(), "{within}");
    names
}

/// A copy of the examples that may be changed.
fn copied() -> Scratch {
    let scratch = Scratch::new();
    let mut copy = Command::new("cp");
    copy.arg("-r").arg(folder().join(".")).arg(scratch.path());
    assert!(copy.status().expect("cp runs").success());
    scratch
}

/// Changes a file by this, which must make a difference.
fn change(file: &Path, by: impl FnOnce(&str) -> String) {
    let before = fs::read_to_string(file).expect("a file");
    let after = by(&before);
    assert_ne!(before, after, "{}", file.display());
    fs::write(file, after).expect("written");
}

/// Runs a program to its end: whether it succeeded, and all that it said.
fn run(mut command: Command) -> (bool, String) {
    let output = command.output().expect("it runs");
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    (output.status.success(), said)
}

/// What promtool says of the files of this folder, when asked so.
fn promtool(within: &Path, arguments: &[&str]) -> (bool, String) {
    let mut command = clean("promtool");
    command.current_dir(within).args(arguments);
    run(command)
}

/// The unit tests of the rules in this folder.
fn unit_tests(within: &Path) -> (bool, String) {
    let tests = listed("tests");
    let arguments = ["test", "rules"].into_iter();
    let arguments: Vec<&str> = arguments.chain(tests.iter().map(String::as_str)).collect();
    promtool(&within.join("tests"), &arguments)
}

/// A rule, of an alert or of a recording.
struct Rule {
    alerts: bool,
    name: String,
    expression: String,
    /// All of it, without indentation.
    text: String,
}

impl Rule {
    /// The rule that stands in this text, behind its hyphen.
    fn of(text: &str) -> Self {
        let (kind, rest) = text.split_once(": ").expect("a kind");
        assert!(["alert", "record"].contains(&kind), "{text}");
        let (name, _) = rest.split_once('\n').expect("a name");
        let (_, expression) = text.split_once("\n        expr:").expect("an expression");
        let mut lines = expression.lines();
        let first = lines.next().map(|line| line.trim_start_matches(" >-"));
        let more = lines.take_while(|line| line.starts_with("          "));
        let expression: Vec<&str> = first.into_iter().chain(more).map(str::trim).collect();
        let lines = text
            .lines()
            .map(|line| line.trim_start().to_string() + "\n");
        Rule {
            alerts: kind == "alert",
            name: name.to_string(),
            expression: expression.join(" "),
            text: lines.collect(),
        }
    }

    /// What follows this at the start of a line.
    fn line(&self, start: &str) -> Option<&str> {
        self.text.lines().find_map(|line| line.strip_prefix(start))
    }
}

/// The rules of a file, read by their indentation: whether it is YAML at all is promtool's to say.
fn rules(file: &str) -> Vec<Rule> {
    let text = read(&format!("packaging/prometheus/rules/{file}"));
    let lines = text.lines().map(str::trim_end);
    let lines = lines.filter(|line| !line.is_empty() && !line.trim_start().starts_with('#'));
    let text = lines.collect::<Vec<&str>>().join("\n");
    let groups = text.split("\n  - name: ").skip(1);
    let rules = groups.flat_map(|group| group.split("\n      - ").skip(1));
    let rules: Vec<Rule> = rules.map(Rule::of).collect();
    assert!(rules.len() > 10, "{file}");
    rules
}

#[test]
fn the_examples_are_well_formed() {
    needs!("promtool", "prometheus-blackbox-exporter");
    let check = ["check", "config", "prometheus.yml"];
    let (good, said) = promtool(&folder(), &check);
    assert!(good, "{said}");
    assert!(!said.to_lowercase().contains("warning"), "{said}");
    for name in listed("rules") {
        let (good, said) = promtool(&folder().join("rules"), &["check", "rules", &name]);
        assert!(good, "{said}");
    }

    // What is left to choose is well-formed, too.
    let copy = copied();
    for name in ["prometheus.yml", "servers.yml"] {
        change(&copy.path().join(name), |text| {
            let lines = text.lines().map(|line| match line.trim_start() {
                chosen if chosen.starts_with("#-") => line.replacen("#-", "-", 1),
                chosen if chosen.starts_with("#  ") => line.replacen('#', "", 1),
                _ => line.to_string(),
            });
            lines.map(|line| line + "\n").collect()
        });
    }
    let (good, said) = promtool(copy.path(), &check);
    assert!(good, "{said}");
    // The check does look.
    change(&copy.path().join("rules/slo.yml"), |text| {
        text.replacen("vector(0.1)", "vector(0.1", 1)
    });
    let (good, said) = promtool(copy.path(), &check);
    assert!(!good, "{said}");

    let (good, said) = blackbox_says_of(&folder().join("blackbox.yml"));
    assert!(good, "{said}");
    change(&copy.path().join("blackbox.yml"), |text| {
        text.replace("query_response", "query_responses")
    });
    let (good, said) = blackbox_says_of(&copy.path().join("blackbox.yml"));
    assert!(!good, "{said}");
}

fn blackbox_says_of(file: &Path) -> (bool, String) {
    let mut command = clean("prometheus-blackbox-exporter");
    command.arg("--config.check").arg("--config.file").arg(file);
    run(command)
}

/// The list of servers is read by Prometheus only when it runs.
#[test]
fn the_objectives_in_the_list_of_servers_are_known_ones() {
    let servers = read("packaging/prometheus/servers.yml");
    let objectives = servers
        .lines()
        .filter_map(|line| line.trim_start_matches('#').trim().strip_prefix("slo: "));
    let objectives: BTreeSet<&str> = objectives.collect();
    let budgets = rules("slo.yml");
    for objective in objectives {
        let known = budgets.iter().any(|rule| {
            rule.name == "blockchain_tcpd:budget_ratio"
                && rule.text.contains(&format!("slo: {objective}\n"))
        });
        assert!(known, "{objective}");
    }
}

#[test]
fn each_alert_fires_when_it_should_and_not_otherwise() {
    needs!("promtool");
    let (good, said) = unit_tests(&folder());
    assert!(good, "{said}");
    assert_eq!(said.matches("SUCCESS").count(), listed("tests").len());

    // They do notice.
    let copy = copied();
    change(&copy.path().join("rules/alerts.yml"), |text| {
        text.replace("> 0.9\n", "> 0.95\n")
    });
    let (good, said) = unit_tests(copy.path());
    assert!(!good && said.contains("BlockchainTcpdNearLimit"), "{said}");
}

/// The rules with each range made this much longer, `[5m]` being `[300001ms]` for 1.
fn with_ranges_longer(text: &str, by: i64) -> String {
    let mut parts = text.split('[');
    let first = parts.next().unwrap_or_default().to_string();
    parts.fold(first, |longer, part| match part.split_once(']') {
        Some((range, rest)) if range.ends_with(['m', 'h', 'd']) => {
            let range = (hours(range) * 3_600_000.0).round() as i64 + by;
            format!("{longer}[{range}ms]{rest}")
        }
        _ => format!("{longer}[{part}"),
    })
}

/// Prometheus 3 leaves a sample out that is exactly as old as the range is long, Prometheus 2 counts it. A range that is
/// a millisecond shorter is to the one what it is to the other.
#[test]
fn no_expectation_hangs_on_a_sample_as_old_as_its_range() {
    needs!("promtool");
    let (_, version) = promtool(&folder(), &["--version"]);
    let by = [1, -1][usize::from(version.contains("version 2."))];
    let copy = copied();
    for name in listed("rules") {
        let file = copy.path().join("rules").join(name);
        change(&file, |text| with_ranges_longer(text, by));
    }
    let (good, said) = unit_tests(copy.path());
    assert!(good, "{said}");
}

/// The alerts that the unit tests see firing (true), and those that they see quiet.
fn tested() -> BTreeSet<(bool, String)> {
    let mut tested = BTreeSet::new();
    for name in listed("tests") {
        let text = read(&format!("packaging/prometheus/tests/{name}"));
        for query in text.split("ALERTS{alertname=\"").skip(1) {
            let (alert, rest) = query.split_once('"').expect("an alert");
            let (_, samples) = rest.split_once("exp_samples:").expect("samples");
            let quiet = samples
                .lines()
                .next()
                .is_some_and(|line| line.contains("[]"));
            tested.insert((!quiet, alert.to_string()));
        }
    }
    tested
}

#[test]
fn each_alert_is_documented_and_tested_both_ways() {
    let alerts = rules("alerts.yml").into_iter().filter(|rule| rule.alerts);
    let alerts: Vec<Rule> = alerts.collect();
    let names: BTreeSet<String> = alerts.iter().map(|rule| rule.name.clone()).collect();
    let mut tested = tested();
    // This one always fires, which is its purpose.
    assert!(tested.insert((false, "Watchdog".to_string())));
    let both = names
        .iter()
        .flat_map(|name| [(true, name.clone()), (false, name.clone())]);
    assert_eq!(tested, both.collect());

    let document = read("docs/alerts.md");
    let sections = document.split("\n## ").skip(1);
    let sections: Vec<(&str, &str)> = sections
        .map(|section| section.split_once('\n').expect("a heading and a text"))
        .collect();
    let documented: BTreeSet<String> = sections.iter().map(|(name, _)| name.to_string()).collect();
    assert_eq!(documented, names);
    assert_eq!(sections.len(), documented.len(), "one twice");

    for rule in alerts {
        let name = &rule.name;
        let section = sections.iter().find(|(documented, _)| documented == name);
        let (_, section) = section.expect("documented");
        match rule.line("severity: ").expect(name) {
            "page" => assert!(section.contains("\nPage"), "{name}"),
            "ticket" => assert!(section.contains("icket"), "{name}"),
            other => assert_eq!((other, &**name), ("none", "Watchdog")),
        }
        // What two rules of the same alert say of it is written once.
        if !rule.text.contains("annotations: *") {
            assert!(rule.line("summary: ").is_some(), "{name} has no summary");
            let manual = "/usr/share/doc/blockchain-tcpd/alerts.md.";
            let words: Vec<&str> = rule.text.split_whitespace().collect();
            let refers = format!("See {name} in {manual}");
            assert!(words.join(" ").contains(&refers), "{name}");
        }
    }
}

#[test]
fn the_rules_of_all_windows_are_alike() {
    let rules = rules("slo.yml");
    // Those that record something of this window, with the window's name in the place of its length.
    let shape = |window: &str| -> Vec<String> {
        let end = format!("_{window}");
        let of_it = rules.iter().filter(|rule| rule.name.ends_with(&end));
        let without = |rule: &Rule| {
            let text = rule.text.replace(&end, "_WINDOW");
            text.replace(&format!("[{window}]"), "[WINDOW]")
        };
        of_it.map(without).collect()
    };
    for alike in [&["5m", "10m", "30m", "1h", "2h", "6h"][..], &["3d", "30d"]] {
        let first = shape(alike[0]);
        assert_eq!(first.len(), 5, "{alike:?}");
        for window in alike {
            assert_eq!(shape(window), first, "{window}");
        }
    }
}

/// So many hours, of `5m`, `6h`, `3d`.
fn hours(window: &str) -> f64 {
    let (number, unit) = window.split_at(window.len() - 1);
    let number: f64 = number.parse().expect("a number");
    match unit {
        "m" => number / 60.0,
        "h" => number,
        "d" => number * 24.0,
        other => panic!("{other}"),
    }
}

/// The number that a cell begins with.
fn number(cell: &str) -> f64 {
    let number = cell.split(' ').next().unwrap_or_default();
    number.parse().unwrap_or_else(|_| panic!("{cell:?}"))
}

#[test]
fn the_rates_in_the_document_are_those_of_the_rules_and_can_occur() {
    let document = read("docs/slo.md");
    let rows = document
        .lines()
        .filter(|line| line.contains(" | Blockchain"));
    let rows: Vec<Vec<&str>> = rows
        .map(|row| row.trim_matches('|').split('|').map(str::trim).collect())
        .collect();
    let near = |a: f64, b: f64| (a - b).abs() < 0.01 * b;
    let rules = rules("alerts.yml");
    for row in &rows {
        let &[
            objective,
            long,
            short,
            rate,
            failing,
            share,
            noticed,
            alert,
            severity,
        ] = &row[..]
        else {
            panic!("{row:?}");
        };
        let (budget, rate) = (100.0 - number(objective), number(rate));
        assert!(near(number(failing), rate * budget), "{row:?}");
        assert!(number(failing) < 100.0, "it could never fire: {row:?}");
        assert!(near(number(share), rate * hours(long) / 7.2), "{row:?}");
        // The short window is a twelfth of the long one, and never what is waited for.
        assert!(near(hours(long) / hours(short), 12.0), "{row:?}");
        let seconds = number(noticed) * if noticed.ends_with("min") { 60.0 } else { 1.0 };
        let waited = rate * budget / 100.0 * hours(long) * 3600.0;
        assert!(near(seconds, waited), "{row:?}: {waited}");
        let rule = rules.iter().find(|rule| rule.name == alert).expect(alert);
        assert_eq!(rule.line("severity: "), Some(severity));
        let objective = objective.trim_end_matches(" %");
        for window in [long, short] {
            let one = format!("slo=\"{objective}\"");
            let compares = [&one, "slo=~\"90|99[.]95\""].iter().any(|slo| {
                let burns = format!("burn_rate_{window}{{{slo}}} > {rate} ");
                rule.expression.contains(&burns)
            });
            assert!(compares, "{row:?}: {}", rule.expression);
        }
    }
    assert_eq!(rows.len(), 6);
    // And there is no pair in the rules that is not in the table: two windows for each row, of which those of BudgetSlow and
    // BudgetDrip are for both objectives.
    let compared = rules
        .iter()
        .map(|rule| rule.expression.matches("burn_rate_").count());
    assert_eq!(compared.sum::<usize>(), 8);
}
