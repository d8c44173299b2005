//! What benches have in common: the daemon that they ask, and how short a run may be.

pub mod daemon;

/// What can go wrong ends as a sentence for the person who runs this.
pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Options of every bench.
#[derive(clap::Args)]
pub struct Length {
    /// Show that everything works, not how fast.
    #[arg(long)]
    quick: bool,

    /// Added by cargo bench.
    #[arg(long, hide = true)]
    bench: bool,
}

impl Length {
    /// Whether everything is to be done once, with little: also without --bench, which is how cargo test starts benches.
    pub fn is_quick(&self) -> bool {
        self.quick || !self.bench
    }
}
