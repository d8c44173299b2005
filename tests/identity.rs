//! The id of a server: created once, whole or not at all, and kept; and the state directory that it is kept in.

use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use crate::support::kernel::{asked_for, can, in_a_mount_namespace, is_root, strace, wrapped};
use crate::support::tables::{bytes, lines};
use crate::support::*;

const ID: &str = "6f0c2a52-5f0e-4b7e-9a35-0c5f7f5a3c1e";

/// The daemon with this state directory, these words before it and these arguments.
fn command(wrapper: &[impl AsRef<OsStr>], directory: &Path, arguments: &[&str]) -> Command {
    let mut command = wrapped(wrapper, arguments);
    command.arg("--state-directory").arg(directory);
    command
}

fn start(directory: &Path) -> Daemon {
    Daemon::run(command(&["env"], directory, &[]))
}

fn refused(directory: &Path, status: i32, parts: &[&str]) -> String {
    fails_with(command(&["env"], directory, &[]), status, parts)
}

fn id_of(daemon: &Daemon) -> String {
    daemon.ask("WHERE\n").trim_end().to_string()
}

/// The id that is kept in a directory, with its line end.
fn kept(directory: &Path) -> String {
    fs::read_to_string(directory.join("server-id")).unwrap()
}

#[test]
fn the_id_is_created_once_and_kept() {
    let scratch = Scratch::new();
    let daemon = start(scratch.path());
    let id = id_of(&daemon);
    assert_eq!(id.len(), 36);
    assert_eq!(kept(scratch.path()), format!("{id}\n"));
    assert_contains(&daemon.stop(), "created a new id for this server");

    let daemon = start(scratch.path());
    assert_eq!(id_of(&daemon), id);
    assert!(!daemon.stop().contains("new id"));
    assert_eq!(kept(scratch.path()), format!("{id}\n"));
    assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 1);
}

/// Kills it at a random moment of its first start, again and again, in a directory of its own each time.
#[test]
fn killed_while_it_starts_it_leaves_a_whole_id_or_none() {
    let begun = Instant::now();
    start(Scratch::new().path()).stop();
    let a_start = begun.elapsed();
    for _ in 0..asked_for("BLOCKCHAIN_TCPD_TEST_ROUNDS", 20) {
        let scratch = Scratch::new();
        let mut child = command(&["env"], scratch.path(), &["--log", "off"])
            .spawn()
            .unwrap();
        let random = u32::from(uuid::Uuid::new_v4().into_bytes()[0]);
        std::thread::sleep(a_start * random / 256);
        child.kill().unwrap();
        child.wait().unwrap();

        let left = fs::read_to_string(scratch.path().join("server-id")).ok();
        let daemon = start(scratch.path());
        let id = id_of(&daemon);
        assert!(left.is_none_or(|left| left == format!("{id}\n")));
        drop(daemon); // by SIGKILL
        assert_eq!(id_of(&start(scratch.path())), id);
    }
}

#[test]
fn an_unfinished_id_is_overwritten_and_a_link_in_its_place_not_followed() {
    for content in ["", "6f0c2a52", "6f0c2a52-5f0e-4b7e-9a35-0c5f7f5a3c1e\n"] {
        let scratch = Scratch::new();
        let unfinished = scratch.path().join("server-id.new");
        fs::write(&unfinished, content).unwrap();
        let id = id_of(&start(scratch.path()));
        assert_eq!(kept(scratch.path()), format!("{id}\n"));
        assert!(!unfinished.exists());
    }
    let scratch = Scratch::new();
    let [precious, link, id] =
        ["precious", "server-id.new", "server-id"].map(|name| scratch.path().join(name));
    fs::write(&precious, "precious").unwrap();
    symlink(&precious, link).unwrap();
    start(scratch.path()).stop();
    assert_eq!(fs::read_to_string(&precious).unwrap(), "precious");
    assert!(id.symlink_metadata().unwrap().is_file());
}

/// The disk is a tmpfs of one page in a mount namespace, which ends with the daemon.
#[test]
fn on_a_full_disk_it_says_so_and_making_room_is_enough() {
    let scratch = Scratch::new();
    let directory = scratch.path().display();
    let Some(wrapper) = in_a_mount_namespace(&format!(
        "set -e
        mount -t tmpfs -o size=4k none {directory}
        head -c 4096 /dev/zero >{directory}/filler
        test $# -eq 1 || {{
            \"$0\" \"$@\" && exit
            echo it ended with $? >&2
            ls {directory} | sed 's/^/it left /' >&2
        }}
        rm {directory}/filler"
    )) else {
        return;
    };
    let daemon = Daemon::run(command(&wrapper, scratch.path(), &[]));
    let said = daemon.log().lines();
    let expected = format!(
        "blockchain-tcpd: can't write the server's id to {directory}/server-id: No space left on device; make room \
         there and start again"
    );
    assert_eq!(said[..3], [&expected, "it ended with 71", "it left filler"]);
    assert_contains(&said[3], "created a new id for this server");
    assert_contains(&said[3], &id_of(&daemon));
}

#[test]
fn where_it_may_not_write_it_says_so() {
    let (read_only, forbidden) = (Scratch::new(), Scratch::new());
    let mount = format!(
        "mount -t tmpfs -o ro none {} || exit",
        read_only.path().display()
    );
    fs::set_permissions(forbidden.path(), Permissions::from_mode(0o555)).unwrap();
    // Root is above permissions until these are taken away.
    let user = match is_root() {
        true => "setpriv --inh-caps=-all --bounding-set=-all",
        false => "env",
    };
    let user: Vec<String> = user.split(' ').map(str::to_string).collect();
    let user = can(&user).then_some(user);
    for (wrapper, scratch, problem) in [
        (
            in_a_mount_namespace(&mount),
            &read_only,
            "Read-only file system",
        ),
        (user, &forbidden, "Permission denied"),
    ] {
        let Some(wrapper) = wrapper else {
            continue;
        };
        for trial in [&[][..], &["--check"]] {
            let said = format!("{problem}; let this user read and write");
            fails_with(command(&wrapper, scratch.path(), trial), 71, &[&said]);
        }
        assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 0);
    }
}

/// Shared folders of virtual machines and CIFS of old kernels can't sync a directory. A damaged disk is another thing.
#[test]
fn an_id_is_kept_where_the_directory_cannot_be_synced_unless_the_disk_is_damaged() {
    for (error, when) in [("EINVAL", "2"), ("EBADF", "2"), ("EOPNOTSUPP", "1+")] {
        let Some(wrapper) = strace(&format!("fsync:error={error}:when={when}")) else {
            return;
        };
        let scratch = Scratch::new();
        let daemon = Daemon::run(command(&wrapper, scratch.path(), &[]));
        daemon.log().wait_for("the state directory can't be synced");
        let id = id_of(&daemon);
        daemon.stop();
        assert_eq!(id_of(&start(scratch.path())), id);
    }
    if let Some(wrapper) = strace("fsync:error=EIO:when=2") {
        let scratch = Scratch::new();
        let command = command(&wrapper, scratch.path(), &[]);
        fails_with(command, 71, &["can't write the server's id to "]);
    }
}

/// As a check of the settings has it for a moment (`--check`).
#[test]
fn a_lock_that_another_process_has_for_a_moment_is_waited_for() {
    if let Some(wrapper) = strace("flock:error=EAGAIN:when=1") {
        let scratch = Scratch::new();
        Daemon::run(command(&wrapper, scratch.path(), &[])).stop();
    }
}

/// NFS without its lock service, and some file systems of user space; a trial says so, too.
#[test]
fn a_file_system_without_locks_is_an_error_that_says_what_to_do() {
    for error in ["ENOLCK", "EOPNOTSUPP", "EINVAL", "ENOSYS"] {
        let Some(wrapper) = strace(&format!("flock:error={error}")) else {
            return;
        };
        for arguments in [&["--check"][..], &[], &["--check", "--server-id", ID]] {
            let scratch = Scratch::new();
            let directory = scratch.path();
            let problem = format!("can't lock the state directory {}", directory.display());
            let advice = "choose a directory on a local disk";
            fails_with(
                command(&wrapper, directory, arguments),
                71,
                &[&problem, advice],
            );
        }
    }
}

#[test]
fn a_state_directory_must_be_a_directory() {
    let scratch = Scratch::new();
    let [missing, file] = ["missing", "file"].map(|name| scratch.path().join(name));
    refused(
        &missing,
        71,
        &[missing.to_str().unwrap(), "create the directory first"],
    );
    assert!(!missing.exists());
    fs::write(&file, "content").unwrap();
    let said = refused(&file, 71, &[file.to_str().unwrap()]);
    assert_contains(&said.to_lowercase(), "not a directory");
    assert_eq!(fs::read_to_string(&file).unwrap(), "content");
}

#[test]
fn a_damaged_id_is_an_error_and_stays_as_it_is() {
    let contents = lines(include_str!("identity/damaged.txt")).map(bytes);
    for content in contents {
        let scratch = Scratch::new();
        let file = scratch.path().join("server-id");
        fs::write(&file, &content).unwrap();
        let advice = ["write the right id into it", "or remove it"];
        let said = refused(scratch.path(), 78, &advice);
        assert_contains(&said, file.to_str().unwrap());
        assert!(said.chars().all(|c| c == '\n' || !c.is_control()), "{said}");
        assert_eq!(fs::read(&file).unwrap(), content);
    }
}

#[test]
fn two_daemons_never_share_a_state_directory() {
    let scratch = Scratch::new();
    let directory = scratch.path();
    let used = [directory.to_str().unwrap(), "is used by another process"];
    let first = start(directory);
    let id = id_of(&first);
    refused(directory, 78, &used);
    assert_eq!(id_of(&first), id);
    drop(first); // by SIGKILL
    assert_eq!(id_of(&start(directory)), id);

    // A given id leaves the kept one alone, and the directory is its own too.
    let given = || command(&["env"], directory, &["--server-id", ID]);
    let first = Daemon::run(given());
    assert_eq!(id_of(&first), ID);
    assert_eq!(kept(directory), format!("{id}\n"));
    fails_with(given(), 78, &used);
}

#[test]
fn a_trial_beside_a_server_leaves_its_directory_alone() {
    let scratch = Scratch::new();
    let trial = |arguments: &[&str]| {
        command(
            &["env"],
            scratch.path(),
            &[&["--check"], arguments].concat(),
        )
    };
    let daemon = start(scratch.path());
    fails_with(trial(&[]), 0, &[]);
    daemon.stop();
    // A given id needs none that is kept.
    fs::write(scratch.path().join("server-id"), "damaged").unwrap();
    fails_with(trial(&[]), 78, &[]);
    fails_with(trial(&["--server-id", ID]), 0, &[]);
}

#[test]
fn without_a_state_directory_the_id_is_new_at_each_start_and_the_log_says_so() {
    let [first, second] = [(); 2].map(|()| {
        let daemon = Daemon::start([""; 0]);
        let id = id_of(&daemon);
        let warning = "this id is for this run only: there is no --state-directory";
        assert_contains(&daemon.stop(), warning);
        id
    });
    assert_ne!(first, second);
}

#[test]
fn an_id_file_that_is_no_file_is_refused_and_not_waited_for() {
    let no_file = "it is not a regular file";
    type Make = fn(&Path);
    let places: [(Make, &str); 4] = [
        (|path| drop(UnixListener::bind(path).unwrap()), no_file),
        (|path| symlink("/dev/zero", path).unwrap(), no_file),
        (
            |path| symlink("nowhere", path).unwrap(),
            "it is a symbolic link to nothing",
        ),
        (
            |path| assert!(Command::new("mkfifo").arg(path).status().unwrap().success()),
            no_file,
        ),
    ];
    for (make, problem) in places {
        let scratch = Scratch::new();
        make(&scratch.path().join("server-id"));
        refused(scratch.path(), 78, &[problem]);
    }
    let scratch = Scratch::new();
    let unfinished = scratch.path().join("server-id.new");
    fs::create_dir(&unfinished).unwrap();
    let problem = format!("can't remove {}: Is a directory", unfinished.display());
    refused(scratch.path(), 71, &[&problem]);
}
