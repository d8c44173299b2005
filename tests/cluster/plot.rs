//! The account as a picture: what was true and what was answered over time, and what was done meanwhile. SVG without anything
//! foreign, for light and dark backgrounds.

use std::fmt::Write as _;
use std::time::Duration;

use crate::judge::{Fault, Harm};
use crate::truth::Moment;

const WIDTH: f64 = 1600.0;
const LEFT: f64 = 90.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 60.0;
const HEIGHT: f64 = 420.0;
const LANE: f64 = 20.0;

/// Colours that can be told apart on both backgrounds, one for each server.
const COLOURS: [&str; 5] = ["#d9480f", "#2b8a3e", "#1971c2", "#9c36b5", "#b08900"];

/// What is drawn.
pub struct Plot<'a> {
    pub title: String,
    /// Below it.
    pub words: String,
    pub until: Moment,
    /// The least and the most clients that all servers had, from each moment on.
    pub truth: Vec<(Moment, i64, i64)>,
    /// What each server answered, and when.
    pub answers: Vec<(usize, Moment, i64)>,
    /// When a server answered that it doesn't know.
    pub unavailable: Vec<(usize, Moment)>,
    pub faults: &'a [Fault],
    /// When something was wrong.
    pub wrongs: Vec<Moment>,
    pub servers: usize,
}

/// The lowest and the highest of what came in each column of the picture.
type Columns = Vec<Option<(i64, i64)>>;

fn note(columns: &mut Columns, column: usize, least: i64, most: i64) {
    if let Some(place) = columns.get_mut(column) {
        let (lowest, highest) = place.unwrap_or((least, most));
        *place = Some((lowest.min(least), highest.max(most)));
    }
}

impl Plot<'_> {
    fn columns(&self) -> usize {
        (WIDTH - LEFT - RIGHT) as usize
    }

    fn column(&self, at: Moment) -> usize {
        let share = at.as_secs_f64() / self.until.as_secs_f64().max(0.001);
        ((share * self.columns() as f64) as usize).min(self.columns() - 1)
    }

    fn x(&self, at: Moment) -> f64 {
        LEFT + self.column(at) as f64
    }

    /// The picture.
    pub fn svg(&self) -> String {
        let highest = self.truth.iter().map(|(_, _, most)| *most);
        let highest = highest
            .chain(self.answers.iter().map(|(_, _, said)| *said))
            .max()
            .unwrap_or(0);
        let top = (highest / 10 + 1) * 10;
        let y = |clients: i64| TOP + HEIGHT * (1.0 - clients as f64 / top as f64);
        let lanes = self.servers + 1;
        let height = TOP + HEIGHT + 60.0 + lanes as f64 * LANE + 40.0;
        let mut svg = String::new();
        let mut line = |text: String| {
            svg += &text;
            svg.push('\n');
        };
        line(format!(
            r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}">"#
        ));
        line(
            "<style>\
             svg { background: #fff; color: #222; font: 13px sans-serif }\
             text { fill: currentColor } .grid { stroke: currentColor; opacity: .15 }\
             .truth { fill: #868e96; opacity: .45 } .answers { fill: none; stroke-width: 1.2; opacity: .8 }\
             .wrong { stroke: #f00; stroke-width: 2 }\
             @media (prefers-color-scheme: dark) { svg { background: #16181c; color: #ddd } }\
             </style>"
                .to_string(),
        );
        line(format!(
            r#"<text x="{LEFT}" y="22" font-size="18">{}</text>"#,
            escaped(&self.title)
        ));
        line(format!(
            r#"<text x="{LEFT}" y="44">{}</text>"#,
            escaped(&self.words)
        ));
        for step in 0..=5 {
            let clients = top * step / 5;
            let y = y(clients);
            line(format!(
                r#"<line class="grid" x1="{LEFT}" x2="{}" y1="{y:.1}" y2="{y:.1}"/><text x="{}" y="{:.1}" text-anchor="end">{clients}</text>"#,
                WIDTH - RIGHT,
                LEFT - 8.0,
                y + 4.0
            ));
        }
        self.times(&mut line, height);

        // What was true, as a band.
        let mut truth: Columns = vec![None; self.columns()];
        for (place, (at, least, most)) in self.truth.iter().enumerate() {
            let until = self
                .truth
                .get(place + 1)
                .map_or(self.until, |(next, ..)| *next);
            for column in self.column(*at)..=self.column(until) {
                note(&mut truth, column, *least, *most);
            }
        }
        let mut band = String::new();
        for (column, (least, most)) in truth
            .iter()
            .enumerate()
            .filter_map(|(column, range)| Some((column, (*range)?)))
        {
            let x = LEFT + column as f64;
            let _ = write!(
                band,
                "M{x:.1} {:.1}V{:.1}h1V{:.1}z",
                y(least) + 0.8,
                y(most) - 0.8,
                y(least) + 0.8
            );
        }
        line(format!(r#"<path class="truth" d="{band}"/>"#));

        // What was answered, by each.
        for server in 0..self.servers {
            let mut said: Columns = vec![None; self.columns()];
            for (_, at, clients) in self.answers.iter().filter(|(by, ..)| *by == server) {
                note(&mut said, self.column(*at), *clients, *clients);
            }
            let mut path = String::new();
            for (column, (least, most)) in said
                .iter()
                .enumerate()
                .filter_map(|(column, range)| Some((column, (*range)?)))
            {
                let x = LEFT + column as f64 + 0.5;
                let _ = write!(path, "M{x:.1} {:.1}V{:.1}", y(least) + 0.6, y(most) - 0.6);
            }
            let colour = COLOURS[server % COLOURS.len()];
            line(format!(
                r#"<path class="answers" stroke="{colour}" d="{path}"/>"#
            ));
        }
        for wrong in &self.wrongs {
            let x = self.x(*wrong);
            line(format!(
                r#"<line class="wrong" x1="{x}" x2="{x}" y1="{TOP}" y2="{}"/>"#,
                TOP + HEIGHT
            ));
        }

        // What was done, and to whom.
        let lanes_top = TOP + HEIGHT + 50.0;
        for lane in 0..lanes {
            let middle = lanes_top + lane as f64 * LANE + LANE * 0.7;
            let (name, colour) = match lane {
                lane if lane < self.servers => (
                    format!("server {}", lane + 1),
                    COLOURS[lane % COLOURS.len()],
                ),
                _ => ("registry".to_string(), "#868e96"),
            };
            line(format!(
                r#"<text x="{}" y="{middle:.1}" text-anchor="end" style="fill:{colour}">{name}</text>"#,
                LEFT - 8.0
            ));
        }
        for fault in self.faults {
            let (lane, colour) = match fault.harm {
                Harm::Registry => (self.servers, "#868e96"),
                Harm::Nothing(server)
                | Harm::Silent(server)
                | Harm::Stopped(server)
                | Harm::Killed(server)
                | Harm::Restarted(server) => (server, COLOURS[server % COLOURS.len()]),
            };
            let end = fault.to.unwrap_or(self.until);
            let x = self.x(fault.from);
            line(format!(
                r#"<rect x="{x}" y="{:.1}" width="{:.1}" height="{:.1}" fill="{colour}"><title>{}: {:.1} s, for {:.2} s</title></rect>"#,
                lanes_top + lane as f64 * LANE + 3.0,
                (self.x(end) - x).max(2.0),
                LANE - 6.0,
                escaped(&fault.what),
                fault.from.as_secs_f64(),
                (end - fault.from).as_secs_f64()
            ));
        }
        for (server, at) in &self.unavailable {
            let y = lanes_top + *server as f64 * LANE + LANE - 2.0;
            line(format!(
                r##"<rect x="{}" y="{y:.1}" width="1.5" height="2" fill="#f03e3e"/>"##,
                self.x(*at)
            ));
        }
        svg += "</svg>\n";
        svg
    }

    fn times(&self, line: &mut impl FnMut(String), height: f64) {
        let seconds = self.until.as_secs().max(1);
        let steps = [1, 2, 5, 10, 20, 60, 120, 300, 600, 1800, 3600, 7200];
        let step = steps
            .into_iter()
            .find(|step| seconds / step <= 15)
            .unwrap_or(36000);
        for second in (0..=seconds).step_by(step as usize) {
            let x = self.x(Duration::from_secs(second));
            let name = match second {
                second if step >= 60 => format!("{} min", second / 60),
                second => format!("{second} s"),
            };
            line(format!(
                r#"<line class="grid" x1="{x}" x2="{x}" y1="{TOP}" y2="{}"/><text x="{x}" y="{}" text-anchor="middle">{name}</text>"#,
                height - 40.0,
                TOP + HEIGHT + 20.0
            ));
        }
        line(format!(
            r#"<text x="{LEFT}" y="{}">grey: what was true; colours: what each server answered; below: what was done to whom (red marks: ERR UNAVAILABLE)</text>"#,
            height - 14.0
        ));
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}
