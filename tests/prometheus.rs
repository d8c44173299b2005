//! What watches the daemon: the examples for Prometheus and the blackbox exporter, the rules, the dashboard, their documents.
//!
//! Which names there are and who uses them is in `names`, the dashboard and its drawing in `dashboard`, a whole run with
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
    let mut names: Vec<String> = entries
        .map(|entry| entry.expect("an entry").file_name())
        .map(|name| name.to_string_lossy().into_owned())
        .collect();
    names.sort();
    assert!(!names.is_empty(), "{within}");
    names
}

/// A copy of the examples that may be changed.
fn copied() -> Scratch {
    let scratch = Scratch::new();
    for within in ["", "rules", "tests"] {
        let (from, to) = (folder().join(within), scratch.path().join(within));
        fs::create_dir_all(&to).expect("a folder");
        for name in listed(within) {
            if from.join(&name).is_file() {
                fs::copy(from.join(&name), to.join(&name)).expect("copied");
            }
        }
    }
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

/// A rule, of an alert or of a recording.
struct Rule {
    alerts: bool,
    name: String,
    expression: String,
    /// All of it, as it is written.
    text: String,
}

/// The rules of a file, read by their indentation: whether it is YAML at all is promtool's to say.
fn rules(file: &str) -> Vec<Rule> {
    let text = read(&format!("packaging/prometheus/rules/{file}"));
    let mut rules: Vec<Rule> = Vec::new();
    let mut in_expression = false;
    for line in text.lines() {
        let trimmed = line.trim_start();
        let indentation = line.len() - trimmed.len();
        if trimmed.starts_with('#') || trimmed.is_empty() {
            continue;
        }
        let begins = trimmed.strip_prefix("- ").filter(|_| indentation == 6);
        if let Some((kind, name)) = begins.and_then(|begins| begins.split_once(": ")) {
            assert!(["alert", "record"].contains(&kind), "{line}");
            let (name, text) = (name.to_string(), String::new());
            let (alerts, expression) = (kind == "alert", String::new());
            in_expression = false;
            rules.push(Rule {
                alerts,
                name,
                expression,
                text,
            });
        }
        let Some(rule) = rules.last_mut().filter(|_| indentation >= 6) else {
            continue;
        };
        rule.text += &format!("{trimmed}\n");
        if indentation == 8 {
            in_expression = trimmed.starts_with("expr:");
        }
        if in_expression {
            let part = trimmed.trim_start_matches("expr:").trim();
            rule.expression += &format!("{} ", part.trim_start_matches(">-"));
        }
    }
    assert!(rules.len() > 10, "{file}");
    for rule in &rules {
        assert!(!rule.expression.trim().is_empty(), "{}", rule.name);
    }
    rules
}

fn alerts() -> BTreeSet<String> {
    let alerts = rules("alerts.yml").into_iter().filter(|rule| rule.alerts);
    alerts.map(|rule| rule.name).collect()
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

/// The list of servers is read by Prometheus when it runs, and by nobody before.
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
    let tests = listed("tests");
    let mut arguments = vec!["test", "rules"];
    arguments.extend(tests.iter().map(String::as_str));
    let (good, said) = promtool(&folder().join("tests"), &arguments);
    assert!(good, "{said}");
    assert_eq!(said.matches("SUCCESS").count(), tests.len(), "{said}");

    // They do notice.
    let copy = copied();
    change(&copy.path().join("rules/alerts.yml"), |text| {
        text.replace("> 0.9\n", "> 0.95\n")
    });
    let (good, said) = promtool(
        &copy.path().join("tests"),
        &["test", "rules", "saturation.yml"],
    );
    assert!(!good && said.contains("BlockchainTcpdNearLimit"), "{said}");
}

/// The rules with each range made this much longer, `[5m]` being `[300001ms]` for 1.
fn with_ranges_longer(text: &str, by: i64) -> String {
    let mut parts = text.split('[');
    let mut longer = parts.next().unwrap_or_default().to_string();
    for part in parts {
        let range = part.split_once(']').and_then(|(range, rest)| {
            let unit = match range.chars().last()? {
                'm' => 60_000,
                'h' => 3_600_000,
                'd' => 86_400_000,
                _ => return None,
            };
            let count: i64 = range[..range.len() - 1].parse().ok()?;
            Some((count * unit + by, rest))
        });
        match range {
            Some((range, rest)) => longer.push_str(&format!("[{range}ms]{rest}")),
            None => longer.push_str(&format!("[{part}")),
        }
    }
    longer
}

/// Prometheus 3 leaves a sample out that is exactly as old as the range is long, Prometheus 2 counts it. A range that is
/// a millisecond shorter is to the one what it is to the other.
#[test]
fn no_expectation_hangs_on_a_sample_as_old_as_its_range() {
    needs!("promtool");
    let (_, version) = promtool(&folder(), &["--version"]);
    let by = if version.contains("version 2.") {
        -1
    } else {
        1
    };
    let copy = copied();
    for name in listed("rules") {
        let file = copy.path().join("rules").join(name);
        change(&file, |text| with_ranges_longer(text, by));
    }
    let tests = listed("tests");
    let mut arguments = vec!["test", "rules"];
    arguments.extend(tests.iter().map(String::as_str));
    let (good, said) = promtool(&copy.path().join("tests"), &arguments);
    assert!(good, "{said}");
}

/// The alerts that the unit tests see firing, and those that they see quiet.
fn tested() -> (BTreeSet<String>, BTreeSet<String>) {
    let (mut firing, mut quiet) = (BTreeSet::new(), BTreeSet::new());
    for name in listed("tests") {
        let text = read(&format!("packaging/prometheus/tests/{name}"));
        let mut asked = None;
        for line in text.lines().map(str::trim) {
            if let Some((_, rest)) = line.split_once("ALERTS{alertname=\"") {
                asked = rest.split('"').next().map(str::to_string);
            } else if let Some(samples) = line.strip_prefix("exp_samples:")
                && let Some(alert) = asked.take()
            {
                let seen = if samples.contains("[]") {
                    &mut quiet
                } else {
                    &mut firing
                };
                seen.insert(alert);
            }
        }
    }
    (firing, quiet)
}

#[test]
fn each_alert_is_documented_and_tested_both_ways() {
    let (firing, mut quiet) = tested();
    // It is what it is for that this one always fires.
    assert!(quiet.insert("Watchdog".to_string()));
    let alerts = alerts();
    assert_eq!(firing, alerts);
    assert_eq!(quiet, alerts);

    let document = read("docs/alerts.md");
    let sections = document.split("\n## ").skip(1);
    let sections: Vec<(&str, &str)> = sections
        .map(|section| section.split_once('\n').expect("a heading and a text"))
        .collect();
    let documented: BTreeSet<String> = sections.iter().map(|(name, _)| name.to_string()).collect();
    assert_eq!(documented, alerts);
    assert_eq!(sections.len(), documented.len(), "one twice");

    for rule in rules("alerts.yml").into_iter().filter(|rule| rule.alerts) {
        let (name, text) = (rule.name, rule.text);
        let line = |key: &str| text.lines().find_map(|line| line.strip_prefix(key));
        let severity = line("severity: ").unwrap_or_else(|| panic!("{name} has no severity"));
        let (_, section) = sections
            .iter()
            .find(|(documented, _)| *documented == name)
            .expect("documented");
        match severity {
            "page" => assert!(section.contains("\nPage"), "{name}"),
            "ticket" => assert!(section.contains("icket"), "{name}"),
            other => assert_eq!((other, name.as_str()), ("none", "Watchdog")),
        }
        // What two rules of the same alert say of it is written once.
        if !text.contains("annotations: *") {
            assert!(line("summary: ").is_some(), "{name} has no summary");
            let manual = "/usr/share/doc/blockchain-tcpd/alerts.md.";
            let refers = format!("See {name} in {manual}");
            let said: Vec<&str> = text.split_whitespace().collect();
            assert!(said.join(" ").contains(&refers), "{name}");
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
        let shapes = of_it.map(|rule| {
            rule.text
                .replace(&format!("_{window}"), "_WINDOW")
                .replace(&format!("[{window}]"), "[WINDOW]")
        });
        shapes.collect()
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
        let [
            objective,
            long,
            short,
            rate,
            failing,
            share,
            noticed,
            alert,
            severity,
        ] = row[..]
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
        assert!(
            (seconds - waited).abs() < waited * 0.01,
            "{row:?}: {waited}"
        );
        let rule = rules.iter().find(|rule| rule.name == alert);
        let rule = rule.unwrap_or_else(|| panic!("{alert}"));
        assert!(rule.text.contains(&format!("severity: {severity}\n")));
        let objective = objective.trim_end_matches(" %");
        for window in [long, short] {
            let compares = ["\"90|99[.]95\"", &format!("\"{objective}\"")]
                .iter()
                .any(|value| {
                    ["=", "=~"].iter().any(|sign| {
                        let burns = format!("burn_rate_{window}{{slo{sign}{value}}} > {rate} ");
                        rule.expression.contains(&burns)
                    })
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
