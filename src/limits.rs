//! What this system has room for: threads and descriptors. Asked before anything is taken, and named when it is scarce.

use std::fs;
use std::path::Path;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::error::Error;

/// Threads and maps that the process needs besides its workers, with some to spare.
const SPARE_THREADS: usize = 32;

/// Memory maps that the process needs besides its workers' stacks, with many to spare.
const SPARE_MAPS: usize = 1000;

/// Maps that a thread needs: its stack, the stack of its signal handlers, and a guard page for each. Rust aborts the
/// process when a thread can't get them.
const MAPS_PER_THREAD: usize = 4;

/// Descriptors that the process needs besides its clients': log, listeners, state directory, and some to spare.
const SPARE_DESCRIPTORS: usize = 24;

/// The most sockets that may linger.
const MOST_LINGERING: usize = 1024;

/// Refuses more workers than the system has threads for.
pub fn check_threads(workers: usize) -> Result<(), Error> {
    let tightest = thread_limits().into_iter().min_by_key(|limit| limit.room);
    match tightest {
        Some(limit) if limit.room < workers => Err(Error::Threads {
            asked: workers,
            room: limit.room,
            limit: limit.name,
        }),
        _ => Ok(()),
    }
}

struct Limit {
    room: usize,
    name: String,
}

/// How many workers each limit leaves room for. What can't be read (a sandbox may hide it) is no limit.
fn thread_limits() -> Vec<Limit> {
    let mut limits = Vec::new();
    let mut add = |room: usize, name: String| {
        limits.push(Limit {
            room: room.saturating_sub(SPARE_THREADS),
            name,
        });
    };
    if let Some(maps) = number_in(Path::new("/proc/sys/vm/max_map_count")) {
        add(
            maps.saturating_sub(SPARE_MAPS) / MAPS_PER_THREAD,
            format!("vm.max_map_count is {maps}, and a thread takes {MAPS_PER_THREAD} maps"),
        );
    }
    for (file, name) in [
        ("/proc/sys/kernel/threads-max", "kernel.threads-max"),
        ("/proc/sys/kernel/pid_max", "kernel.pid_max"),
    ] {
        if let Some(most) = number_in(Path::new(file)) {
            add(most, format!("{name} is {most}"));
        }
    }
    let processes = getrlimit(Resource::Nproc).current;
    // Root is exempt (getrlimit(2)).
    if let Some(processes) = processes.filter(|_| !rustix::process::geteuid().is_root()) {
        add(
            usize::try_from(processes).unwrap_or(usize::MAX),
            format!("the limit on processes (ulimit -u, LimitNPROC=) is {processes}"),
        );
    }
    let own_group = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let own_group = own_group.lines().find_map(|line| line.strip_prefix("0::/"));
    let root = Path::new("/sys/fs/cgroup");
    for group in own_group
        .map(|group| root.join(group))
        .iter()
        .flat_map(|group| group.ancestors())
    {
        if !group.starts_with(root) {
            break;
        }
        if let Some(most) = number_in(&group.join("pids.max")) {
            let taken = number_in(&group.join("pids.current")).unwrap_or(0);
            add(
                most.saturating_sub(taken),
                format!(
                    "the control group's pids.max (TasksMax=) is {most}, of which {taken} are taken"
                ),
            );
        }
    }
    limits
}

fn number_in(file: &Path) -> Option<usize> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

/// How the process's descriptors are shared out.
#[derive(Debug, PartialEq, Eq)]
pub struct Descriptors {
    /// The limit on open files.
    pub limit: u64,
    /// How many clients may be served or wait.
    pub clients: usize,
    /// How many sockets may linger.
    pub lingering: usize,
}

/// Raises the limit on descriptors as far as it goes, and shares them out: for `clients`, if there are enough.
pub fn share_descriptors(clients: usize) -> Result<Descriptors, Error> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum {
        // If that is refused, the limit stays as it was, and is what we go by.
        let _ = setrlimit(
            Resource::Nofile,
            Rlimit {
                current: maximum,
                maximum,
            },
        );
    }
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    share(limit, clients)
}

fn share(limit: u64, clients: usize) -> Result<Descriptors, Error> {
    let room = usize::try_from(limit)
        .unwrap_or(usize::MAX)
        .saturating_sub(SPARE_DESCRIPTORS);
    let lingering = (room / 8).min(MOST_LINGERING);
    let clients = clients.min(room - lingering);
    if clients == 0 {
        return Err(Error::Descriptors { limit });
    }
    Ok(Descriptors {
        limit,
        clients,
        lingering,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_shared_out_between_clients_and_lingering_sockets() {
        let shared = share(64, 1000).unwrap();
        assert_eq!((shared.clients, shared.lingering), (35, 5));
        assert!(shared.clients + shared.lingering + SPARE_DESCRIPTORS <= 64);
        assert_eq!(share(1_000_000, 1000).unwrap().clients, 1000);
        assert!(matches!(
            share(20, 1),
            Err(Error::Descriptors { limit: 20 })
        ));
    }

    #[test]
    fn more_threads_than_any_system_has_are_refused_with_the_limit_named() {
        assert!(check_threads(1).is_ok());
        let error = check_threads(usize::MAX).unwrap_err().to_string();
        assert!(error.contains("there is room for"), "{error}");
    }
}
