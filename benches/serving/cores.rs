//! The two cores: one for the server, one for the generator.

use std::fmt;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::Result;

/// Which core serves and which one asks.
pub struct Cores {
    /// The number of the core that serves.
    pub server: usize,
    /// The number of the core that asks.
    pub generator: usize,
}

impl Cores {
    /// Takes the first and the last core that this process may use.
    pub fn choose() -> Result<Cores> {
        let allowed = sched_getaffinity(None)?;
        let mut cores = (0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core));
        let generator = cores.next().ok_or("no core may be used")?;
        let server = cores.next_back().unwrap_or(generator);
        Ok(Cores { server, generator })
    }

    /// Binds the calling thread to the generator's core.
    pub fn pin_to_generator(&self) -> Result<()> {
        pin(self.generator)
    }

    /// Binds the calling thread to the server's core.
    pub fn pin_to_server(&self) -> Result<()> {
        pin(self.server)
    }

    /// Whether server and generator each have their own.
    pub fn apart(&self) -> bool {
        self.server != self.generator
    }

    /// What the reader of the table has to know.
    pub fn note(&self) -> Option<String> {
        (!self.apart()).then(|| {
            "Only one core may be used: server and generator share it, so rates mean little."
                .to_string()
        })
    }
}

impl fmt::Display for Cores {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            out,
            "server on core {}, generator on core {}",
            self.server, self.generator
        )
    }
}

/// Binds the calling thread, and whatever it starts from now on, to one core.
pub fn pin(core: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(core);
    sched_setaffinity(None, &set)
        .map_err(|error| format!("core {core} can't be chosen: {error}").into())
}
