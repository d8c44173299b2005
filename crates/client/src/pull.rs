//! `pull`: loads the users of a feed in a file into a database, once.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use indicatif::{HumanCount, ProgressBar, ProgressDrawTarget, ProgressStyle};
use shared::text::{quoted, without_errno};
use store::feed::source;
use store::{Location, Progress, PullError, Secrets, Settings, Store};

use crate::failure::{BAD_FEED, Failure, INTERRUPTED, NO_FEED, NO_REPLY};
use crate::interrupt::on_interrupt;
use crate::options::{Options, Pull};
use crate::{output, terminal};

/// Interval between updates of the progress bar.
const UPDATE: Duration = Duration::from_millis(100);

/// Loads the users.
pub fn run(options: &Options, pull: &Pull) -> Result<(), Failure> {
    let wrong = |why: String| Failure::usage(format!("--store {why}"));
    let location = Location::parse(&pull.store).map_err(wrong)?;
    let progress = Arc::new(Progress::default());
    let reading = progress.clone();
    let is_stopped = move || reading.stop.load(Ordering::Relaxed);
    let feed = source::open(&pull.feed, is_stopped).map_err(|error| {
        let (name, why) = (
            quoted(pull.feed.as_os_str().as_encoded_bytes()),
            without_errno(&error),
        );
        Failure::Other(NO_FEED, format!("can't read {name}: {why}"))
    })?;
    let store = Store::open(Settings {
        location,
        secrets: secrets(pull),
        connections: 1,
        streams: 0,
        stream_timeout: options.timeout,
        is_watched: false,
    });
    let store_failed = |error: store::StoreError| {
        Failure::Other(NO_REPLY, format!("can't write to the store: {error}"))
    };
    let store = store.map_err(store_failed)?;
    store
        .wait(Instant::now() + options.timeout)
        .map_err(store_failed)?;
    let stopped = progress.clone();
    on_interrupt(move || stopped.stop.store(true, Ordering::Relaxed))?;
    let begun = Instant::now();
    let bar = Bar::new(feed.length);
    let position = feed.position.clone();
    let result = thread::scope(|scope| {
        let pulling = scope.spawn(|| store.pull(std::iter::once(Ok(feed.source)), None, &progress));
        while !pulling.is_finished() {
            bar.show(position.load(Ordering::Relaxed), &progress);
            thread::sleep(UPDATE);
        }
        // The hook has logged a panic.
        pulling.join().unwrap_or(Err(PullError::Stopped))
    });
    drop(bar);
    for refused in progress
        .named
        .lock()
        .unwrap_or_else(|error| error.into_inner())
        .iter()
    {
        crate::failure::eprintln_line(format_args!("blockchain-tcp: skipped {refused}"));
    }
    report(options, &progress, begun.elapsed())?;
    match result {
        Ok(()) => Ok(()),
        Err(PullError::Stopped) => Err(Failure::Other(
            INTERRUPTED,
            "stopped before the end of the feed".to_string(),
        )),
        Err(PullError::Feed(why)) => Err(Failure::Other(BAD_FEED, why)),
        Err(PullError::Store(error)) => Err(store_failed(error)),
    }
}

fn secrets(pull: &Pull) -> Secrets {
    Secrets {
        password: pull.store_password_file.clone(),
        ca: pull.store_ca_file.clone(),
    }
}

/// Prints what was done.
fn report(options: &Options, progress: &Progress, time: Duration) -> Result<(), Failure> {
    let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    let (read, refused) = (count(&progress.read), count(&progress.refused));
    let (inserted, updated) = (count(&progress.inserted), count(&progress.updated));
    let (unchanged, seconds) = (progress.unchanged(), time.as_secs_f64());
    output::print(&match options.json {
        true => format!(
            "{{\"read\":{read},\"inserted\":{inserted},\"updated\":{updated},\"unchanged\":{unchanged},\
             \"refused\":{refused},\"seconds\":{seconds:.3}}}\n"
        ),
        false => format!(
            "{read} read in {seconds:.1} s: {inserted} inserted, {updated} updated, {unchanged} unchanged, {refused} refused\n"
        ),
    })
}

/// The progress bar on standard error, which is removed when it is dropped.
struct Bar(ProgressBar);

impl Bar {
    /// Returns a bar for a file of this length, or the counts alone if the length is not known.
    fn new(length: Option<u64>) -> Self {
        let target = match terminal::can_be_drawn_on() {
            true => ProgressDrawTarget::stderr(),
            false => ProgressDrawTarget::hidden(),
        };
        let bar = ProgressBar::with_draw_target(length, target);
        let template = match length {
            Some(_) => "{bar:30} {percent:>3} %  {msg}",
            None => "{msg}",
        };
        let style = ProgressStyle::with_template(template);
        let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
        bar.set_style(style.progress_chars("=> "));
        Bar(bar)
    }

    fn show(&self, position: u64, progress: &Progress) {
        let users = HumanCount(progress.done.load(Ordering::Relaxed));
        let refused = match progress.refused.load(Ordering::Relaxed) {
            0 => String::new(),
            refused => format!(", {} refused", HumanCount(refused)),
        };
        self.0.set_message(format!("{users} users{refused}"));
        self.0.set_position(position);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
