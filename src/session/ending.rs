//! End of a session: metrics, the last reply, and how the socket is closed.

use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use log::{Level, debug, log_enabled};
use rustix::io::Errno;
use rustix::net::SendFlags;

use super::{CloseReason, Service};
use crate::metrics::Closed;
use crate::protocol::line;
use crate::transport::connection::{Connection, last_words};
use crate::transport::lingering_close::LingeringClose;
use shared::clock::Millis;
use shared::command::CommandError;

impl Service {
    /// Closes or releases a connection after its session; `ended` is `None` after a panic.
    #[inline(never)]
    pub fn end(&self, connection: Connection, ended: Option<CloseReason>) {
        // Any shard will do: the connection's number spreads the load as well as the worker's.
        let share = self.metrics.shard(connection.client.number as usize);
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
            Some(CloseReason::PeerClosed | CloseReason::Broken(_)) => connection.close(),
            Some(CloseReason::Aborted) => connection.cut(),
            Some(CloseReason::ByCommand | CloseReason::TooLong) => {
                self.linger.push(connection.say_goodbye())
            }
            Some(CloseReason::Idle(time)) if self.is_too_long(time) => {
                self.refuse(connection, &CommandError::Idle);
            }
            Some(CloseReason::Idle(_)) => {
                let made_room = &self.incidents.made_room;
                if made_room.record(&"all workers are taken, and clients wait") {
                    // The reaper logs the end of the incident.
                    self.alarm.wake();
                }
                self.refuse(connection, &CommandError::MadeRoom);
            }
            None => self.refuse_after_panic(connection),
            Some(CloseReason::Finished { recently }) => {
                if recently || connection.unread() > 0 {
                    self.linger.push(connection.say_goodbye());
                } else {
                    connection.say_goodbye();
                }
            }
            Some(CloseReason::Released) => {
                // Without a receiver, the connection is closed.
                let _ = self.released.send(connection);
            }
        }
    }

    /// Returns the reason as the metrics name it.
    fn reason(&self, ended: Option<&CloseReason>) -> Closed {
        match ended {
            Some(CloseReason::PeerClosed) => Closed::Left,
            Some(CloseReason::ByCommand) => Closed::Quit,
            Some(CloseReason::TooLong) => Closed::TooLong,
            Some(CloseReason::Idle(time)) if self.is_too_long(*time) => Closed::Idle,
            Some(CloseReason::Idle(_)) => Closed::MadeRoom,
            Some(CloseReason::Aborted) => Closed::NotReading,
            Some(CloseReason::Broken(Errno::CONNRESET | Errno::PIPE)) => Closed::Reset,
            Some(CloseReason::Broken(_)) => Closed::Failed,
            Some(CloseReason::Finished { .. }) => Closed::Drained,
            Some(CloseReason::Released) => Closed::HandedOver,
            None => Closed::Panicked,
        }
    }

    fn is_too_long(&self, idle: Duration) -> bool {
        !self.idle_timeout.is_zero() && idle >= self.idle_timeout
    }

    /// Refuses a client after a panic. The requests before the failed one get their replies.
    fn refuse_after_panic(&self, mut connection: Connection) {
        let number = connection.client.number;
        let detail = format!("a panic of connection {number}, logged above");
        if self.incidents.panicked.record(&detail) {
            self.alarm.wake();
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
        self.refuse(connection, &CommandError::Internal);
    }

    /// Sends the remaining replies and then `refusal`, and starts a lingering close.
    fn refuse(&self, mut connection: Connection, refusal: &CommandError<'_>) {
        line::write_refusal(refusal, &mut connection.client.replies);
        // A client that takes no more data loses these replies too.
        let _ = connection.write(&connection.client.replies, SendFlags::DONTWAIT);
        self.linger.push(connection.say_goodbye());
    }
}

/// Sends a refusal to a client that is not admitted, and starts a lingering close, without waiting.
pub fn reject(stream: TcpStream, refusal: &CommandError<'_>, linger: &LingeringClose) {
    let mut reply = Vec::new();
    line::write_refusal(refusal, &mut reply);
    // The client may already be gone.
    let _ = last_words(&stream, &reply);
    let _ = stream.shutdown(Shutdown::Write);
    linger.push(stream);
}
