//! The two cores: one for the server, one for the generator.

use std::fmt;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::common::Result;

/// The numbers of the cores.
pub struct Cores {
    server: usize,
    generator: usize,
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
        Ok(Cores { server, generator })
    }

    /// Does something with this thread, and all that it starts, on the server's core.
    pub fn at_server<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        pin(self.server)?;
        let done = work();
        pin(self.generator)?;
        done
    }

    /// Returns whether server and generator each have their own.
    pub fn are_apart(&self) -> bool {
        self.server != self.generator
    }

    /// Returns what the reader of the table has to know.
    pub fn note(&self) -> Option<String> {
        let note =
            "Only one core may be used: server and generator share it, so rates mean little.";
        (!self.are_apart()).then(|| note.to_string())
    }
}

impl fmt::Display for Cores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Cores { server, generator } = self;
        write!(f, "server on core {server}, generator on core {generator}")
    }
}

fn pin(core: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(core);
    sched_setaffinity(None, &set)
        .map_err(|error| format!("core {core} can't be chosen: {error}").into())
}
