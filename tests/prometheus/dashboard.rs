//! The dashboard, as far as it can be held against Grafana's published schema without a Grafana, and the program that draws it.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::path::Path;
use std::thread;

use serde_json::Value;

use super::names::Names;
use super::{promtool, read, run};
use crate::support::{Scratch, clean};

const FILE: &str = "packaging/grafana/blockchain-tcpd.json";

fn dashboard() -> Value {
    serde_json::from_str(&read(FILE)).expect("JSON")
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key]
        .as_str()
        .unwrap_or_else(|| panic!("no {key} in {value}"))
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key]
        .as_array()
        .unwrap_or_else(|| panic!("no {key} in {value}"))
}

/// The panels that show something.
pub fn panels(dashboard: &Value) -> Vec<&Value> {
    let panels = list(dashboard, "panels").iter();
    panels
        .filter(|panel| text(panel, "type") != "row")
        .collect()
}

#[test]
fn it_has_what_the_schema_asks_of_a_dashboard() {
    let dashboard = dashboard();
    // The last version of the classic form. It is what the fields of this file are written for.
    assert_eq!(dashboard["schemaVersion"], 42);
    let uid = text(&dashboard, "uid");
    assert_eq!(uid, "blockchain-tcpd", "links to it would break");
    assert!((8..=40).contains(&uid.len()));
    // An id is Grafana's to give.
    assert!(dashboard.get("id").is_none());
    assert!(dashboard["editable"].is_boolean() && dashboard["refresh"].is_string());
    assert!((0..=2).contains(&dashboard["graphTooltip"].as_i64().expect("a number")));
    for end in ["from", "to"] {
        assert!(text(&dashboard["time"], end).starts_with("now"));
    }
    let variables = list(&dashboard["templating"], "list");
    let names: Vec<&str> = variables
        .iter()
        .map(|variable| text(variable, "name"))
        .collect();
    assert_eq!(names, ["datasource", "job", "instance"]);
    assert_eq!(text(&variables[0], "type"), "datasource");
    assert_eq!(text(&variables[0], "query"), "prometheus");
    for variable in &variables[1..] {
        assert_eq!(text(variable, "type"), "query");
        assert_eq!(variable["datasource"]["uid"], "${datasource}");
        assert_eq!(variable["query"]["query"], variable["definition"]);
        let (of, _) = text(variable, "definition")
            .trim_start_matches("label_values(")
            .rsplit_once(", ")
            .expect("a metric and a label");
        Names::known().used_by(of).expect("a documented metric");
    }
}

#[test]
fn its_rows_are_in_order_and_no_panel_lies_on_another() {
    let dashboard = dashboard();
    let all = list(&dashboard, "panels");
    let rows = all.iter().filter(|panel| text(panel, "type") == "row");
    let rows: Vec<&str> = rows.map(|row| text(row, "title")).collect();
    let order = [
        "Now",
        "Traffic",
        "Errors",
        "Latency",
        "Computations",
        "Saturation",
        "Error budget",
        "Cluster",
    ];
    assert_eq!(rows, order);
    let mut taken = BTreeSet::new();
    let (mut ids, mut titles) = (BTreeSet::new(), BTreeSet::new());
    let mut bottom = 0;
    for panel in all {
        assert!(ids.insert(panel["id"].as_u64().expect("an id")), "{panel}");
        assert!(titles.insert(text(panel, "title")), "{panel}");
        let place = |key| panel["gridPos"][key].as_u64().expect("a number");
        let (x, y, w, h) = (place("x"), place("y"), place("w"), place("h"));
        assert!(w > 0 && h > 0 && x + w <= 24, "{panel}");
        for cell in (x..x + w).flat_map(|x| (y..y + h).map(move |y| (x, y))) {
            assert!(taken.insert(cell), "{panel} lies on another");
        }
        if text(panel, "type") == "row" {
            assert_eq!((w, h, y), (24, 1, bottom), "{panel}");
            assert!(panel["collapsed"] == false && list(panel, "panels").is_empty());
        }
        bottom = bottom.max(y + h);
    }
}

#[test]
fn each_panel_says_what_it_shows_and_in_which_unit() {
    let units = [
        "none",
        "short",
        "s",
        "bytes",
        "Bps",
        "reqps",
        "cps",
        "percentunit",
    ];
    let dashboard = dashboard();
    assert!(panels(&dashboard).len() > 20);
    for panel in panels(&dashboard) {
        let title = text(panel, "title");
        assert!(
            ["stat", "timeseries"].contains(&text(panel, "type")),
            "{title}"
        );
        let description = text(panel, "description");
        assert!(
            description.len() > 20 && description.ends_with('.'),
            "{title}"
        );
        let defaults = &panel["fieldConfig"]["defaults"];
        assert!(units.contains(&text(defaults, "unit")), "{title}");
        assert!(panel["fieldConfig"]["overrides"].is_array(), "{title}");
        assert!(panel["options"].is_object(), "{title}");
        // The first step has no value and stands for all below the second; the others rise.
        let thresholds = &defaults["thresholds"];
        assert_eq!(text(thresholds, "mode"), "absolute", "{title}");
        let steps = list(thresholds, "steps");
        assert!(!steps.is_empty() && steps[0]["value"].is_null(), "{title}");
        let values: Vec<f64> = steps[1..]
            .iter()
            .map(|step| step["value"].as_f64().expect("a number"))
            .collect();
        assert!(values.is_sorted(), "{title}");
        assert!(
            steps.iter().all(|step| step["color"].is_string()),
            "{title}"
        );
        for mapping in list(defaults, "mappings") {
            assert_eq!(text(mapping, "type"), "value", "{title}");
            assert!(mapping["options"].is_object(), "{title}");
        }
        // A ratio that is shown in seconds, or seconds as a number, would be believed.
        let targets = list(panel, "targets");
        let of_time = targets.iter().all(|target| {
            let expression = text(target, "expr");
            expression.contains("_seconds") && !expression.contains("changes(")
        });
        let of_processors = text(panel, "title") == "Processors";
        assert_eq!(
            of_time && !of_processors,
            text(defaults, "unit") == "s",
            "{title}"
        );
        let letters: BTreeSet<&str> = targets.iter().map(|target| text(target, "refId")).collect();
        assert!(
            !targets.is_empty() && letters.len() == targets.len(),
            "{title}"
        );
        for place in std::iter::once(panel).chain(targets) {
            assert_eq!(text(&place["datasource"], "type"), "prometheus", "{title}");
            assert_eq!(
                text(&place["datasource"], "uid"),
                "${datasource}",
                "{title}"
            );
        }
        for target in targets {
            assert!(!text(target, "legendFormat").is_empty(), "{title}");
            let ranged = text(panel, "type") == "timeseries";
            assert_eq!(target["range"], ranged, "{title}");
            assert_eq!(target["instant"], !ranged, "{title}");
        }
    }
}

#[test]
fn its_expressions_are_good_and_use_only_what_is_documented() {
    let names = Names::known();
    let dashboard = dashboard();
    let mut rules = "groups:\n  - name: panels\n    rules:\n".to_string();
    for panel in panels(&dashboard) {
        for target in list(panel, "targets") {
            let expression = text(target, "expr");
            if let Err(error) = names.used_by(expression) {
                panic!("{}: {error}", text(panel, "title"));
            }
            assert!(
                expression.contains("instance=~\"$instance\""),
                "{expression}"
            );
            let expression = expression
                .replace("$__rate_interval", "5m")
                .replace("$job", ".*")
                .replace("$instance", ".*");
            assert!(!expression.contains('$'), "{expression}");
            rules += &format!(
                "      - record: panel{}_{}\n        expr: '{expression}'\n",
                panel["id"],
                text(target, "refId")
            );
        }
    }
    needs!("promtool");
    let scratch = Scratch::new();
    let check = |rules: &str| {
        fs::write(scratch.path().join("panels.yml"), rules).expect("written");
        promtool(scratch.path(), &["check", "rules", "panels.yml"])
    };
    let (good, said) = check(&rules);
    assert!(good, "{said}");
    let (good, said) = check(&rules.replacen("sum by", "som by", 1));
    assert!(!good, "{said}");
}

/// A Prometheus of one's own that answers each query with `answer`. It lives as long as the tests.
fn stand_in(answer: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = BufReader::new(stream.expect("a client"));
            let (mut length, mut line) = (0, String::new());
            while stream.read_line(&mut line).expect("a line") > 2 {
                if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
                    length = value.trim().parse().expect("a number");
                }
                line.clear();
            }
            let mut query = vec![0; length];
            stream.read_exact(&mut query).expect("the query");
            let head = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length:";
            write!(stream.get_mut(), "{head} {}\r\n\r\n{answer}", answer.len()).expect("sent");
        }
    });
    format!("http://{address}")
}

/// What the drawing program makes of what this Prometheus answers: whether it succeeded, and what it printed.
pub fn drawn(prometheus: &str, arguments: &[&str]) -> (bool, String) {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/grafana/draw");
    let mut command = clean(program);
    command.args(["--prometheus", prometheus]).args(arguments);
    run(command)
}

#[test]
fn the_drawing_has_each_panel_with_its_title() {
    needs!("perl");
    let answer = r#"{"status":"success","data":{"resultType":"matrix","result":[
        {"metric":{"instance":"<a&b>"},"values":[[1000,"1"],[1010,"NaN"],[1020,"3.5"]]},
        {"metric":{"instance":"c"},"values":[[1000,"0"],[1020,"0"]]}]}}"#;
    let range = ["--from", "1000", "--to", "1020"];
    let (good, svg) = drawn(&stand_in(answer), &range);
    assert!(good, "{svg}");
    assert!(svg.starts_with("<svg ") && svg.trim_end().ends_with("</svg>"));
    let dashboard = dashboard();
    for panel in list(&dashboard, "panels") {
        let title = text(panel, "title");
        assert!(svg.contains(&format!(">{title}</text>")), "{title}");
    }
    let plots = panels(&dashboard);
    let plots = plots
        .iter()
        .filter(|panel| text(panel, "type") == "timeseries");
    let lines: usize = plots.map(|panel| 2 * list(panel, "targets").len()).sum();
    assert_eq!(svg.matches("<path class=\"line ").count(), lines);
    assert!(svg.contains("&lt;a&amp;b&gt;") && !svg.contains("<a&b>"));
    // The line is cut where there is no number.
    assert!(svg.contains("M") && !svg.to_lowercase().contains("nan"));
    assert!(!svg.contains("no data"));

    let nothing = r#"{"status":"success","data":{"resultType":"matrix","result":[]}}"#;
    let (good, svg) = drawn(&stand_in(nothing), &range);
    assert!(good, "{svg}");
    assert_eq!(svg.matches("no data").count(), panels(&dashboard).len());

    let refused = r#"{"status":"error","errorType":"bad_data","error":"invalid parameter"}"#;
    let (good, said) = drawn(&stand_in(refused), &range);
    assert!(!good && said.contains("invalid parameter"), "{said}");
    let (good, said) = drawn("http://127.0.0.1:1", &["--from", "-7x"]);
    assert!(!good && said.contains("-7x"), "{said}");
}
