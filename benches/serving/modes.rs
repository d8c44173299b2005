//! The modes: which loads are measured, in which sizes.

use crate::Options;
use crate::common::Result;
use crate::contestant::Contestant;

/// Workers beyond the clients, for those who leave while others already come.
const SPARE_WORKERS: usize = 8;

/// Workers for connect–ask–close: a daemon as it usually runs, with many more workers than clients.
const ARRIVALS_WORKERS: usize = 256;

/// A load with its names.
pub struct Mode {
    /// For `--only` and the progress.
    pub name: String,
    /// For the table.
    pub title: String,
    /// What the clients do.
    pub load: Load,
}

/// What the clients do.
pub enum Load {
    /// Each client sends `depth` requests in one write, reads that many replies, and begins again.
    Ask { clients: usize, depth: u32 },
    /// One client with one request at a time, server and client on the same core.
    SameCore,
    /// Clients connect, ask once, read the reply and close, `at_once` of them at a time.
    Arrivals { at_once: usize },
    /// The server starts, and one client connects and asks.
    Start { workers: usize },
    /// Clients connect, ask once and stay.
    Idle { clients: usize },
    /// Clients connect all at once and ask once.
    Burst { clients: usize },
    /// `active` clients ask and time each reply, first alone, then among `idle` others.
    AmongIdle { active: usize, idle: usize },
    /// `active` clients ask and time each reply, first alone, then among others who each send a byte a second and
    /// never a whole line.
    AmongTrickling { active: usize, trickling: usize },
}

impl Load {
    /// The most clients that are connected at the same time.
    pub fn clients(&self) -> usize {
        match *self {
            Load::Ask { clients, .. } | Load::Idle { clients } | Load::Burst { clients } => clients,
            Load::SameCore | Load::Start { .. } => 1,
            Load::Arrivals { at_once } => at_once,
            Load::AmongIdle { active, idle } => active + idle,
            Load::AmongTrickling { active, trickling } => active + trickling,
        }
    }

    /// For how many clients the server is sized.
    pub fn workers(&self) -> usize {
        match self {
            Load::Arrivals { .. } => ARRIVALS_WORKERS,
            Load::Start { workers } => *workers,
            _ => self.clients() + SPARE_WORKERS,
        }
    }

    /// Whether the contestant takes part: to spawn a thread for each connection only matters where connections are
    /// made.
    pub fn suits(&self, contestant: Contestant) -> bool {
        contestant != Contestant::Spawning
            || matches!(
                self,
                Load::Arrivals { .. } | Load::Idle { .. } | Load::Burst { .. }
            )
    }
}

/// Returns the modes of this run.
pub fn chosen(options: &Options) -> Result<Vec<Mode>> {
    let mut modes = all(options.length.is_quick());
    let names: Vec<_> = modes.iter().map(|mode| mode.name.clone()).collect();
    let only = &options.only;
    modes.retain(|mode| only.is_empty() || only.iter().any(|part| mode.name.contains(part)));
    match modes.is_empty() {
        true => Err(format!("no such mode; there are: {}", names.join(", ")).into()),
        false => Ok(modes),
    }
}

/// All modes, in the order in which they run and appear.
fn all(quick: bool) -> Vec<Mode> {
    let few = |full: usize, small: usize| if quick { small } else { full };
    let mut modes = vec![mode(
        "ask-1-same-core".to_string(),
        "ask–answer, 1 client, one core for both".to_string(),
        Load::SameCore,
    )];
    for clients in [1, 16, 64, 512] {
        let plural = if clients == 1 { "" } else { "s" };
        modes.push(mode(
            format!("ask-{clients}"),
            format!("ask–answer, {clients} client{plural}"),
            Load::Ask { clients, depth: 1 },
        ));
    }
    for depth in [16, 128] {
        modes.push(mode(
            format!("pipelined-{depth}"),
            format!("pipelined {depth} deep, 16 clients"),
            Load::Ask { clients: 16, depth },
        ));
    }
    modes.push(mode(
        "connect-16".to_string(),
        "connect–ask–close, 16 at a time".to_string(),
        Load::Arrivals { at_once: 16 },
    ));
    modes.push(mode(
        "start-1024".to_string(),
        "start with 1,024 workers, and answer".to_string(),
        Load::Start { workers: 1024 },
    ));
    for clients in [few(1000, 200), few(10_000, 1000)] {
        modes.push(mode(
            format!("idle-{clients}"),
            format!("{} idle clients", thousands(clients)),
            Load::Idle { clients },
        ));
    }
    let burst = few(5000, 500);
    modes.push(mode(
        format!("burst-{burst}"),
        format!("{} connect at once and ask", thousands(burst)),
        Load::Burst { clients: burst },
    ));
    let (active, idle) = (64, few(10_000, 1000));
    modes.push(mode(
        format!("latency-idle-{idle}"),
        format!("{active} active among {} idle", thousands(idle)),
        Load::AmongIdle { active, idle },
    ));
    let (active, trickling) = (8, few(1000, 100));
    modes.push(mode(
        format!("latency-trickle-{trickling}"),
        format!("{active} active among {} trickling", thousands(trickling)),
        Load::AmongTrickling { active, trickling },
    ));
    modes
}

/// Puts a mode together.
fn mode(name: String, title: String, load: Load) -> Mode {
    Mode { name, title, load }
}

/// A count with commas between the thousands, as people read it.
fn thousands(count: usize) -> String {
    if count < 1000 {
        count.to_string()
    } else {
        format!("{},{:03}", thousands(count / 1000), count % 1000)
    }
}
