//! A program that can't take over costs no client anything.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use blockchain_tcpd::handover_state;

use super::{replace, times};
use crate::support::kernel::shell;
use crate::support::{Client, Daemon, Scratch, clean, field, program, run_to_end, wait_until};

/// The file of the program that this process runs.
fn running(daemon: &Daemon) -> PathBuf {
    fs::read_link(format!("/proc/{}/exe", daemon.pid())).unwrap()
}

/// The program in the directories v1 and v2, and `current`, a link to the first of them.
struct Releases(Scratch);

impl Releases {
    fn new() -> Self {
        let releases = Releases(Scratch::new());
        for release in ["v1", "v2"] {
            fs::create_dir(releases.path(release)).unwrap();
            fs::copy(program().get_program(), releases.program(release)).unwrap();
        }
        releases.link("current", "v1");
        releases
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn program(&self, release: &str) -> PathBuf {
        self.path(release).join("blockchain-tcpd")
    }

    /// Makes or changes a link.
    fn link(&self, name: &str, target: impl AsRef<Path>) {
        symlink(target, self.path("next")).unwrap();
        fs::rename(self.path("next"), self.path(name)).unwrap();
    }

    /// Starts a daemon by this command, in which DIR is the directory of all.
    fn start(&self, way: &str) -> Daemon {
        let way = way.replace("DIR", self.0.path().to_str().unwrap());
        // Bash makes a relative path absolute, other shells can't give another name.
        let shell = if way.contains("exec -a") {
            "bash"
        } else {
            "sh"
        };
        let mut command = clean(shell);
        command.args(["-c", &format!("{way} \"$@\""), shell]);
        command.args(["--listen", "127.0.0.1:0", "--max-clients", "8"]);
        Daemon::run(command)
    }
}

/// As releases are laid out by many: each in a directory of its own, and a link to the current one.
#[test]
fn the_path_as_it_was_given_is_followed_again_at_each_handover() {
    for way in [
        "exec DIR/current/blockchain-tcpd",
        "cd DIR && exec ./current/blockchain-tcpd",
        "cd DIR/current && exec ./blockchain-tcpd",
        "cd DIR && PATH=current:$PATH && exec blockchain-tcpd",
        "exec -a -other DIR/current/blockchain-tcpd",
        "exec 9<DIR/v1/blockchain-tcpd && exec -a DIR/current/blockchain-tcpd /proc/self/fd/9",
    ] {
        let releases = Releases::new();
        let daemon = releases.start(way);
        assert_eq!(running(&daemon), releases.program("v1"), "{way}");
        releases.link("current", "v2");
        replace(&daemon);
        assert_eq!(running(&daemon), releases.program("v2"), "{way}");
        let said = daemon.log().wait_for("takes over ");
        assert_eq!(Path::new(&field(&said, "program")), running(&daemon));
        assert_eq!(field(&said, "version"), env!("CARGO_PKG_VERSION"));
        // The directory by which it was started may be this one.
        fs::remove_dir_all(releases.path("v1")).unwrap();
        replace(&daemon);
        let words = fs::read(format!("/proc/{}/cmdline", daemon.pid())).unwrap();
        assert_eq!(words.starts_with(b"-other"), way.contains("-other"));
        daemon.stop();
    }
}

/// A relative path needs the working directory, which may be one of a release or of a job that is removed.
#[test]
fn a_relative_path_outlives_the_directory_that_it_began_in() {
    for (path, next) in [
        ("../current/blockchain-tcpd", "v2"),
        ("./../v1/blockchain-tcpd", "v1"),
        ("./link", "v1"),
    ] {
        let releases = Releases::new();
        fs::create_dir(releases.path("wd")).unwrap();
        releases.link("wd/link", "../v1/blockchain-tcpd");
        let daemon = releases.start(&format!("cd DIR/wd && exec {path}"));
        releases.link("current", "v2");
        fs::remove_dir_all(releases.path("wd")).unwrap();
        for _ in 0..2 {
            replace(&daemon);
            assert_eq!(running(&daemon), releases.program(next), "{path}");
        }
        let said = "the working directory in which the program was started is gone";
        assert_eq!(times(&daemon, said), 1, "{path}");
        daemon.stop();
    }
}

/// It is a mistake that can be mended, and not a reason to start the last release as if it were the next.
#[test]
fn a_link_to_nothing_is_an_error_and_followed_once_it_leads_somewhere() {
    let releases = Releases::new();
    releases.link("link", "v1/blockchain-tcpd");
    let daemon = releases.start("exec DIR/link");
    releases.link("link", "nowhere");
    daemon.signal("USR2");
    let said = daemon.log().wait_for("goes on as it is");
    let why = format!("can't run {}", releases.path("link").display());
    assert!(said.contains(&why), "{said}");
    releases.link("link", "v1/blockchain-tcpd");
    replace(&daemon);
    daemon.stop();
}

/// As a container has a single file of its host, which is replaced there: the container keeps the old one until it is mounted anew.
#[test]
fn a_program_that_is_a_mounted_file_takes_over_also_when_its_host_has_replaced_it() {
    let releases = Releases::new();
    let [old, new] = ["v1", "v2"].map(|release| releases.program(release));
    let mounted = releases.path("mounted");
    fs::write(&mounted, "").unwrap();
    let mount = |file: &Path| format!("mount --bind {} {}", file.display(), mounted.display());
    let script = shell(&format!("{} || exit; shift", mount(&old)));
    let [sh, c, commands] = script.map(|word| word.replace("\"$0\"", mounted.to_str().unwrap()));
    let wrapper = ["unshare", "--mount", &*sh, &*c, &*commands, "sh"];
    needs!(run & wrapper);
    let daemon = Daemon::start_through(&wrapper, ["--max-clients", "8"]);
    let number = |file: &Path| fs::metadata(file).unwrap().ino();
    let exe = PathBuf::from(format!("/proc/{}/exe", daemon.pid()));
    let (first, second) = (number(&old), number(&new));
    fs::remove_file(&old).unwrap();
    replace(&daemon);
    assert_eq!(number(&exe), first);
    let pid = daemon.pid().to_string();
    let mut enter = std::process::Command::new("nsenter");
    let anew = format!("umount --lazy {} && {}", mounted.display(), mount(&new));
    enter.args(["--mount", "--target", &pid, "sh", "-c", &anew]);
    assert!(enter.status().unwrap().success());
    replace(&daemon);
    assert_eq!(number(&exe), second);
    daemon.stop();
}

/// A daemon that runs a copy of the program, which can be replaced, and has a client that has sent half of a request.
fn start_a_copy(scratch: &Scratch) -> (PathBuf, Daemon, Client) {
    let (copy, state) = (scratch.path().join("copy"), scratch.path().join("state"));
    fs::copy(program().get_program(), &copy).unwrap();
    fs::create_dir(&state).unwrap();
    let mut command = clean(&copy);
    command.args(["--listen", "127.0.0.1:0", "--state-directory"]);
    command.arg(state);
    let daemon = Daemon::run(command);
    let mut client = daemon.connect();
    client.send("WH");
    (copy, daemon, client)
}

/// Puts another program in the place of this one. Never written in place: that program runs.
fn put(copy: &Path, content: &str, mode: u32) {
    let new = copy.with_extension("new");
    fs::write(&new, content).unwrap();
    fs::set_permissions(&new, fs::Permissions::from_mode(mode)).unwrap();
    fs::rename(&new, copy).unwrap();
}

#[test]
fn a_program_that_cannot_take_over_costs_no_client_and_the_log_says_why() {
    let scratch = Scratch::new();
    let (copy, daemon, mut client) = start_a_copy(&scratch);
    let [state, gone] = ["state", "gone"].map(|name| scratch.path().join(name));
    let put = |content, mode| put(&copy, content, mode);
    let bad: [(&str, &dyn Fn()); 6] = [
        ("can't run ", &|| fs::remove_file(&copy).unwrap()),
        ("Exec format error", &|| put("garbage", 0o755)),
        ("Permission denied", &|| put("#!/bin/sh\n", 0o644)),
        ("is not blockchain-tcpd", &|| {
            put("#!/bin/sh\nexit 0", 0o755)
        }),
        ("--check fails with exit status: 3", &|| {
            put("#!/bin/sh\nexit 3", 0o755)
        }),
        ("--check fails with ", &|| {
            fs::copy(program().get_program(), &copy).unwrap();
            fs::rename(&state, &gone).unwrap();
        }),
    ];
    for (number, (why, spoil)) in bad.into_iter().enumerate() {
        spoil();
        daemon.signal("USR2");
        let said = "goes on as it is, the new program can't take over: ";
        wait_until(why, || times(&daemon, said) == number + 1);
        let lines = daemon.log().lines();
        let line = lines.iter().rfind(|line| line.contains(said)).unwrap();
        assert!(line.contains(why), "{line}");
        assert_eq!(client.ask(if number == 0 { "Y" } else { "WHY" }), "42");
    }
    fs::rename(&gone, &state).unwrap();
    replace(&daemon);
    assert_eq!(client.ask("WHY"), "42");
    daemon.stop();
}

/// One that passes its trial and then isn't there any more: the same process goes on with what it had prepared to hand over.
#[test]
fn a_program_that_vanishes_after_its_trial_costs_no_client_anything() {
    let scratch = Scratch::new();
    let (copy, daemon, mut client) = start_a_copy(&scratch);
    let removes_itself = format!(
        "#!/bin/sh\nrm {}\necho blockchain-tcpd takes packs of version {}\n",
        copy.display(),
        handover_state::VERSION
    );
    put(&copy, &removes_itself, 0o755);
    replace(&daemon);
    let said = daemon.log().wait_for("goes on as it is: can't run ");
    assert!(said.contains("No such file"), "{said}");
    assert_eq!(client.ask("Y"), "42");
    assert_eq!(client.ask("WHO"), "1");
    // Or a log that nobody reads would end it.
    assert_ne!(ignored_signals(&daemon) & bit(libc::SIGPIPE), 0);
    daemon.stop();
}

fn bit(signal: i32) -> u64 {
    1 << (signal - 1)
}

fn ignored_signals(daemon: &Daemon) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    u64::from_str_radix(ignored.unwrap().trim(), 16).unwrap()
}

/// A file in memory may be no larger than others.
#[test]
fn clients_whose_state_cannot_be_written_stay() {
    let daemon = Daemon::start_through(&shell("ulimit -f 0 || exit"), ["--max-clients", "8"]);
    let mut client = daemon.connect();
    client.send("WH");
    replace(&daemon);
    let said = daemon.log().wait_for("goes on as it is: ");
    let why = "can't pack the clients: File too large";
    assert!(said.contains(why), "{said}");
    assert_eq!(client.ask("Y"), "42");
    assert_eq!(client.ask("WHO"), "1");
    daemon.stop();
}

/// It says so when it is tried out, before any client is released.
#[test]
fn a_program_that_knows_another_version_of_the_state_is_not_taken() {
    for (version, taken) in [(handover_state::VERSION, true), (1, false)] {
        let mut command = program();
        command.arg("--check");
        command.env("BLOCKCHAIN_TCPD_PACK_VERSION", version.to_string());
        let (status, said) = run_to_end(command);
        assert_eq!(status == 0, taken, "{said}");
        let differs = said.contains("hands its clients over in version 1");
        assert_eq!(differs, !taken, "{said}");
    }
}

/// A program that is replaced in its process can't go back: the new one takes what it finds, and clients keep their server's id.
#[test]
fn a_state_directory_that_another_server_has_taken_meanwhile_costs_no_client_anything() {
    let scratch = Scratch::new();
    let state = scratch.path().join("state");
    let arguments = ["--state-directory", state.to_str().unwrap()];
    fs::create_dir(&state).unwrap();
    let daemon = Daemon::start(arguments);
    let mut client = daemon.connect();
    let id = client.ask("WHERE");
    fs::remove_dir_all(&state).unwrap();
    fs::create_dir(&state).unwrap();
    let other = Daemon::start(arguments);
    replace(&daemon);
    let said = "goes on with its id, the next restart will fail: the state directory ";
    daemon.log().wait_for(said);
    assert_eq!(client.ask("WHERE"), id);
    other.stop();
    replace(&daemon);
    let said = "the id in the state directory is another now";
    daemon.log().wait_for(said);
    assert_eq!(client.ask("WHERE"), id);
    daemon.stop();
}

/// It does not inherit what the daemon does with signals: one that outlives the daemon can be stopped as any program.
#[test]
fn a_trial_begins_with_no_signal_blocked_or_ignored() {
    let scratch = Scratch::new();
    let (copy, daemon, _client) = start_a_copy(&scratch);
    let shows = "#!/bin/sh\nexec grep ^Sig[BI] /proc/self/status >&2\n";
    put(&copy, shows, 0o755);
    daemon.signal("USR2");
    // The tests' own parent may ignore others.
    let handled = [
        libc::SIGTERM,
        libc::SIGINT,
        libc::SIGHUP,
        libc::SIGUSR1,
        libc::SIGUSR2,
        libc::SIGXCPU,
        libc::SIGCHLD,
        libc::SIGPIPE,
    ];
    let handled: u64 = handled.map(bit).iter().sum();
    for signals in ["SigBlk:", "SigIgn:"] {
        let said = daemon.log().wait_for(signals);
        let set = u64::from_str_radix(said.trim_start_matches(signals).trim(), 16).unwrap();
        assert_eq!(set & handled, 0, "{said}");
    }
    daemon.stop();
}

#[test]
fn a_trial_that_hangs_does_not_keep_the_daemon_from_stopping() {
    let scratch = Scratch::new();
    let (copy, daemon, _client) = start_a_copy(&scratch);
    let begun = scratch.path().join("begun");
    let hangs = format!("#!/bin/sh\ntouch {}\nsleep 60\n", begun.display());
    put(&copy, &hangs, 0o755);
    daemon.signal("USR2");
    daemon.signal("USR2");
    wait_until("the trial hangs", || begun.exists());
    let stopped = Instant::now();
    daemon.stop();
    assert!(stopped.elapsed() < Duration::from_secs(8));
}
