//! Pull: all users of a feed into the store.
//!
//! One thread reads and parses the feed while another writes: a database that is slow slows the
//! reader down, and memory is bounded.

use std::io::{self, Read};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, bounded};

use crate::error::{ErrorKind, StoreError};
use crate::feed::source::Source;
use crate::feed::{Feed, Refused};
use crate::lease::{self, Fence};
use crate::location::Location;
use crate::pool::Store;
use crate::upsert::{BATCH_TIMEOUT, Block, now, write_batch};
use shared::sync::ignore_poison;
use shared::text::without_errno;

/// Number of blocks between the threads.
const BLOCKS: usize = 2;

/// How long the end of a pull by hand waits for the database.
const FINISH_TIMEOUT: Duration = Duration::from_secs(5);

/// Number of refused values that are named.
const NAMED: usize = 5;

/// Time after which a block is written that is not full.
const FLUSH: Duration = Duration::from_millis(500);

/// What a pull has done so far.
#[derive(Default)]
pub struct Progress {
    /// Values of the feed that were read.
    pub read: AtomicU64,
    /// Those that are no users.
    pub refused: AtomicU64,
    /// Users that were inserted.
    pub inserted: AtomicU64,
    /// Users that were changed.
    pub updated: AtomicU64,
    /// Users that were written or found as they should be.
    pub done: AtomicU64,
    /// The first refused values.
    pub named: Mutex<Vec<Refused>>,
    /// Ends the pull after its current batch.
    pub stop: AtomicBool,
}

/// Why a pull ended early. What it had written until then stays.
#[derive(Debug)]
pub enum PullError {
    /// The feed can't be read, or is no JSON.
    Feed(String),
    /// The store does not answer.
    Store(StoreError),
    /// It was told to stop.
    Stopped,
}

impl std::fmt::Display for PullError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            PullError::Feed(why) => f.write_str(why),
            PullError::Store(error) => error.fmt(f),
            PullError::Stopped => f.write_str("it was stopped"),
        }
    }
}

impl Progress {
    /// Returns the number of users that were as they should be.
    pub fn unchanged(&self) -> u64 {
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        load(&self.done).saturating_sub(load(&self.inserted) + load(&self.updated))
    }

    fn refuse(&self, refused: Refused) {
        self.refused.fetch_add(1, Ordering::Relaxed);
        let mut named = ignore_poison(self.named.lock());
        if named.len() < NAMED {
            named.push(refused);
        }
    }
}

impl Store {
    /// Writes all users of a feed, which may have pages, each batch as long as the fence holds, if there is one.
    ///
    /// # Errors
    ///
    /// If the feed breaks off, the store fails, or the progress says stop.
    pub fn pull(
        &self,
        pages: impl Iterator<Item = io::Result<Source>> + Send,
        fence: Option<&Fence>,
        progress: &Progress,
    ) -> Result<(), PullError> {
        let is_postgres = matches!(self.shared.location, Location::Postgres(_));
        let (full, blocks) = bounded(BLOCKS);
        thread::scope(|scope| {
            let reading = scope.spawn(move || {
                read(pages, is_postgres, progress, |block| {
                    full.send(block).is_ok()
                })
            });
            let written = self.write_all(blocks, fence, progress);
            if written.is_err() {
                progress.stop.store(true, Ordering::Relaxed);
            }
            // A panic is logged by the hook.
            let read = reading.join().unwrap_or(Err(PullError::Stopped));
            if fence.is_none() {
                // What is written is to outlive a crash from here on, and the feed is to be read again.
                let finished = self.run(Instant::now() + FINISH_TIMEOUT, |connection| {
                    connection.write(lease::STATEMENT_TIMEOUT, lease::begin_generation)
                });
                written.and(finished.map_err(PullError::Store))?;
            } else {
                written?;
            }
            read?;
            match progress.read.load(Ordering::Relaxed) {
                // An error that is answered as if it were a feed.
                read if read > 0 && read == progress.refused.load(Ordering::Relaxed) => {
                    let why = format!("none of its {read} values is a user");
                    Err(PullError::Feed(why))
                }
                _ => Ok(()),
            }
        })
    }

    fn write_all(
        &self,
        blocks: Receiver<Block>,
        fence: Option<&Fence>,
        progress: &Progress,
    ) -> Result<(), PullError> {
        let mut last = 0;
        // Once the reader has ended and nothing is left, there is no further block.
        while let Ok(first) = blocks.recv() {
            if progress.stop.load(Ordering::Relaxed) {
                return Err(PullError::Stopped);
            }
            last = now(last);
            let (at, fence, blocks) = (last, fence.cloned(), blocks.clone());
            let mut first = Some(first);
            let counts = self.run(Instant::now() + BATCH_TIMEOUT, move |connection| {
                // A batch can't be repeated: its users are gone. A connection that may have been
                // lost is tried first.
                connection.ping()?;
                let again = || StoreError::new(ErrorKind::Away, "the connection was lost");
                let first = first.take().ok_or_else(again)?;
                write_batch(connection, first, &blocks, at, fence.as_ref())
            });
            let counts = counts.map_err(PullError::Store)?;
            for (total, count) in [
                (&progress.inserted, counts.inserted),
                (&progress.updated, counts.updated),
                (&progress.done, counts.users),
            ] {
                total.fetch_add(count, Ordering::Relaxed);
            }
        }
        Ok(())
    }
}

/// Reads a page until the pull is stopped: a feed may give byte after byte for long.
struct UntilStopped<'a>(Source, &'a AtomicBool);

impl Read for UntilStopped<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.1.load(Ordering::Relaxed) {
            true => Err(io::Error::other("it was stopped")),
            false => self.0.read(buffer),
        }
    }
}

/// Reads a feed, and sends its users in blocks until nobody takes them.
fn read(
    pages: impl Iterator<Item = io::Result<Source>>,
    is_postgres: bool,
    progress: &Progress,
    send: impl Fn(Block) -> bool,
) -> Result<(), PullError> {
    let mut block = Block::new(is_postgres);
    let mut begun = Instant::now();
    let mut place = 0;
    let failed = |error: io::Error| PullError::Feed(without_errno(&error));
    let mut read_page = |page: Source| {
        let mut feed = Feed::new(UntilStopped(page, &progress.stop));
        while let Some(user) = feed.next_value().map_err(failed)? {
            place += 1;
            progress.read.store(place, Ordering::Relaxed);
            match user {
                Ok(user) => block.push(place, &user),
                Err(refused) => progress.refuse(Refused {
                    number: place,
                    ..refused
                }),
            }
            let is_old = !block.is_empty() && begun.elapsed() >= FLUSH;
            if block.is_full() || is_old {
                let full = std::mem::replace(&mut block, Block::new(is_postgres));
                begun = Instant::now();
                if progress.stop.load(Ordering::Relaxed) || !send(full) {
                    return Err(PullError::Stopped);
                }
            }
        }
        Ok(())
    };
    let result = { pages }.try_for_each(|page| page.map_err(failed).and_then(&mut read_page));
    if progress.stop.load(Ordering::Relaxed) {
        return Err(PullError::Stopped);
    }
    // What came before a feed broke off is written, too.
    if !block.is_empty() && !matches!(result, Err(PullError::Stopped)) && !send(block) {
        return Err(PullError::Stopped);
    }
    result
}
