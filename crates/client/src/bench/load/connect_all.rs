//! Ramp-up: connects all clients before the load begins, a few at a time, as the server may not
//! have room for all.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use shared::dial;
use shared::text::excerpt;

use super::{Ask, Load, ROUND, WorkerEvent};
use crate::bench::client::Disconnect;
use crate::failure::{BUSY, Failure};

/// The most clients per thread that wait for their first reply at the same time: the server's
/// queues are short.
const GENTLY: usize = 32;

impl Load {
    /// Connects all clients, a few at a time. Each sends one request; its reply shows that the
    /// server serves it.
    pub(super) fn connect_all(&mut self) -> Result<(), WorkerEvent> {
        let (mut begun, mut served) = (0, 0);
        // The error line for refused clients, and their number. After the first of them no more
        // clients connect.
        let mut refused: Option<(String, usize)> = None;
        loop {
            let now = Instant::now();
            let turned_away = refused.as_ref().map_or(0, |(_, clients)| *clients);
            while refused.is_none() && begun < self.clients.len() && begun - served < GENTLY {
                self.begin(begun, now).map_err(|lost| self.refusal(lost))?;
                begun += 1;
            }
            if begun == served + turned_away {
                let was_served = false;
                return match refused {
                    None => Ok(()),
                    Some((line, _)) => Err(WorkerEvent::Full { line, was_served }),
                };
            }
            let before = self.replied();
            let mut failed = None;
            let turned = self.poll_once(ROUND, Ask::Once, |load, key, lost| {
                match lost {
                    Disconnect::Refused { word, line }
                        if word == BUSY && !load.clients[key].is_served() =>
                    {
                        load.clients[key].drop_connection(None);
                        refused.get_or_insert((line, 0)).1 += 1;
                    }
                    other => failed = failed.take().or(Some(load.refusal(other))),
                }
                Ok(())
            });
            turned.map_err(WorkerEvent::Failed)?;
            let replied = (self.replied() - before) as usize;
            served += replied;
            self.shared
                .served
                .fetch_add(replied as u64, Ordering::Relaxed);
            if let Some(failed) = failed {
                return Err(failed);
            }
            let now = Instant::now();
            let timeout = self.shared.workload.timeout;
            if self.clients[..begun]
                .iter()
                .any(|client| client.is_late(now, timeout))
            {
                return Err(self.refusal(Disconnect::Late));
            }
        }
    }

    /// Returns the number of all replies so far, right or not.
    fn replied(&self) -> u64 {
        let errors: u64 = self.stats.errors.replies.values().sum();
        self.stats.answered + self.stats.errors.wrong + errors
    }

    /// Returns why not all clients can be served at the same time.
    fn refusal(&self, lost: Disconnect) -> WorkerEvent {
        let served = self.shared.served.load(Ordering::Relaxed);
        let request = self.shared.request.clone();
        WorkerEvent::Failed(match lost {
            // The server disconnected a client to make room.
            Disconnect::Refused { word, line } if word == "TIMEOUT" || word == BUSY => {
                let was_served = true;
                return WorkerEvent::Full { line, was_served };
            }
            Disconnect::Refused { line, .. } => Failure::Wrong(format!("the server said {line}")),
            Disconnect::Wrong(quoted) => Failure::Wrong(quoted),
            Disconnect::Closed => {
                let part = Vec::new();
                Failure::Dial(dial::Failure::Closed { request, part })
            }
            Disconnect::Broken(error) => Failure::Dial(dial::Failure::Broken {
                request,
                error,
                part: Vec::new(),
            }),
            Disconnect::NotConnected(error) => {
                let refusals = vec![(self.shared.workload.address, error)];
                Failure::Dial(dial::Failure::Connect(refusals))
            }
            Disconnect::Late => {
                let all = self.shared.workload.clients;
                let doing = format!(
                    "{served} of {all} clients were served, the others had no answer to {}",
                    excerpt(&request)
                );
                let timeout = self.shared.workload.timeout;
                Failure::Dial(dial::Failure::Late { doing, timeout })
            }
        })
    }

    /// Checks that no client has lost its connection, which happens when the server makes room for
    /// another.
    pub(super) fn look(&mut self) -> Result<(), WorkerEvent> {
        let mut failed = None;
        let turned = self.poll_once(Duration::ZERO, Ask::Nothing, |load, _, lost| {
            failed = failed.take().or(Some(load.refusal(lost)));
            Ok(())
        });
        turned.map_err(WorkerEvent::Failed)?;
        failed.map_or(Ok(()), Err)
    }
}
