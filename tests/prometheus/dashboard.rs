//! The dashboard, as far as it can be held against Grafana's published schema without a Grafana, and the program that draws it.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
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
    let text = value[key].as_str();
    text.unwrap_or_else(|| panic!("no {key} in {value}"))
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    let list = value[key].as_array();
    list.unwrap_or_else(|| panic!("no {key} in {value}"))
}

/// Holds what is at these places against what may be there, each in JSON.
fn has(value: &Value, places: &[(&str, &[&str])]) {
    for (place, allowed) in places {
        let found = value.pointer(place).unwrap_or(&Value::Null).to_string();
        assert!(allowed.contains(&&*found), "{place} is {found}: {value}");
    }
}

/// The panels that show something.
pub fn panels(dashboard: &Value) -> Vec<&Value> {
    let panels = list(dashboard, "panels").iter();
    let shows = |panel: &&Value| text(panel, "type") != "row";
    panels.filter(shows).collect()
}

/// The expressions of the row for the store and the users, which is the last.
pub fn expressions_of_users() -> Vec<String> {
    let dashboard = dashboard();
    let all = list(&dashboard, "panels");
    let row = all
        .iter()
        .position(|panel| text(panel, "title") == "Store and users");
    let panels = all[row.expect("the row") + 1..].iter();
    let targets = panels.flat_map(|panel| list(panel, "targets"));
    targets
        .map(|target| text(target, "expr").to_string())
        .collect()
}

#[test]
fn it_has_what_the_schema_asks_of_a_dashboard() {
    let dashboard = dashboard();
    has(
        &dashboard,
        &[
            // The last version of the classic form. It is what the fields of this file are written for.
            ("/schemaVersion", &["42"]),
            // Links to it would break.
            ("/uid", &["\"blockchain-tcpd\""]),
            // An id is Grafana's to give.
            ("/id", &["null"]),
            ("/editable", &["true", "false"]),
            ("/graphTooltip", &["0", "1", "2"]),
            ("/templating/list/0/type", &["\"datasource\""]),
            ("/templating/list/0/query", &["\"prometheus\""]),
            ("/templating/list/0/name", &["\"datasource\""]),
            ("/templating/list/1/name", &["\"job\""]),
            ("/templating/list/2/name", &["\"instance\""]),
            ("/templating/list/3", &["null"]),
        ],
    );
    assert!(dashboard["refresh"].is_string());
    for end in ["from", "to"] {
        assert!(text(&dashboard["time"], end).starts_with("now"));
    }
    for variable in &list(&dashboard["templating"], "list")[1..] {
        let of_source = ("/datasource/uid", &["\"${datasource}\""][..]);
        has(variable, &[("/type", &["\"query\""]), of_source]);
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
    let order = "Now, Traffic, Errors, Latency, Computations, Saturation, Error budget, Cluster, Store and users";
    assert_eq!(rows.join(", "), order);
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
    let dashboard = dashboard();
    assert!(panels(&dashboard).len() > 20);
    let source: [(&str, &[&str]); 2] = [
        ("/datasource/type", &["\"prometheus\""]),
        ("/datasource/uid", &["\"${datasource}\""]),
    ];
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
    for panel in panels(&dashboard) {
        has(panel, &source);
        has(
            panel,
            &[
                ("/type", &["\"stat\"", "\"timeseries\""]),
                ("/fieldConfig/overrides", &["[]"]),
                ("/fieldConfig/defaults/thresholds/mode", &["\"absolute\""]),
                // The first step has no value and stands for all below the second; the others rise.
                ("/fieldConfig/defaults/thresholds/steps/0/value", &["null"]),
            ],
        );
        let title = text(panel, "title");
        let description = text(panel, "description");
        assert!(
            description.len() > 20 && description.ends_with('.'),
            "{title}"
        );
        assert!(panel["options"].is_object(), "{title}");
        let defaults = &panel["fieldConfig"]["defaults"];
        assert!(units.contains(&text(defaults, "unit")), "{title}");
        let steps = list(&defaults["thresholds"], "steps");
        let values = steps[1..].iter().map(|step| step["value"].as_f64());
        let values: Option<Vec<f64>> = values.collect();
        assert!(values.expect("numbers").is_sorted(), "{title}");
        assert!(
            steps.iter().all(|step| step["color"].is_string()),
            "{title}"
        );
        for mapping in list(defaults, "mappings") {
            has(mapping, &[("/type", &["\"value\""])]);
            assert!(mapping["options"].is_object(), "{title}");
        }
        // A ratio that is shown in seconds, or seconds as a number, would be believed.
        let targets = list(panel, "targets");
        let of_time = targets.iter().all(|target| {
            let expression = text(target, "expr");
            expression.contains("_seconds") && !expression.contains("changes(")
        });
        let of_processors = text(panel, "title") == "Processors";
        let in_seconds = text(defaults, "unit") == "s";
        assert_eq!(of_time && !of_processors, in_seconds, "{title}");
        let letters: BTreeSet<&str> = targets.iter().map(|target| text(target, "refId")).collect();
        assert_eq!(letters.len(), targets.len(), "{title}");
        assert!(!targets.is_empty(), "{title}");
        let ranged = text(panel, "type") == "timeseries";
        for target in targets {
            has(target, &source);
            assert!(!text(target, "legendFormat").is_empty(), "{title}");
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
            let (title, letter) = (text(panel, "title"), text(target, "refId"));
            let used = names.used_by(expression);
            used.unwrap_or_else(|error| panic!("{title}: {error}"));
            let of_instance = "instance=~\"$instance\"";
            assert!(expression.contains(of_instance), "{expression}");
            let expression = expression.replace("$__rate_interval", "5m");
            let expression = expression.replace("$job", ".*").replace("$instance", ".*");
            assert!(!expression.contains('$'), "{expression}");
            let name = format!("panel{}_{letter}", panel["id"]);
            rules += &format!("      - record: {name}\n        expr: '{expression}'\n");
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
            request_body(&mut stream).expect("a query");
            let head = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length:";
            write!(stream.get_mut(), "{head} {}\r\n\r\n{answer}", answer.len()).expect("sent");
        }
    });
    format!("http://{address}")
}

/// Reads an HTTP request; returns its body.
pub fn request_body(stream: &mut BufReader<TcpStream>) -> Option<String> {
    let (mut length, mut line) = (0, String::new());
    while stream.read_line(&mut line).ok().filter(|read| *read > 0)? > 2 {
        if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
        line.clear();
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).ok()?;
    Some(String::from_utf8_lossy(&body).into_owned())
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
    let mut plots = panels(&dashboard);
    plots.retain(|panel| text(panel, "type") == "timeseries");
    let lines = plots.iter().map(|panel| 2 * list(panel, "targets").len());
    let lines: usize = lines.sum();
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
