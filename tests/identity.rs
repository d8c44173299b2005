//! The id of a server: created once, whole or not at all, and kept; and the state directory that it is kept in.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Instant;

use crate::support::kernel::{asked_for, is_root, shell, through};
use crate::support::{Daemon, Scratch, fails, program, run_to_end};

const ID: &str = "6f0c2a52-5f0e-4b7e-9a35-0c5f7f5a3c1e";

fn start(directory: &Path) -> Daemon {
    Daemon::start(["--state-directory".as_ref(), directory.as_os_str()])
}

fn fails_in(directory: &Path) -> (i32, String) {
    let directory = directory.to_str().expect("a plain name");
    fails(["--listen", "127.0.0.1:0", "--state-directory", directory])
}

fn id_of(daemon: &Daemon) -> String {
    daemon.ask("WHERE\n").trim_end().to_string()
}

#[test]
fn the_id_is_created_once_and_kept() {
    let scratch = Scratch::new();
    let file = scratch.path().join("server-id");
    let daemon = start(scratch.path());
    let id = id_of(&daemon);
    assert_eq!(id.len(), 36);
    assert_eq!(fs::read_to_string(&file).unwrap(), format!("{id}\n"));
    assert!(daemon.stop().contains("created a new id for this server"));

    let daemon = start(scratch.path());
    assert_eq!(id_of(&daemon), id);
    assert!(!daemon.stop().contains("new id"));
    assert_eq!(fs::read_to_string(&file).unwrap(), format!("{id}\n"));
    assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 1);
}

/// Kills it at a random moment of its first start, again and again, in a directory of its own each time.
#[test]
fn killed_while_it_starts_it_leaves_a_whole_id_or_none() {
    let begun = Instant::now();
    start(Scratch::new().path()).stop();
    let a_start = begun.elapsed();
    let rounds = asked_for("BLOCKCHAIN_TCPD_TEST_ROUNDS", 20);
    for _ in 0..rounds {
        let scratch = Scratch::new();
        let mut command = program();
        command.args(["--listen", "127.0.0.1:0", "--log", "off"]);
        command.arg("--state-directory").arg(scratch.path());
        let mut child = command.spawn().unwrap();
        let random = u32::from(uuid::Uuid::new_v4().into_bytes()[0]);
        std::thread::sleep(a_start * random / 256);
        child.kill().unwrap();
        child.wait().unwrap();

        let left = fs::read_to_string(scratch.path().join("server-id")).ok();
        let daemon = start(scratch.path());
        let id = id_of(&daemon);
        if let Some(left) = left {
            assert_eq!(left, format!("{id}\n"));
        }
        drop(daemon); // by SIGKILL
        assert_eq!(id_of(&start(scratch.path())), id);
    }
}

#[test]
fn what_a_crash_left_unfinished_is_overwritten() {
    for content in ["", "6f0c2a52", "6f0c2a52-5f0e-4b7e-9a35-0c5f7f5a3c1e\n"] {
        let scratch = Scratch::new();
        fs::write(scratch.path().join("server-id.new"), content).unwrap();
        let daemon = start(scratch.path());
        let file = fs::read_to_string(scratch.path().join("server-id")).unwrap();
        assert_eq!(file, format!("{}\n", id_of(&daemon)));
        assert!(!scratch.path().join("server-id.new").exists());
    }
}

/// The disk is a tmpfs of one page in a mount namespace, which ends with the daemon.
#[test]
fn on_a_full_disk_it_says_so_and_making_room_is_enough() {
    let scratch = Scratch::new();
    let directory = scratch.path().to_str().unwrap();
    let script = shell(&format!(
        "set -e
        mount -t tmpfs -o size=4k none {directory}
        head -c 4096 /dev/zero >{directory}/filler
        test $# -eq 1 || {{
            \"$0\" \"$@\" && exit
            echo it ended with $? >&2
            ls {directory} | sed 's/^/it left /' >&2
        }}
        rm {directory}/filler"
    ));
    let wrapper: Vec<&str> = ["unshare", "--mount"]
        .into_iter()
        .chain(script.iter().map(String::as_str))
        .collect();
    needs!(run & wrapper);
    let daemon = Daemon::start_through(&wrapper, ["--state-directory", directory]);
    let said = daemon.log().lines();
    let expected = format!(
        "blockchain-tcpd: can't write the server's id to {directory}/server-id: No space left on device; make room \
         there and start again"
    );
    assert_eq!(said[0], expected);
    assert_eq!(said[1], "it ended with 71");
    assert_eq!(said[2], "it left filler");
    assert!(
        said[3].contains("created a new id for this server"),
        "{}",
        said[3]
    );
    assert!(said[3].contains(&id_of(&daemon)), "{}", said[3]);
}

#[test]
fn on_a_read_only_disk_it_says_so() {
    let scratch = Scratch::new();
    let directory = scratch.path().to_str().unwrap();
    let script = shell(&format!("mount -t tmpfs -o ro none {directory} || exit"));
    let wrapper: Vec<&str> = ["unshare", "--mount"]
        .into_iter()
        .chain(script.iter().map(String::as_str))
        .collect();
    needs!(run & wrapper);
    for trial in [&[][..], &["--check"]] {
        let mut command = through(&wrapper);
        command.args(["--listen", "127.0.0.1:0", "--state-directory", directory]);
        command.args(trial);
        let (status, said) = run_to_end(command);
        assert_eq!(status, 71, "{said}");
        assert!(
            said.contains("Read-only file system; let this user read and write"),
            "{said}"
        );
    }
}

/// The words before the daemon that have a system call fail in it.
fn failing<'a>(call: &'a str, inject: &'a str) -> [&'a str; 10] {
    [
        "strace",
        "-D",
        "-f",
        "-qq",
        "-o",
        "/dev/null",
        "-e",
        call,
        "-e",
        inject,
    ]
}

/// Shared folders of virtual machines and CIFS of old kernels.
#[test]
fn a_file_system_that_cannot_sync_keeps_an_id_all_the_same() {
    for (error, when) in [("EINVAL", "2"), ("EBADF", "2"), ("EOPNOTSUPP", "1+")] {
        let scratch = Scratch::new();
        let directory = scratch.path().to_str().unwrap();
        let inject = format!("inject=fsync:error={error}:when={when}");
        let wrapper = failing("trace=fsync", &inject);
        needs!(run & wrapper);
        let daemon = Daemon::start_through(&wrapper, ["--state-directory", directory]);
        daemon.log().wait_for("the state directory can't be synced");
        let id = id_of(&daemon);
        daemon.stop();
        assert_eq!(id_of(&start(scratch.path())), id);
    }
}

/// A damaged disk is another thing.
#[test]
fn an_id_that_the_disk_cannot_keep_is_an_error() {
    let scratch = Scratch::new();
    let wrapper = failing("trace=fsync", "inject=fsync:error=EIO:when=2");
    needs!(run & wrapper);
    let mut command = through(&wrapper);
    command.args(["--listen", "127.0.0.1:0", "--state-directory"]);
    command.arg(scratch.path());
    let (status, said) = run_to_end(command);
    assert_eq!(status, 71, "{said}");
    assert!(said.contains("can't write the server's id to "), "{said}");
}

/// As a check of the settings has it for a moment (`--check`).
#[test]
fn a_lock_that_another_process_has_for_a_moment_is_waited_for() {
    let wrapper = failing("trace=flock", "inject=flock:error=EAGAIN:when=1");
    needs!(run & wrapper);
    let scratch = Scratch::new();
    let directory = scratch.path().to_str().unwrap();
    Daemon::start_through(&wrapper, ["--state-directory", directory]).stop();
}

/// NFS without its lock service, and some file systems of user space; a trial says so, too.
#[test]
fn a_file_system_without_locks_is_an_error_that_says_what_to_do() {
    for error in ["ENOLCK", "EOPNOTSUPP", "EINVAL", "ENOSYS"] {
        let inject = format!("inject=flock:error={error}");
        let wrapper = failing("trace=flock", &inject);
        needs!(run & wrapper);
        for arguments in [&["--check"][..], &[], &["--check", "--server-id", ID]] {
            let scratch = Scratch::new();
            let mut command = through(&wrapper);
            command.args(["--listen", "127.0.0.1:0", "--state-directory"]);
            command.arg(scratch.path()).args(arguments);
            let (status, said) = run_to_end(command);
            assert_eq!(status, 71, "{arguments:?}: {said}");
            let expected = format!(
                "can't lock the state directory {}",
                scratch.path().display()
            );
            assert!(said.contains(&expected), "{said}");
            assert!(
                said.contains("choose a directory on a local disk"),
                "{said}"
            );
        }
    }
}

#[test]
fn a_trial_beside_a_server_leaves_its_directory_alone() {
    let scratch = Scratch::new();
    let directory = scratch.path().to_str().unwrap();
    let daemon = start(scratch.path());
    let (status, said) = fails(["--check", "--state-directory", directory]);
    assert_eq!(status, 0, "{said}");
    daemon.stop();
    // A given id needs none that is kept.
    fs::write(scratch.path().join("server-id"), "damaged").unwrap();
    let trial = ["--check", "--state-directory", directory];
    assert_eq!(fails(trial).0, 78);
    let (status, said) = fails([&trial[..], &["--server-id", ID]].concat());
    assert_eq!(status, 0, "{said}");
}

#[test]
fn where_it_may_not_write_it_says_so() {
    let scratch = Scratch::new();
    let directory = scratch.path();
    fs::set_permissions(directory, fs::Permissions::from_mode(0o555)).unwrap();
    // Root is above permissions until these are taken away.
    let wrapper: &[&str] = match is_root() {
        true => &["setpriv", "--inh-caps=-all", "--bounding-set=-all"],
        false => &["env"],
    };
    needs!(run wrapper);
    for trial in [&[][..], &["--check"]] {
        let mut command = through(wrapper);
        command.args(["--listen", "127.0.0.1:0", "--state-directory"]);
        command.arg(directory).args(trial);
        let (status, said) = run_to_end(command);
        assert_eq!(status, 71, "{said}");
        assert!(
            said.contains("Permission denied; let this user read and write"),
            "{said}"
        );
    }
    assert_eq!(fs::read_dir(directory).unwrap().count(), 0);
}

#[test]
fn a_state_directory_must_be_a_directory() {
    let scratch = Scratch::new();
    let missing = scratch.path().join("missing");
    let (status, said) = fails_in(&missing);
    assert_eq!(status, 71, "{said}");
    assert!(said.contains(missing.to_str().unwrap()), "{said}");
    assert!(said.contains("create the directory first"), "{said}");
    assert!(!missing.exists());

    let file = scratch.path().join("file");
    fs::write(&file, "content").unwrap();
    let (status, said) = fails_in(&file);
    assert_eq!(status, 71, "{said}");
    assert!(said.contains(file.to_str().unwrap()), "{said}");
    assert!(said.to_lowercase().contains("not a directory"), "{said}");
    assert_eq!(fs::read_to_string(&file).unwrap(), "content");
}

#[test]
fn a_damaged_id_is_an_error_and_stays_as_it_is() {
    let garbage = format!("{ID}{:200}garbage", "");
    let contents: [&[u8]; 8] = [
        garbage.as_bytes(),
        b"",
        b"\n",
        b"6f0c2a52-5f0e-4b7e",
        b"6f0c2a52-5f0e-4b7e-9a35-0c5f7f5a3c1e\n6f0c2a52-5f0e-4b7e-9a35-0c5f7f5a3c1f\n",
        b"\x00\xff\x1b[31m\x80\n",
        &[0; 37],
        b"00000000-0000-0000-0000-000000000000\n",
    ];
    for content in contents {
        let scratch = Scratch::new();
        let file = scratch.path().join("server-id");
        fs::write(&file, content).unwrap();
        let (status, said) = fails_in(scratch.path());
        assert_eq!(status, 78, "{content:?}: {said}");
        assert!(said.contains(file.to_str().unwrap()), "{said}");
        assert!(said.contains("write the right id into it"), "{said}");
        assert!(said.contains("or remove it"), "{said}");
        assert!(said.chars().all(|c| c == '\n' || !c.is_control()), "{said}");
        assert_eq!(fs::read(&file).unwrap(), content);
    }
}

#[test]
fn two_daemons_never_share_a_state_directory() {
    let scratch = Scratch::new();
    let first = start(scratch.path());
    let id = id_of(&first);
    let (status, said) = fails_in(scratch.path());
    assert_eq!(status, 78, "{said}");
    assert!(said.contains(scratch.path().to_str().unwrap()), "{said}");
    assert!(said.contains("is used by another process"), "{said}");
    assert_eq!(id_of(&first), id);

    drop(first); // by SIGKILL
    assert_eq!(id_of(&start(scratch.path())), id);
}

#[test]
fn without_a_state_directory_the_id_is_new_at_each_start_and_the_log_says_so() {
    let [first, second] = [(); 2].map(|()| {
        let daemon = Daemon::start([""; 0]);
        let id = id_of(&daemon);
        let log = daemon.stop();
        assert!(
            log.contains("this id is for this run only: there is no --state-directory"),
            "{log}"
        );
        id
    });
    assert_ne!(first, second);
}

#[test]
fn a_given_id_outdoes_the_kept_one_and_leaves_it_alone() {
    let scratch = Scratch::new();
    let file = scratch.path().join("server-id");
    let kept = "0c4a6f27-29a1-4d8e-8c55-5ab1f3a0e6d7\n";
    fs::write(&file, kept).unwrap();
    let directory = scratch.path().to_str().unwrap();
    let daemon = Daemon::start(["--state-directory", directory, "--server-id", ID]);
    assert_eq!(id_of(&daemon), ID);
    assert_eq!(fs::read_to_string(&file).unwrap(), kept);
}

#[test]
fn an_id_file_that_is_no_file_is_refused_and_not_waited_for() {
    let scratch = Scratch::new();
    let pipe = scratch.path().join("server-id");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status();
    assert!(made.expect("mkfifo runs").success());
    let (status, said) = fails_in(scratch.path());
    assert_eq!(status, 78, "{said}");
    assert!(said.contains("it is not a regular file"), "{said}");

    for (target, problem) in [
        ("/dev/zero", "it is not a regular file"),
        ("nowhere", "it is a symbolic link to nothing"),
    ] {
        std::fs::remove_file(&pipe).unwrap();
        std::os::unix::fs::symlink(target, &pipe).unwrap();
        let (status, said) = fails_in(scratch.path());
        assert_eq!(status, 78, "{said}");
        assert!(said.contains(problem), "{said}");
    }
    std::fs::remove_file(&pipe).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(&pipe).unwrap();
    let (status, said) = fails_in(scratch.path());
    assert_eq!(status, 78, "{said}");
    assert!(said.contains("it is not a regular file"), "{said}");
}

#[test]
fn what_keeps_a_new_id_from_being_written_is_named() {
    let scratch = Scratch::new();
    let unfinished = scratch.path().join("server-id.new");
    std::fs::create_dir(&unfinished).unwrap();
    let (status, said) = fails_in(scratch.path());
    assert_eq!(status, 71, "{said}");
    let expected = format!("can't remove {}: Is a directory", unfinished.display());
    assert!(said.contains(&expected), "{said}");
}

#[test]
fn with_a_given_id_too_the_state_directory_is_its_own() {
    let scratch = Scratch::new();
    let directory = scratch.path().to_str().unwrap();
    let arguments = ["--state-directory", directory, "--server-id", ID];
    let first = Daemon::start(arguments);
    let (status, said) = fails([&["--listen", "127.0.0.1:0"], &arguments[..]].concat());
    assert_eq!(status, 78, "{said}");
    assert!(said.contains("is used by another process"), "{said}");
    first.stop();
}

#[test]
fn what_stands_in_the_place_of_an_unfinished_id_is_not_followed() {
    let scratch = Scratch::new();
    let precious = scratch.path().join("precious");
    std::fs::write(&precious, "precious").unwrap();
    std::os::unix::fs::symlink(&precious, scratch.path().join("server-id.new")).unwrap();
    start(scratch.path()).stop();
    assert_eq!(std::fs::read_to_string(&precious).unwrap(), "precious");
    assert!(
        scratch
            .path()
            .join("server-id")
            .symlink_metadata()
            .unwrap()
            .is_file()
    );
}
