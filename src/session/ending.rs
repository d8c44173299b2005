//! End of a session: metrics, the last reply, and how the socket is closed.

use std::time::Duration;

use log::{Level, debug, log_enabled};
use rustix::io::Errno;

use super::{CloseReason, Service};
use crate::metrics::Closed;
use crate::protocol::Goodbye;
use crate::transport::connection::Connection;
use shared::clock::Millis;

impl Service {
    /// Closes or releases a connection after its session; `ended` is `None` after a panic.
    #[inline(never)]
    pub fn end(&self, connection: Connection, ended: Option<CloseReason>) {
        // Any shard will do: the connection's number spreads the load as well as the worker's.
        let shard = self.shared.metrics.shard(connection.client.number as usize);
        shard.closed(self.reason(ended.as_ref()));
        if ended.is_none() {
            shard.failed(connection.protocol.into());
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
            Some(CloseReason::Aborted) => connection.abort(),
            Some(CloseReason::ByCommand | CloseReason::ProtocolError) => {
                self.shared.linger.push(connection.half_close())
            }
            Some(CloseReason::Idle(time)) if self.is_too_long(time) => {
                self.say_goodbye(connection, Goodbye::Idle);
            }
            Some(CloseReason::Idle(_)) => {
                let shared = &self.shared;
                let detail = "all workers are taken, and clients wait";
                shared.record(&shared.incidents.made_room, &detail);
                self.say_goodbye(connection, Goodbye::MadeRoom);
            }
            None => self.end_after_panic(connection),
            Some(CloseReason::Finished { recently }) => {
                let lingers = recently || connection.unread() > 0;
                let socket = connection.say_goodbye(Goodbye::Drained);
                if lingers {
                    self.shared.linger.push(socket);
                }
            }
            Some(CloseReason::Released | CloseReason::Deferred | CloseReason::TurnOver) => {
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
            Some(CloseReason::ProtocolError) => Closed::Broken,
            Some(CloseReason::Idle(time)) if self.is_too_long(*time) => Closed::Idle,
            Some(CloseReason::Idle(_)) => Closed::MadeRoom,
            Some(CloseReason::Aborted) => Closed::NotReading,
            Some(CloseReason::Broken(Errno::CONNRESET | Errno::PIPE)) => Closed::Reset,
            Some(CloseReason::Broken(_)) => Closed::Failed,
            Some(CloseReason::Finished { .. }) => Closed::Drained,
            Some(CloseReason::Released | CloseReason::Deferred | CloseReason::TurnOver) => {
                Closed::HandedOver
            }
            None => Closed::Panicked,
        }
    }

    fn is_too_long(&self, idle: Duration) -> bool {
        !self.idle_timeout.is_zero() && idle >= self.idle_timeout
    }

    /// Says goodbye to a client after a panic.
    fn end_after_panic(&self, connection: Connection) {
        let number = connection.client.number;
        let detail = format!("a panic of connection {number}, logged above");
        let shared = &self.shared;
        shared.record(&shared.incidents.panicked, &detail);
        self.say_goodbye(connection, Goodbye::Panicked);
    }

    /// Sends the remaining replies and the codec's goodbye, and starts a lingering close.
    fn say_goodbye(&self, connection: Connection, why: Goodbye) {
        self.shared.linger.push(connection.say_goodbye(why));
    }
}
