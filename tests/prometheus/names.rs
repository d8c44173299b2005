//! That rules, dashboard and documents use no metric, no label and no value of one that docs/metrics.md doesn't have.

use std::collections::{BTreeMap, BTreeSet};

use super::{listed, read, rules};

/// A metric or a recording, and what may be asked of it.
struct Known {
    labels: BTreeSet<String>,
    /// Of those labels whose values docs/metrics.md names.
    values: BTreeSet<String>,
}

/// All names that may be used.
pub struct Names(BTreeMap<String, Known>);

/// What stands between backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

fn is_name(character: char) -> bool {
    character.is_ascii_alphanumeric() || character == '_' || character == ':'
}

impl Names {
    /// Those of docs/metrics.md, of our recordings, and of what Prometheus and the blackbox exporter add.
    pub fn known() -> Self {
        let mut names = BTreeMap::new();
        let mut add = |name: &str, labels: &[&str], values: &BTreeSet<String>| {
            let labels = labels.iter().map(|label| label.to_string()).collect();
            let values = values.clone();
            names.insert(name.to_string(), Known { labels, values });
        };
        let document = read("docs/metrics.md");
        for row in document.lines().filter(|line| line.starts_with("| `")) {
            let cells: Vec<&str> = row.trim_matches('|').split('|').collect();
            let [name, kind, own, text] = cells[..] else {
                panic!("{row}");
            };
            let name = quoted(name).next().expect("a name");
            let mut labels = vec!["job", "instance", "slo"];
            labels.extend(quoted(own));
            let values = quoted(text).map(str::to_string).collect();
            if kind.trim() == "histogram" {
                add(&format!("{name}_sum"), &labels, &values);
                add(&format!("{name}_count"), &labels, &values);
                labels.push("le");
                add(&format!("{name}_bucket"), &labels, &values);
            } else {
                add(name, &labels, &values);
            }
        }
        let none = BTreeSet::new();
        for name in ["up", "probe_success", "probe_duration_seconds"] {
            add(name, &["job", "instance", "slo"], &none);
        }
        for name in listed("rules") {
            for rule in rules(&name).iter().filter(|rule| !rule.alerts) {
                add(&rule.name, &["instance", "slo", "sli", "seen_by"], &none);
            }
        }
        assert!(names.len() > 40);
        Names(names)
    }

    /// Which names this expression uses, and what is wrong with them.
    pub fn used_by(&self, expression: &str) -> Result<BTreeSet<String>, String> {
        let mut used = BTreeSet::new();
        let mut last: Option<&str> = None;
        let mut rest = expression;
        while let Some(character) = rest.chars().next() {
            if character.is_ascii_digit() {
                // A number, with its exponent or its unit.
                rest = rest.trim_start_matches(|c: char| is_name(c) || c == '.');
            } else if is_name(character) {
                let end = rest.find(|c: char| !is_name(c)).unwrap_or(rest.len());
                let word = &rest[..end];
                rest = rest[end..].trim_start();
                last = None;
                match word {
                    "by" | "without" | "on" | "ignoring" | "group_left" | "group_right" => {
                        rest = past(rest, '(', ')')?.1;
                    }
                    "and" | "or" | "unless" | "bool" | "offset" => {}
                    // An aggregation has its `by` before what it aggregates.
                    _ if rest.starts_with('(') || rest.starts_with("by ") => {}
                    name => {
                        if !self.0.contains_key(name) {
                            return Err(format!("no such metric: {name}"));
                        }
                        used.insert(name.to_string());
                        last = Some(word);
                    }
                }
            } else if character == '{' {
                let (matchers, after) = past(rest, '{', '}')?;
                let name = last.ok_or("labels of nothing")?;
                self.look_at(name, matchers)?;
                rest = after;
            } else if character == '[' {
                rest = past(rest, '[', ']')?.1;
            } else {
                rest = &rest[character.len_utf8()..];
            }
        }
        if used.is_empty() && !expression.contains("vector(") {
            return Err(format!("it uses nothing: {expression}"));
        }
        Ok(used)
    }

    /// Whether this metric has these labels, with these values.
    fn look_at(&self, name: &str, matchers: &str) -> Result<(), String> {
        let known = &self.0[name];
        for matcher in matchers.split(',').map(str::trim) {
            let end = matcher.find(|c: char| !is_name(c)).unwrap_or(0);
            let (label, value) = matcher.split_at(end);
            if !known.labels.contains(label) {
                return Err(format!("{name} has no label {label}"));
            }
            let value = value.trim_start_matches(['=', '~', '!']).trim_matches('"');
            if value.starts_with('$') {
                continue;
            }
            for value in value.split('|') {
                let may_be = match label {
                    "job" => read("packaging/prometheus/prometheus.yml")
                        .contains(&format!("\n  - job_name: {value}\n")),
                    "slo" => ["90", "99.95", "99[.]95"].contains(&value),
                    "sli" => ["availability", "latency"].contains(&value),
                    "seen_by" => ["requests", "probes"].contains(&value),
                    "le" => bounds().contains(value),
                    _ => known.values.contains(value),
                };
                if !may_be {
                    return Err(format!("{name}: {label} is never {value}"));
                }
            }
        }
        Ok(())
    }
}

/// The ends of the buckets, which docs/metrics.md counts up: 1, 2 and 5 of each power of ten from 10 microseconds to 5 seconds.
fn bounds() -> BTreeSet<String> {
    let powers = [1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0];
    let bounds = powers
        .iter()
        .flat_map(|power| [1.0, 2.0, 5.0].map(|by| by * power));
    bounds.map(|bound: f64| bound.to_string()).collect()
}

/// What stands between these brackets, with which the text begins, and what comes after them.
fn past(text: &str, open: char, close: char) -> Result<(&str, &str), String> {
    let within = text
        .trim_start()
        .strip_prefix(open)
        .ok_or_else(|| format!("no {open} in {text}"))?;
    within
        .split_once(close)
        .ok_or_else(|| format!("no {close} in {text}"))
}

#[test]
fn what_is_not_documented_is_found() {
    let names = Names::known();
    for good in [
        "sum by (le) (rate(blockchain_tcpd_request_duration_seconds_bucket{le=\"0.1\"}[5m])) > 1e-3",
        "blockchain_tcpd_connections_refused_total{reason=~\"full|address\", job=~\"$job\"} offset 5m",
        "up{job=\"blockchain-tcpd\"} == 0",
        "vector(1)",
    ] {
        assert!(
            names.used_by(good).is_ok(),
            "{good}: {:?}",
            names.used_by(good)
        );
    }
    for bad in [
        "blockchain_tcpd_client",
        "rate(blockchain_tcpd_request_duration_seconds[5m])",
        "blockchain_tcpd_request_duration_seconds_bucket{le=\"0.15\"}",
        "blockchain_tcpd_connections_refused_total{reason=\"busy\"}",
        "blockchain_tcpd_connections_refused_total{kind=\"full\"}",
        "blockchain_tcpd_requests_total{outcome=~\"internal|broken\"}",
        "up{job=\"blockchain\"}",
        "blockchain_tcpd:burn_rate_4h",
        "sum(1)",
    ] {
        assert!(names.used_by(bad).is_err(), "{bad}");
    }
}

#[test]
fn the_rules_use_only_what_is_documented() {
    let names = Names::known();
    let mut used = BTreeSet::new();
    for file in listed("rules") {
        for rule in rules(&file) {
            match names.used_by(&rule.expression) {
                Ok(by_it) => used.extend(by_it),
                Err(error) => panic!("{}: {error}", rule.name),
            }
        }
    }
    assert!(used.len() > 20, "{used:?}");
}

/// What the unit tests feed to the rules has the names of what is documented; or a rule would be proved on what never is.
#[test]
fn the_unit_tests_feed_only_what_is_documented() {
    let names = Names::known();
    let mut fed = 0;
    for file in listed("tests") {
        let text = read(&format!("packaging/prometheus/tests/{file}"));
        for series in text
            .lines()
            .filter_map(|line| line.split("series: '").nth(1))
        {
            let series = series.split('\'').next().expect("a series");
            let (name, labels) = series.split_once('{').expect("labels");
            // A target may be anything, also one with another objective or of Prometheus itself; so may the name of a cluster.
            let own = labels.trim_end_matches('}').split(", ").filter(|label| {
                let target = [
                    "job=",
                    "instance=",
                    "slo=",
                    "command=",
                    "name=",
                    "le=\"+Inf\"",
                ];
                !target.iter().any(|of_it| label.starts_with(of_it))
            });
            let own: Vec<&str> = own.collect();
            let asked = if own.is_empty() {
                name.to_string()
            } else {
                format!("{name}{{{}}}", own.join(", "))
            };
            if let Err(error) = names.used_by(&asked) {
                panic!("{file}: {error}");
            }
            fed += 1;
        }
    }
    assert!(fed > 50, "{fed}");
}

#[test]
fn the_documents_name_only_what_is_there() {
    let names = Names::known();
    for document in [
        "docs/slo.md",
        "docs/alerts.md",
        "packaging/prometheus/prometheus.yml",
    ] {
        let mut named = 0;
        for word in quoted(&read(document)) {
            let ours = ["blockchain_tcpd_", "blockchain_tcpd:", "process_", "probe_"];
            let module =
                read("packaging/prometheus/blackbox.yml").contains(&format!("  {word}:\n"));
            if ours.iter().any(|start| word.starts_with(start)) && !module {
                assert!(names.0.contains_key(word), "{document}: {word}");
                named += 1;
            }
        }
        assert!(named > 0, "{document}");
    }
}
