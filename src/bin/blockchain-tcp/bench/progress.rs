//! How far it is, on standard error if that is a terminal.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::report::grouped;

/// A rate is that of about so long.
const SPAN: Duration = Duration::from_millis(500);

/// The bar. Dropped, it is taken away.
pub struct Progress {
    bar: ProgressBar,
    duration: Duration,
    /// Since when the rate is measured, how many replies there were then, and what it was before.
    since: (Instant, u64),
    rate: f64,
}

impl Progress {
    /// Nothing has been done of so much time.
    pub fn new(duration: Duration) -> Self {
        let steps = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let bar = ProgressBar::with_draw_target(Some(steps), ProgressDrawTarget::stderr());
        let style = ProgressStyle::with_template("{wide_bar} {msg}");
        bar.set_style(style.expect("a template").progress_chars("=> "));
        Progress {
            bar,
            duration,
            since: (Instant::now(), 0),
            rate: 0.0,
        }
    }

    /// So much time has passed, in which there were so many replies and errors.
    pub fn show(&mut self, elapsed: Duration, answered: u64, errors: u64) {
        let (since, before) = self.since;
        let span = since.elapsed();
        if span >= SPAN {
            self.rate = answered.saturating_sub(before) as f64 / span.as_secs_f64();
            self.since = (Instant::now(), answered);
        }
        let position = elapsed.min(self.duration).as_millis();
        self.bar
            .set_position(u64::try_from(position).unwrap_or(u64::MAX));
        let over = match elapsed > self.duration {
            true => ", waiting for the last replies",
            false => "",
        };
        let failed = match errors {
            0 => String::new(),
            errors => format!(", {} errors", grouped(errors)),
        };
        self.bar.set_message(format!(
            "{:.1} of {} s  {}/s{failed}{over}",
            elapsed.min(self.duration).as_secs_f64(),
            self.duration.as_secs_f64(),
            grouped(self.rate as u64)
        ));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
