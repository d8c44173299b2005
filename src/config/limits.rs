//! Resource limits: checks the system's limits on threads and file descriptors at the start, and
//! shares out the descriptors.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use rustix::process::{Resource, Rlimit, Uid, getrlimit, setrlimit};

use crate::error::Error;
use shared::sys;

/// Threads that the process needs besides its workers, with a margin.
const SPARE_THREADS: usize = 32;

/// Memory maps that the process needs besides its workers' stacks, with a wide margin.
const SPARE_MAPS: usize = 1000;

/// Memory maps of a thread: its stack, its signal stack, and a guard page for each. Rust aborts the
/// process when a thread can't get them.
const MAPS_PER_THREAD: usize = 4;

/// Address space in bytes that the process needs besides its workers.
const SPARE_ADDRESS_SPACE: usize = 80 << 20;

/// Data memory in bytes that the process needs besides its workers.
const SPARE_DATA: usize = 16 << 20;

/// Bytes of both that a thread needs: its stack, its signal stack, its connection, and a margin.
const MEMORY_PER_THREAD: usize = 96 << 10;

/// Descriptors that the process may need besides those of its clients and those open when they are
/// shared out.
const SPARE_DESCRIPTORS: usize = 12;

/// Largest number of admin HTTP connections.
const MAX_HTTP: u64 = 32;

/// Largest number of connections from other servers of the cluster, and of connections to them.
const MAX_SERVERS: u64 = 128;

/// Largest number of connections whose PROXY header is incomplete.
const MAX_PENDING_HEADERS: u64 = 1024;

/// Largest number of sockets in lingering close.
const MAX_LINGERING: usize = 1024;

/// Fails if a limit allows fewer threads than `workers`, or if the limit on open files leaves no
/// room for a client.
pub fn check(workers: usize) -> Result<(), Error> {
    share_descriptors(1, 0, 1)?;
    let tightest = thread_limits().into_iter().min_by_key(|limit| limit.room);
    match tightest {
        Some(limit) if limit.room < workers => Err(Error::System(format!(
            "--max-clients {workers} needs a thread for each client, and there is room for {}: {}; \
             raise that limit or lower --max-clients",
            limit.room, limit.name
        ))),
        _ => Ok(()),
    }
}

/// Number of workers that a limit allows, and its description.
struct Limit {
    room: usize,
    name: String,
}

impl Limit {
    fn new(room: usize, name: String) -> Self {
        let room = room.saturating_sub(SPARE_THREADS);
        Limit { room, name }
    }

    /// A limit on the number of threads, of which some are `used`.
    fn on_threads(name: &str, max: usize, used: usize) -> Self {
        let description = format!("{name} is {max}, of which {used} are in use");
        Limit::new(max.saturating_sub(used), description)
    }
}

/// Returns the number of workers that each limit allows. Omits limits that can't be read, for
/// example in a sandbox.
fn thread_limits() -> Vec<Limit> {
    let mut limits = Vec::new();
    if let Some(maps) = number_in(Path::new("/proc/sys/vm/max_map_count")) {
        limits.push(Limit::new(
            maps.saturating_sub(SPARE_MAPS) / MAPS_PER_THREAD,
            format!("vm.max_map_count is {maps}, and a thread takes {MAPS_PER_THREAD} maps"),
        ));
    }
    for name in ["kernel.threads-max", "kernel.pid_max"] {
        let file = format!("/proc/sys/{}", name.replace('.', "/"));
        let max = number_in(Path::new(&file));
        limits.extend(max.map(|max| Limit::on_threads(name, max, threads_of_all())));
    }
    let user = rustix::process::getuid();
    let max = getrlimit(Resource::Nproc).current;
    if let Some(max) = max.filter(|_| !is_exempt(user)) {
        let name = "the limit on this user's threads (ulimit -u, LimitNPROC=)";
        let used = threads_of(user.as_raw());
        limits.push(Limit::on_threads(name, as_size(max), used));
    }
    let space = "address space (ulimit -v, LimitAS=)";
    let data = "data (ulimit -d, LimitDATA=)";
    for (resource, used, spare, name) in [
        (Resource::As, "VmSize", SPARE_ADDRESS_SPACE, space),
        (Resource::Data, "VmData", SPARE_DATA, data),
    ] {
        if let Some(max) = getrlimit(resource).current {
            let used = number_of(Path::new("/proc/self/status"), used).unwrap_or(0) * 1024;
            let left = as_size(max).saturating_sub(used + spare);
            let (max, each) = (max / 1024, MEMORY_PER_THREAD / 1024);
            limits.push(Limit::new(
                left / MEMORY_PER_THREAD + SPARE_THREADS,
                format!("the limit on {name} is {max} KiB, and a thread takes {each} KiB"),
            ));
        }
    }
    let root = Path::new("/sys/fs/cgroup");
    let group = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let group = group.lines().find_map(|line| line.strip_prefix("0::/"));
    let group = group.map(|group| root.join(group)).unwrap_or_default();
    for group in group.ancestors().filter(|group| group.starts_with(root)) {
        if let Some(max) = number_in(&group.join("pids.max")) {
            let used = number_in(&group.join("pids.current")).unwrap_or(0);
            let name = "the control group's pids.max (TasksMax=)";
            limits.push(Limit::on_threads(name, max, used));
        }
    }
    limits
}

/// Returns whether `user` is exempt from the limit on a user's threads: the kernel exempts the real
/// root (getrlimit(2)), which the root of a user namespace may not be (user_namespaces(7)).
fn is_exempt(user: Uid) -> bool {
    let maps = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let mut maps = maps.lines().map(|line| line.split_whitespace());
    let outside =
        maps.find_map(|mut map| map.next().filter(|inside| *inside == "0").and(map.next()));
    user.is_root() && outside.is_none_or(|outside| outside == "0")
}

fn number_in(file: &Path) -> Option<usize> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

/// Returns the number after `name:` in a file such as /proc/PID/status.
fn number_of(file: &Path, name: &str) -> Option<usize> {
    let text = fs::read_to_string(file).ok()?;
    let mut lines = text.lines();
    let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    value.split_whitespace().next()?.parse().ok()
}

/// Returns the number of threads in the system (proc_loadavg(5)).
fn threads_of_all() -> usize {
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let threads = load
        .split_whitespace()
        .nth(3)
        .and_then(|running| running.split_once('/'));
    threads.and_then(|(_, all)| all.parse().ok()).unwrap_or(0)
}

/// Returns the number of threads of `user`.
fn threads_of(user: u32) -> usize {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let is_own = |process: &fs::DirEntry| process.metadata().is_ok_and(|it| it.uid() == user);
    processes
        .filter(is_own)
        .filter_map(|process| number_of(&process.path().join("status"), "Threads"))
        .sum()
}

fn as_size(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

/// Distribution of the process's descriptors.
#[derive(Debug, PartialEq, Eq)]
pub struct Descriptors {
    /// Limit on open files.
    pub limit: u64,
    /// Largest number of clients, served or queued.
    pub clients: usize,
    /// Largest number of sockets in lingering close.
    pub lingering: usize,
}

/// Raises the limit on descriptors to its maximum, leaves one second to drain before the limit on
/// processor time ends the process, and restricts the allocator to one arena if the address space
/// is limited. Call it before any thread starts.
pub fn prepare() {
    let Rlimit { current, maximum } = getrlimit(Resource::Cpu);
    if let Some(seconds) = maximum
        && current == maximum
    {
        // SIGXCPU comes at the soft limit, SIGKILL at the hard one. If the change is refused, only
        // SIGKILL comes.
        let current = Some(seconds.saturating_sub(1));
        let _ = setrlimit(Resource::Cpu, Rlimit { current, maximum });
    }
    if getrlimit(Resource::As).current.is_some() {
        sys::allocate_from_one_arena();
    }
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum {
        // If the change is refused, the old limit applies.
        let current = maximum;
        let _ = setrlimit(Resource::Nofile, Rlimit { current, maximum });
    }
}

/// Returns the largest number of admin HTTP connections, which is small where descriptors are few.
pub fn http_connections() -> usize {
    sixteenth(2, MAX_HTTP)
}

/// Returns the largest number of connections from other servers of the cluster, and of connections
/// to them.
pub fn server_connections() -> usize {
    sixteenth(4, MAX_SERVERS)
}

/// Returns the largest number of connections whose PROXY header is incomplete.
pub fn pending_header_connections() -> usize {
    sixteenth(2, MAX_PENDING_HEADERS)
}

/// Returns a sixteenth of the limit on descriptors, within these bounds.
fn sixteenth(min: u64, max: u64) -> usize {
    as_size((descriptor_limit() / 16).clamp(min, max))
}

fn descriptor_limit() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// Shares out descriptors for `clients` clients, of which `here` are open already. Fails if there
/// are too few. Others need `reserved`.
pub fn share_descriptors(
    clients: usize,
    here: usize,
    reserved: usize,
) -> Result<Descriptors, Error> {
    let limit = descriptor_limit();
    // Reading the directory opens one more. Without /proc, assume this number.
    let taken = fs::read_dir("/proc/self/fd").map_or(SPARE_DESCRIPTORS, |open| open.count() - 1);
    match share(limit, (taken + reserved).saturating_sub(here), clients) {
        // Open clients keep their descriptors, even if the limit is lower now.
        Ok(shared) => Ok(Descriptors {
            clients: shared.clients.max(here.min(clients)),
            ..shared
        }),
        Err(_) if here > 0 => Ok(Descriptors {
            limit,
            clients: here.min(clients),
            lingering: 0,
        }),
        Err(error) => Err(error),
    }
}

fn share(limit: u64, taken: usize, clients: usize) -> Result<Descriptors, Error> {
    let room = as_size(limit).saturating_sub(taken + SPARE_DESCRIPTORS);
    let lingering = (room / 8).min(MAX_LINGERING);
    let clients = clients.min(room - lingering);
    if clients == 0 {
        return Err(Error::System(format!(
            "the limit of {limit} open files leaves no room for clients; raise it (ulimit -n, LimitNOFILE=)"
        )));
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
        let shared = share(64, 12, 1000).unwrap();
        assert_eq!((shared.clients, shared.lingering), (35, 5));
        assert_eq!(share(64, 30, 1000).unwrap().clients, 20);
        assert_eq!(share(1_000_000, 12, 1000).unwrap().clients, 1000);
        let error = share(20, 12, 1).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains("the limit of 20 open files"), "{error}");
    }

    #[test]
    fn more_threads_than_any_system_has_are_refused_with_the_limit_named() {
        assert!(check(1).is_ok());
        let error = check(usize::MAX).unwrap_err().to_string();
        assert!(error.contains("there is room for"), "{error}");
    }
}
