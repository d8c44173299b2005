//! How a connection is left: what is counted, what it is told, and whether its socket lingers.

use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use log::{Level, debug, log_enabled};
use rustix::io::Errno;
use rustix::net::SendFlags;

use super::{Ended, Service};
use crate::clock::Millis;
use crate::command::Refusal;
use crate::connection::{Connection, last_words};
use crate::linger::Linger;
use crate::metrics::Closed;
use crate::protocol::line;

impl Service {
    /// Does what is to be done with a connection whose service has ended; without `ended`, by a panic.
    #[inline(never)]
    pub fn end(&self, connection: Connection, ended: Option<Ended>) {
        // Whoever of the workers: the number of a connection spreads as well.
        let share = self.metrics.share(connection.client.number as usize);
        share.closed(self.reason(ended.as_ref()));
        if ended.is_none() {
            share.failed();
        }
        if log_enabled!(Level::Debug) {
            let how = ended
                .as_ref()
                .map_or("a panic".to_string(), |how| format!("{how:?}"));
            let seconds = Millis::now().since(connection.client.since).as_secs_f64();
            debug!(connection = connection.client.number, peer:% = connection.client.peer, seconds, how; "ended");
        }
        match ended {
            Some(Ended::Left | Ended::Broken(_)) => connection.close(),
            Some(Ended::CutOff) => connection.cut(),
            Some(Ended::Quit | Ended::TooLong) => self.linger.leave(connection.say_goodbye()),
            Some(Ended::Idle(time)) if self.is_too_long(time) => {
                self.refuse(connection, &Refusal::Idle);
            }
            Some(Ended::Idle(_)) => {
                let made_room = &self.episodes.made_room;
                if made_room.happened(&"all workers are taken, and clients wait") {
                    // Who says when it is over.
                    self.alarm.ring();
                }
                self.refuse(connection, &Refusal::MadeRoom);
            }
            None => self.refuse_after_panic(connection),
            Some(Ended::Finished { recently }) => {
                if recently || connection.unread() > 0 {
                    self.linger.leave(connection.say_goodbye());
                } else {
                    connection.say_goodbye();
                }
            }
            Some(Ended::Released) => {
                // Nobody wants it any more: then it is closed.
                let _ = self.released.send(connection);
            }
        }
    }

    /// For the metrics.
    fn reason(&self, ended: Option<&Ended>) -> Closed {
        match ended {
            Some(Ended::Left) => Closed::Left,
            Some(Ended::Quit) => Closed::Quit,
            Some(Ended::TooLong) => Closed::TooLong,
            Some(Ended::Idle(time)) if self.is_too_long(*time) => Closed::Idle,
            Some(Ended::Idle(_)) => Closed::MadeRoom,
            Some(Ended::CutOff) => Closed::NotReading,
            Some(Ended::Broken(Errno::CONNRESET | Errno::PIPE)) => Closed::Reset,
            Some(Ended::Broken(_)) => Closed::Failed,
            Some(Ended::Finished { .. }) => Closed::Drained,
            Some(Ended::Released) => Closed::HandedOver,
            None => Closed::Panicked,
        }
    }

    fn is_too_long(&self, idle: Duration) -> bool {
        !self.idle_timeout.is_zero() && idle >= self.idle_timeout
    }

    /// The requests before the one that failed get their replies.
    fn refuse_after_panic(&self, mut connection: Connection) {
        let number = connection.client.number;
        let detail = format!("a panic of connection {number}, logged above");
        if self.episodes.panicked.happened(&detail) {
            self.alarm.ring();
        }
        let whole = connection
            .client
            .replies
            .iter()
            .rposition(|&byte| byte == b'\n');
        connection
            .client
            .replies
            .truncate(whole.map_or(0, |lf| lf + 1));
        self.refuse(connection, &Refusal::Internal);
    }

    /// Sends what is left to send, `refusal` last, and says goodbye.
    fn refuse(&self, mut connection: Connection, refusal: &Refusal<'_>) {
        line::write_refusal(refusal, &mut connection.client.replies);
        // A client that takes nothing more loses these words, too.
        let _ = connection.write(&connection.client.replies, SendFlags::DONTWAIT);
        self.linger.leave(connection.say_goodbye());
    }
}

/// Answers a client that is not let in, and closes without waiting for it.
pub fn turn_away(stream: TcpStream, refusal: &Refusal<'_>, linger: &Linger) {
    let mut reply = Vec::new();
    line::write_refusal(refusal, &mut reply);
    // It may have gone already.
    let _ = last_words(&stream, &reply);
    let _ = stream.shutdown(Shutdown::Write);
    linger.leave(stream);
}
