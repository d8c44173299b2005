//! A program that can't take over costs nobody anything.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use blockchain_tcpd::handover::state;

use super::{replace, times};
use crate::support::kernel::{can, shell};
use crate::support::{Daemon, Scratch, clean, field, program, run_to_end, wait_until};

/// A copy of the program, which can be replaced, and a daemon that runs it.
fn start_a_copy(scratch: &Scratch, arguments: &[&str]) -> (PathBuf, Daemon) {
    let copy = scratch.path().join("blockchain-tcpd");
    std::fs::copy(program().get_program(), &copy).unwrap();
    let mut command = clean(&copy);
    command.args(["--listen", "127.0.0.1:0"]).args(arguments);
    (copy, Daemon::run(command))
}

/// Puts another program in the place of this one. Never written in place: that program runs.
fn put(copy: &Path, content: impl AsRef<[u8]>, mode: u32) {
    let new = copy.with_extension("new");
    std::fs::write(&new, content).unwrap();
    std::fs::set_permissions(&new, std::fs::Permissions::from_mode(mode)).unwrap();
    std::fs::rename(&new, copy).unwrap();
}

/// As releases are laid out by many: each in a directory of its own, and a link to the current one.
#[test]
fn the_path_as_it_was_given_is_followed_again_at_each_handover() {
    for (way, name) in [
        ("exec DIR/current/blockchain-tcpd", None),
        ("cd DIR && exec ./current/blockchain-tcpd", None),
        ("cd DIR/current && exec ./blockchain-tcpd", None),
        ("cd DIR && PATH=current:$PATH && exec blockchain-tcpd", None),
        ("exec -a -other DIR/current/blockchain-tcpd", Some("-other")),
        (
            "exec 9<DIR/v1/blockchain-tcpd && exec -a DIR/current/blockchain-tcpd /proc/self/fd/9",
            None,
        ),
    ] {
        let scratch = Scratch::new();
        let [v1, v2, current, next] =
            ["v1", "v2", "current", "next"].map(|n| scratch.path().join(n));
        for release in [&v1, &v2] {
            std::fs::create_dir(release).unwrap();
            std::fs::copy(program().get_program(), release.join("blockchain-tcpd")).unwrap();
        }
        std::os::unix::fs::symlink("v1", &current).unwrap();
        let way = way.replace("DIR", scratch.path().to_str().unwrap());
        let mut command = clean("bash");
        command.args(["-c", &format!("{way} \"$@\""), "bash"]);
        command.args(["--listen", "127.0.0.1:0", "--max-clients", "8"]);
        let daemon = Daemon::run(command);
        let running = || std::fs::read_link(format!("/proc/{}/exe", daemon.pid())).unwrap();
        assert_eq!(running(), v1.join("blockchain-tcpd"), "{way}");
        std::os::unix::fs::symlink("v2", &next).unwrap();
        std::fs::rename(&next, &current).unwrap();
        replace(&daemon);
        assert_eq!(running(), v2.join("blockchain-tcpd"), "{way}");
        let said = daemon.log().wait_for("takes over ");
        assert_eq!(field(&said, "program"), running().to_str().unwrap());
        assert_eq!(field(&said, "version"), env!("CARGO_PKG_VERSION"));
        // The directory by which it was started may be this one.
        std::fs::remove_dir_all(&v1).unwrap();
        replace(&daemon);
        if let Some(name) = name {
            let words = std::fs::read(format!("/proc/{}/cmdline", daemon.pid())).unwrap();
            assert!(words.starts_with(name.as_bytes()), "its name stays");
        }
        daemon.stop();
    }
}

/// A relative path needs the working directory, which may be one of a release or of a job that is removed.
#[test]
fn a_relative_path_outlives_the_directory_that_it_began_in() {
    for (way, next) in [
        ("../current/blockchain-tcpd", "v2"),
        ("./../v1/blockchain-tcpd", "v1"),
        ("./link", "v1"),
    ] {
        let scratch = Scratch::new();
        let path = |name: &str| scratch.path().join(name);
        for release in ["v1", "v2"] {
            std::fs::create_dir(path(release)).unwrap();
            let copy = path(release).join("blockchain-tcpd");
            std::fs::copy(program().get_program(), copy).unwrap();
        }
        std::fs::create_dir(path("wd")).unwrap();
        std::os::unix::fs::symlink("v1", path("current")).unwrap();
        std::os::unix::fs::symlink("../v1/blockchain-tcpd", path("wd/link")).unwrap();
        let mut command = clean("sh");
        let wd = path("wd");
        let script = format!("cd {} && exec {way} \"$@\"", wd.display());
        command.args(["-c", &script, "sh", "--listen", "127.0.0.1:0"]);
        command.args(["--max-clients", "8"]);
        let daemon = Daemon::run(command);
        std::os::unix::fs::symlink("v2", path("next")).unwrap();
        std::fs::rename(path("next"), path("current")).unwrap();
        std::fs::remove_dir_all(&wd).unwrap();
        for _ in 0..2 {
            replace(&daemon);
            let running = std::fs::read_link(format!("/proc/{}/exe", daemon.pid())).unwrap();
            assert_eq!(running, path(next).join("blockchain-tcpd"), "{way}");
        }
        let said = "the working directory in which the program was started is gone";
        assert_eq!(times(&daemon, said), 1, "{way}");
        daemon.stop();
    }
}

/// It is a mistake that can be mended, and not a reason to start the last release as if it were the next.
#[test]
fn a_link_to_nothing_is_an_error_and_followed_once_it_leads_somewhere() {
    let scratch = Scratch::new();
    let link = scratch.path().join("link");
    std::os::unix::fs::symlink(program().get_program(), &link).unwrap();
    let mut command = clean(&link);
    command.args(["--listen", "127.0.0.1:0", "--max-clients", "8"]);
    let daemon = Daemon::run(command);
    std::fs::remove_file(&link).unwrap();
    std::os::unix::fs::symlink("nowhere", &link).unwrap();
    daemon.signal("USR2");
    let said = daemon.log().wait_for("keeps running");
    assert!(
        said.contains(&format!("can't run {}", link.display())),
        "{said}"
    );
    std::fs::remove_file(&link).unwrap();
    std::os::unix::fs::symlink(program().get_program(), &link).unwrap();
    replace(&daemon);
    daemon.stop();
}

/// As a container has a single file of its host, which is replaced there: the container keeps the old one until it is mounted anew.
#[test]
fn a_program_that_is_a_mounted_file_takes_over_also_when_its_host_has_replaced_it() {
    let scratch = Scratch::new();
    let [old, new, mounted] = ["old", "new", "mounted"].map(|name| scratch.path().join(name));
    for file in [&old, &new] {
        std::fs::copy(program().get_program(), file).unwrap();
    }
    std::fs::write(&mounted, "").unwrap();
    let mount = |file: &Path| format!("mount --bind {} {}", file.display(), mounted.display());
    let script = shell(&format!("{} || exit; shift", mount(&old)));
    let [sh, c, commands] = script.map(|word| word.replace("\"$0\"", mounted.to_str().unwrap()));
    let wrapper = ["unshare", "--mount", &*sh, &*c, &*commands, "sh"];
    if !can(&wrapper) {
        return;
    }
    let daemon = Daemon::start_through(&wrapper, ["--max-clients", "8"]);
    let runs = |file: u64| {
        let running = std::fs::metadata(format!("/proc/{}/exe", daemon.pid())).unwrap();
        running.ino() == file
    };
    let number = |file: &Path| std::fs::metadata(file).unwrap().ino();
    let (first, second) = (number(&old), number(&new));
    std::fs::remove_file(&old).unwrap();
    replace(&daemon);
    assert!(runs(first));
    let pid = daemon.pid().to_string();
    let mut enter = std::process::Command::new("nsenter");
    let anew = format!("umount --lazy {} && {}", mounted.display(), mount(&new));
    enter.args(["--mount", "--target", &pid, "sh", "-c", &anew]);
    assert!(enter.status().unwrap().success());
    replace(&daemon);
    assert!(runs(second));
    daemon.stop();
}

/// A program that can't take over leaves everything as it is, and the log says why.
#[test]
fn a_program_that_cannot_take_over_costs_nobody_anything() {
    let scratch = Scratch::new();
    let state = scratch.path().join("state");
    std::fs::create_dir(&state).unwrap();
    let (copy, daemon) = start_a_copy(&scratch, &["--state-directory", state.to_str().unwrap()]);
    let mut client = daemon.connect();
    client.send("WH");

    let put = |content: &[u8], mode| put(&copy, content, mode);
    let bad: [(&str, &dyn Fn()); 6] = [
        ("can't run ", &|| std::fs::remove_file(&copy).unwrap()),
        ("Exec format error", &|| put(b"garbage", 0o755)),
        ("Permission denied", &|| put(b"#!/bin/sh\n", 0o644)),
        ("is not blockchain-tcpd", &|| {
            put(b"#!/bin/sh\nexit 0\n", 0o755)
        }),
        ("--check fails with exit status: 3", &|| {
            put(b"#!/bin/sh\nexit 3\n", 0o755)
        }),
        ("--check fails with ", &|| {
            std::fs::copy(program().get_program(), &copy).unwrap();
            std::fs::rename(&state, scratch.path().join("gone")).unwrap();
        }),
    ];
    for (number, (why, spoil)) in bad.into_iter().enumerate() {
        spoil();
        daemon.signal("USR2");
        let said = "keeps running, the new program can't take over: ";
        wait_until(why, || times(&daemon, said) == number + 1);
        let lines = daemon.log().lines();
        let line = lines.iter().rfind(|line| line.contains(said)).unwrap();
        assert!(line.contains(why), "{line}");
        assert_eq!(client.ask(if number == 0 { "Y" } else { "WHY" }), "42");
    }
    std::fs::rename(scratch.path().join("gone"), &state).unwrap();
    replace(&daemon);
    assert_eq!(client.ask("WHY"), "42");
    daemon.stop();
}

/// One that passes its trial and then isn't there any more: the same process goes on with what it had let go of.
#[test]
fn a_program_that_vanishes_after_its_trial_costs_nobody_anything() {
    let scratch = Scratch::new();
    let (copy, daemon) = start_a_copy(&scratch, &[]);
    let mut client = daemon.connect();
    client.send("WH");
    let removes_itself = format!(
        "#!/bin/sh\nrm {}\necho blockchain-tcpd reads version {} of the handover state\n",
        copy.display(),
        state::VERSION
    );
    put(&copy, removes_itself, 0o755);
    replace(&daemon);
    let said = daemon.log().wait_for("keeps running: can't run ");
    assert!(said.contains("No such file"), "{said}");
    assert_eq!(client.ask("Y"), "42");
    assert_eq!(client.ask("WHO"), "1");
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = u64::from_str_radix(ignored.unwrap().trim(), 16).unwrap();
    assert_ne!(
        ignored & 1 << (libc::SIGPIPE - 1),
        0,
        "a log that nobody reads ends it"
    );
    daemon.stop();
}

/// A file in memory may be no larger than others.
#[test]
fn clients_whose_state_cannot_be_encoded_stay() {
    let wrapper = shell("ulimit -f 0 || exit");
    let wrapper: Vec<&str> = wrapper.iter().map(String::as_str).collect();
    let daemon = Daemon::start_through(&wrapper, ["--max-clients", "8"]);
    let mut client = daemon.connect();
    client.send("WH");
    replace(&daemon);
    let said = daemon.log().wait_for("keeps running: ");
    assert!(
        said.contains("can't encode the handover state: File too large"),
        "{said}"
    );
    assert_eq!(client.ask("Y"), "42");
    assert_eq!(client.ask("WHO"), "1");
    daemon.stop();
}

/// It says so when it is tried out, before anybody is let go of.
#[test]
fn a_program_that_reads_another_version_is_not_taken() {
    for (version, taken) in [(state::VERSION, true), (1, false)] {
        let mut command = program();
        command
            .arg("--check")
            .env("BLOCKCHAIN_TCPD_HANDOVER_VERSION", version.to_string());
        let (status, said) = run_to_end(command);
        assert_eq!(status == 0, taken, "{said}");
        assert_eq!(
            said.contains("uses version 1 of the handover state"),
            !taken,
            "{said}"
        );
    }
}

/// Whoever replaces a program in its process can't go back: it takes what it finds, and clients keep their server's id.
#[test]
fn a_state_directory_that_others_have_taken_meanwhile_costs_nobody_anything() {
    let scratch = Scratch::new();
    let state = scratch.path().join("state");
    let path = state.to_str().unwrap();
    std::fs::create_dir(&state).unwrap();
    let daemon = Daemon::start(["--state-directory", path, "--max-clients", "8"]);
    let mut client = daemon.connect();
    let id = client.ask("WHERE");
    std::fs::remove_dir_all(&state).unwrap();
    std::fs::create_dir(&state).unwrap();
    let other = Daemon::start(["--state-directory", path, "--max-clients", "8"]);
    replace(&daemon);
    daemon.log().wait_for(
        "keeps the id of this server, but the next restart will fail: the state directory ",
    );
    assert_eq!(client.ask("WHERE"), id);
    other.stop();
    replace(&daemon);
    daemon.log().wait_for(
        "keeps the id of this server until the next restart: the state directory has another",
    );
    assert_eq!(client.ask("WHERE"), id);
    daemon.stop();
}

/// Nor does it inherit what the daemon does with signals: one that outlives the daemon can be stopped as any program.
#[test]
fn a_trial_begins_with_no_signal_blocked_or_ignored() {
    let scratch = Scratch::new();
    let (copy, daemon) = start_a_copy(&scratch, &["--max-clients", "8"]);
    put(
        &copy,
        "#!/bin/sh\nexec grep ^Sig[BI] /proc/self/status >&2\n",
        0o755,
    );
    daemon.signal("USR2");
    // The tests' own parent may ignore others.
    let ours = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGUSR1];
    let more = [libc::SIGUSR2, libc::SIGXCPU, libc::SIGCHLD, libc::SIGPIPE];
    let bits = ours.iter().chain(&more).map(|signal| 1_u64 << (signal - 1));
    let bits: u64 = bits.sum();
    for signals in ["SigBlk:", "SigIgn:"] {
        let said = daemon.log().wait_for(signals);
        let set = u64::from_str_radix(said.trim_start_matches(signals).trim(), 16).unwrap();
        assert_eq!(set & bits, 0, "{said}");
    }
    daemon.stop();
}

#[test]
fn a_trial_that_hangs_keeps_nobody_from_stopping() {
    let scratch = Scratch::new();
    let (copy, daemon) = start_a_copy(&scratch, &[]);
    let begun = scratch.path().join("begun");
    let hangs = format!("#!/bin/sh\ntouch {}\nsleep 60\n", begun.display());
    put(&copy, hangs, 0o755);
    daemon.signal("USR2");
    daemon.signal("USR2");
    wait_until("the trial hangs", || begun.exists());
    let told = Instant::now();
    daemon.stop();
    assert!(
        told.elapsed() < Duration::from_secs(8),
        "{:?}",
        told.elapsed()
    );
}
