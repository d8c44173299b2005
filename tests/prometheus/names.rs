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
        let mut rest = expression;
        while let Some(start) = rest.find(is_name) {
            let end = rest[start..].find(|c| !is_name(c));
            let (word, after) = rest[start..].split_at(end.unwrap_or(rest.len() - start));
            rest = after.trim_start();
            match word {
                "by" | "without" | "on" | "ignoring" | "group_left" | "group_right" => {
                    rest = rest.split_once(')').ok_or("no )")?.1;
                }
                "and" | "or" | "unless" | "bool" | "offset" => {}
                number if number.starts_with(|c: char| c.is_ascii_digit()) => {}
                // An aggregation has its `by` before what it aggregates.
                _ if rest.starts_with('(') || rest.starts_with("by ") => {}
                name => {
                    let known = self.0.get(name);
                    let known = known.ok_or_else(|| format!("no such metric: {name}"))?;
                    used.insert(name.to_string());
                    if let Some(labels) = rest.strip_prefix('{') {
                        let (matchers, after) = labels.split_once('}').ok_or("no }")?;
                        known
                            .check(matchers)
                            .map_err(|why| format!("{name}: {why}"))?;
                        rest = after;
                    }
                    // A range, such as [5m].
                    if let Some(range) = rest.strip_prefix('[') {
                        rest = range.split_once(']').ok_or("no ]")?.1;
                    }
                }
            }
        }
        if used.is_empty() && !expression.contains("vector(") {
            return Err(format!("it uses nothing: {expression}"));
        }
        Ok(used)
    }
}

impl Known {
    /// What is wrong with these labels and values, if anything.
    fn check(&self, matchers: &str) -> Result<(), String> {
        for matcher in matchers.split(',').map(str::trim) {
            let end = matcher.find(|c: char| !is_name(c)).unwrap_or(0);
            let (label, value) = matcher.split_at(end);
            if !self.labels.contains(label) {
                return Err(format!("no label {label}"));
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
                    _ => self.values.contains(value),
                };
                if !may_be {
                    return Err(format!("{label} is never {value}"));
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

#[test]
fn what_is_not_documented_is_found() {
    let names = Names::known();
    for good in [
        "sum by (le) (rate(blockchain_tcpd_request_duration_seconds_bucket{le=\"0.1\"}[5m])) > 1e-3",
        "blockchain_tcpd_connections_refused_total{reason=~\"full|address\", job=~\"$job\"} offset 5m",
        "up{job=\"blockchain-tcpd\"} == 0",
        "vector(1)",
    ] {
        let used = names.used_by(good);
        assert!(used.is_ok(), "{good}: {used:?}");
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
            let by_it = names.used_by(&rule.expression);
            used.extend(by_it.unwrap_or_else(|error| panic!("{}: {error}", rule.name)));
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
        for series in text.split("series: '").skip(1) {
            let series = series.split('\'').next().expect("a series");
            let (name, labels) = series.split_once('{').expect("labels");
            // A target may be anything, also one with another objective or of Prometheus itself; so may the name of a cluster.
            let any = "job= instance= slo= command= name= le=\"+Inf\"";
            let is_own = |label: &&str| !any.split(' ').any(|any| label.starts_with(any));
            let labels = labels.trim_end_matches('}').split(", ");
            let labels: Vec<&str> = labels.filter(is_own).collect();
            let asked = format!("{name}{{{}}}", labels.join(", ")).replace("{}", "");
            let used = names.used_by(&asked);
            used.unwrap_or_else(|error| panic!("{file}: {error}"));
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
