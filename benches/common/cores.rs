//! The two cores: one for the server, one for the generator; or all for both.

use std::fmt;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use super::Result;

/// The cores that each may use.
pub enum Cores {
    /// Server and generator have one each, or share the only one.
    Two { server: usize, generator: usize },
    /// Both may use all, as the scheduler decides.
    All,
}

impl Cores {
    /// Takes the first and the last core that this process may use, and binds this thread to the
    /// generator's.
    pub fn choose() -> Result<Cores> {
        let allowed = sched_getaffinity(None)?;
        let mut cores = (0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core));
        let generator = cores.next().ok_or("no core may be used")?;
        let server = cores.next_back().unwrap_or(generator);
        pin(generator)?;
        Ok(Cores::Two { server, generator })
    }

    /// Does something with this thread, and all that it starts, on the server's core.
    pub fn at_server<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let Cores::Two { server, generator } = *self else {
            return work();
        };
        pin(server)?;
        let done = work();
        pin(generator)?;
        done
    }

    /// Returns whether server and generator each have their own.
    pub fn are_apart(&self) -> bool {
        matches!(self, Cores::Two { server, generator } if server != generator)
    }

    /// Returns what the reader of the table has to know.
    pub fn note(&self) -> Option<String> {
        let note =
            "Only one core may be used: server and generator share it, so rates mean little.";
        let share = matches!(self, Cores::Two { .. }) && !self.are_apart();
        share.then(|| note.to_string())
    }
}

impl fmt::Display for Cores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cores::Two { server, generator } => {
                write!(f, "server on core {server}, generator on core {generator}")
            }
            Cores::All => f.write_str("server and generator on all cores"),
        }
    }
}

fn pin(core: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(core);
    sched_setaffinity(None, &set)
        .map_err(|error| format!("core {core} can't be chosen: {error}").into())
}
