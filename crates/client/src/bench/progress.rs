//! Progress bar on standard error, if that is a terminal with cursor control.

use std::sync::atomic::Ordering;
use std::time::Duration;

use indicatif::{HumanCount, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::report::counted;
use crate::terminal;
use blockchain_tcp::load::Workload;

/// The progress bar, which is removed when it is dropped.
pub struct Progress(ProgressBar);

impl Progress {
    /// Returns a bar for this workload.
    pub fn new(workload: &Workload) -> Self {
        let target = match terminal::can_be_drawn_on() {
            true => ProgressDrawTarget::stderr(),
            false => ProgressDrawTarget::hidden(),
        };
        let steps = u64::try_from(workload.duration.as_millis()).unwrap_or(u64::MAX);
        let bar = ProgressBar::with_draw_target(Some(steps), target);
        let style = ProgressStyle::with_template("{bar:30} {msg}");
        let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
        bar.set_style(style.progress_chars("=> "));
        Progress(bar)
    }

    /// Shows the time that has passed since the load began, and the numbers of replies and errors.
    pub fn show(&self, elapsed: Duration, workload: &Workload) {
        let rate = workload.answered.load(Ordering::Relaxed) as f64 / elapsed.as_secs_f64();
        let measured = elapsed.saturating_sub(workload.warm_up);
        let passed = measured.min(workload.duration);
        let over = match measured > workload.duration {
            true => ", waiting for the last replies",
            false => "",
        };
        let failed = match workload.errors.load(Ordering::Relaxed) {
            0 => String::new(),
            errors => format!(", {}", counted(errors, "error", "errors")),
        };
        self.0.set_message(format!(
            "{:.1} of {} s  {}/s{failed}{over}",
            passed.as_secs_f64(),
            workload.duration.as_secs_f64(),
            HumanCount(rate as u64)
        ));
        self.0.set_position(passed.as_millis() as u64);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
