//! Status page in HTML: the present state, and charts of the last minutes. It needs no script and
//! works in text browsers.

use std::time::Duration;

use jiff::{Timestamp, Unit};

use super::State;
use super::history::{History, INTERVAL};
use crate::protocol::http::Response;

/// Size of a chart, in units of its SVG view box.
const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 120.0;

/// Style sheet with light and dark colours.
const STYLE: &str = "\
:root{color-scheme:light dark;--line:#0b6bcb;--faint:#8886}\
@media(prefers-color-scheme:dark){:root{--line:#6cb6ff}}\
body{font:16px/1.5 system-ui,sans-serif;max-width:46rem;margin:2rem auto;padding:0 1rem}\
h1{font-size:1.5rem;margin:0}\
dl{display:grid;grid-template-columns:max-content auto;gap:.25rem 1.5rem}\
dt{opacity:.75}dd{margin:0;font-variant-numeric:tabular-nums}\
figure{margin:1.5rem 0}figcaption{opacity:.75}\
svg{width:100%;height:auto;display:block;border-bottom:1px solid var(--faint)}\
polyline{fill:none;stroke:var(--line);stroke-width:2;vector-effect:non-scaling-stroke}\
.bad{color:#d1242f;font-weight:bold}code{font-size:.95em}";

/// Returns the response to a request for the page.
pub fn response(state: &State<'_>, history: &History) -> Response {
    Response {
        status: 200,
        media_type: "text/html; charset=utf-8",
        body: page(state, history),
    }
}

fn page(state: &State<'_>, history: &History) -> String {
    let rates = history.rates();
    let (class, verdict) = match state.refusal() {
        None => ("", "ready".to_string()),
        Some(why) => ("bad", format!("not ready: {why}")),
    };
    let rows = facts(state, rates.last()).into_iter();
    let rows = rows.map(|(name, value)| format!("<dt>{name}</dt><dd>{value}</dd>\n"));
    let span = duration(history.span());
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n\
         <meta http-equiv=\"refresh\" content=\"{refresh}\">\n\
         <title>{clients} clients - blockchain-tcpd</title>\n<style>{STYLE}</style>\n</head>\n<body>\n\
         <h1>blockchain-tcpd {version}</h1>\n<p class=\"{class}\">{verdict}</p>\n<dl>\n{rows}</dl>\n\
         {clients_chart}{rates_chart}\
         <p><a href=\"/metrics\">Metrics</a>, <a href=\"/readyz\">ready?</a>, <a href=\"/livez\">live?</a>. \
         The manual: <code>man blockchain-tcpd</code>, and <code>/usr/share/doc/blockchain-tcpd</code>.</p>\n\
         </body>\n</html>\n",
        refresh = INTERVAL.as_secs(),
        clients = state.load.clients,
        version = env!("CARGO_PKG_VERSION"),
        rows = rows.collect::<String>(),
        clients_chart = chart("Clients", &history.clients(), &span),
        rates_chart = chart("Requests a second", &rates, &span),
    )
}

/// Returns what the page says of the server: names and values.
fn facts(state: &State<'_>, rate: Option<&f64>) -> Vec<(&'static str, String)> {
    let State { load, sums, .. } = state;
    let up = duration(state.up);
    // The start by the present system clock.
    let since = Timestamp::now()
        .checked_sub(state.up)
        .and_then(|since| since.round(Unit::Second))
        .unwrap_or_default();
    let clients = format!(
        "{}, {} of them waiting; {} can be served, {} more may wait",
        load.clients, load.waiting, load.workers, load.queue
    );
    let id = state.context.member.id;
    let mut facts = vec![
        ("Server", format!("<code>{id}</code>")),
        ("Serving since", format!("{since} ({up})")),
        ("Clients", clients),
    ];
    if let Some(cluster) = state.context.cluster.snapshot() {
        let touch = match cluster.connected {
            true => "in touch",
            false => "<strong>cut off</strong>",
        };
        let value = format!(
            "{} ({}): {touch}; {} servers with {} clients when it was heard last",
            cluster.name, cluster.mode, cluster.servers, cluster.clients
        );
        facts.push(("Cluster", value));
    }
    let rate = rate.map_or("not known yet".to_string(), |rate| number(*rate));
    let refused: u64 = sums.refused.iter().sum();
    let so_far = format!("{}, {refused} of them refused", sums.accepted);
    facts.extend([
        ("Requests a second", rate),
        ("Requests to this program", number(sums.requests() as f64)),
        ("Clients so far", so_far),
        ("Handed over", format!("{} times", sums.handovers)),
    ]);
    facts
}

/// Returns a line chart of `values`, the newest at the right, scaled from 0 to their maximum.
fn chart(name: &str, values: &[f64], span: &str) -> String {
    let most = values.iter().copied().fold(0.0, f64::max);
    let last = values.last().copied().unwrap_or(0.0);
    // The values are also 0 where the greatest is.
    let scale = (HEIGHT - 4.0) / most.max(f64::EPSILON);
    let step = WIDTH / (values.len().max(2) - 1) as f64;
    let points = values.iter().enumerate().map(|(index, value)| {
        let (x, y) = (step * index as f64, HEIGHT - 2.0 - value * scale);
        format!("{x:.1},{y:.1}")
    });
    let points = points.collect::<Vec<_>>().join(" ");
    let (most, last) = (number(most), number(last));
    format!(
        "<figure>\n<figcaption>{name} in the last {span}: {last} at the end, {most} at most</figcaption>\n\
         <svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{name} in the last {span}\">\
         <polyline points=\"{points}\"/></svg>\n</figure>\n"
    )
}

/// Formats a number for people: with separators of thousands, and one decimal if it is small.
fn number(value: f64) -> String {
    if value < 10.0 && value.fract() > 0.05 {
        return format!("{value:.1}");
    }
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Formats a duration for people, in its two greatest units.
fn duration(time: Duration) -> String {
    let seconds = time.as_secs();
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min {} s", seconds % 60),
        (0, _, _) => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_times_are_for_people() {
        assert_eq!(
            [0.0, 0.25, 9.99, 999.6, 1_234_567.0].map(number),
            ["0", "0.2", "10.0", "1,000", "1,234,567"]
        );
        assert_eq!(
            [5, 65, 3_700, 90_000].map(|seconds| duration(Duration::from_secs(seconds))),
            ["5 s", "1 min 5 s", "1 h 1 min", "1 d 1 h"]
        );
    }

    #[test]
    fn a_drawing_stays_within_its_frame() {
        for values in [&[][..], &[5.0], &[0.0, 0.0], &[1.0, 1e9, 3.0]] {
            let page = chart("x", values, "1 s");
            let (_, points) = page.split_once("points=\"").unwrap();
            let points = points.split('"').next().unwrap();
            for point in points.split(' ').filter(|point| !point.is_empty()) {
                let (x, y) = point.split_once(',').unwrap();
                assert!((0.0..=WIDTH).contains(&x.parse().unwrap()), "{point}");
                assert!((0.0..=HEIGHT).contains(&y.parse().unwrap()), "{point}");
            }
            assert_eq!(points.split_whitespace().count(), values.len());
        }
    }
}
