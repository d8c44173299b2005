//! WHO, of a server alone and of one in a cluster, in turns.

use std::time::Duration;

use crate::common::figures::{median, spread};
use crate::common::load::{Expected, Workload};
use crate::common::machine::cpu_time;
use crate::common::server::{PROGRAM, Server};
use crate::common::{Result, connect, run};

/// How long a measurement takes.
const TIME: Duration = Duration::from_millis(400);

/// Returns the rate of WHO with this number of requests in flight, and the CPU time for each in
/// seconds.
fn ask(server: &Server, depth: u32) -> Result<(f64, f64)> {
    let mut workload = Workload::new(server.address, b"WHO", Expected::Count);
    (workload.depth, workload.duration) = (depth, TIME);
    let pid = server.pid();
    workload.cpu_clock = Box::new(move || cpu_time(pid).unwrap_or_default());
    let stats = run(&mut connect(workload)?)?;
    let replies = stats.replies as f64;
    Ok((
        replies / TIME.as_secs_f64(),
        stats.cpu.as_secs_f64() / replies,
    ))
}

/// Prints what WHO costs in a cluster against alone.
pub fn measure(rounds: usize) -> Result<()> {
    let redis = Server::redis()?;
    let start = |more: &[&str]| {
        Server::daemon(
            PROGRAM,
            &[&["--http=", "--max-clients", "16"], more].concat(),
        )
    };
    let alone = start(&[])?;
    let member = start(&["--cluster", &format!("redis://{}", redis.address)])?;
    println!("WHO in a cluster over Redis against WHO alone, {rounds} rounds, one client:\n");
    println!("| requests at once | rate | CPU for each |\n|---|---|---|");
    for at_once in [1, 16, 128] {
        let (mut rates, mut costs) = (Vec::new(), Vec::new());
        for round in 0..rounds {
            eprintln!("{at_once} at once, round {}", round + 1);
            // Another one first in each round.
            let mut found = [(0.0, 0.0); 2];
            for turn in [round % 2, (round + 1) % 2] {
                found[turn] = ask([&alone, &member][turn], at_once)?;
            }
            rates.push(found[1].0 / found[0].0);
            costs.push(found[1].1 / found[0].1);
        }
        let (rate, cost) = (median(&rates), median(&costs));
        let apart = spread(&rates) * 200.0;
        println!("| {at_once} | {rate:.3} (quartiles {apart:.0} % apart) | {cost:.3} |");
    }
    println!();
    Ok(())
}
