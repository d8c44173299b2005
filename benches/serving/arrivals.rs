//! Clients that connect, ask once, read the reply and close, a number of them at a time.

use std::time::{Duration, Instant};

use rustix::process::Pid;

use crate::Result;
use crate::generator::Generator;
use crate::meter::{Mark, Span, WARM_UP};
use crate::target::Target;
use crate::visit::Visit;
use crate::watch::Watch;

/// The most connections of one measurement, so that ports and the kernel's memory of closed connections last for many.
const MOST: u64 = 40_000;

/// Lets clients come and go for a time.
pub fn run(
    target: &Target,
    server: Pid,
    generator: &mut Generator,
    at_once: usize,
    time: Duration,
) -> Result<Span> {
    let mut watch = generator.watch()?;
    let mut events = Watch::events();
    let mut visits = Vec::with_capacity(at_once);
    for key in 0..at_once {
        visits.push(Some(Visit::begin(target, generator.source(), &watch, key)?));
    }

    let mut served = 0;
    let mut begin: Option<(Mark, u64)> = None;
    let mut span = None;
    let warm = Instant::now() + time.mul_f64(WARM_UP);
    while visits.iter().any(Option::is_some) {
        let now = watch.wait(&mut events, None)?;
        match &begin {
            None if now >= warm => begin = Some((Mark::now(server)?, served)),
            Some((mark, before))
                if span.is_none()
                    && served > *before
                    && (now >= mark.at + time || served - before >= MOST) =>
            {
                span = Some(mark.span(served - before)?);
            }
            _ => {}
        }
        for event in &events {
            let key = event.data.u64() as usize;
            // An event may come late, for a client that has just been replaced; then there is nothing to do yet.
            if let Some(visit) = &mut visits[key]
                && visit.proceed(target)?
            {
                served += 1;
                // Closes here, before the server does.
                visits[key] = None;
                if span.is_none() {
                    visits[key] = Some(Visit::begin(target, generator.source(), &watch, key)?);
                }
            }
        }
    }
    span.ok_or_else(|| "nothing was measured".into())
}
