//! A PostgreSQL for a test, and a PgBouncer in front of it.
//!
//! Its programs are those of the newest `/usr/lib/postgresql/*/bin`, or of the folder that the variable `POSTGRES_BIN` names.
//! They do not run as root: then a test runs them as the user `postgres`.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;

use super::backends::URGENT;
use super::certificates::Authority;
use super::{
    Process, Scratch, clean, free_port, installed, kill, located, must_test_all, skipped,
    wait_for_end, wait_until, words,
};

/// The user that runs the servers if a test runs as root.
const USER: &str = "postgres";

/// The database of the tests.
const DATABASE: &str = "users";

/// The password of the user `postgres` where one is asked for.
pub const PASSWORD: &str = "s3cret & \"quoted\" %41/";

/// The folder with the programs of PostgreSQL. Without it the test is to return: it is reported as skipped.
#[must_use]
#[track_caller]
pub fn programs() -> Option<PathBuf> {
    let found = match std::env::var_os("POSTGRES_BIN").filter(|path| !path.is_empty()) {
        // A path that is relative is so to the root of the project.
        Some(path) => Some(std::path::absolute(path).expect("not empty")),
        None => newest(),
    };
    if let Some(folder) = found {
        assert!(folder.join("initdb").exists(), "no initdb in {folder:?}");
        return Some(folder);
    }
    assert!(!must_test_all(), "postgresql is not installed");
    skipped("needs postgresql");
    None
}

/// The folder of the newest version that Debian's packages have installed.
fn newest() -> Option<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").ok()?.flatten();
    let number = |folder: &Path| folder.file_name()?.to_str()?.parse::<u32>().ok();
    let folders = versions.map(|version| version.path());
    let newest = folders.filter(|folder| folder.join("bin/initdb").exists());
    newest
        .max_by_key(|folder| number(folder))
        .map(|folder| folder.join("bin"))
}

fn is_root() -> bool {
    rustix::process::getuid().is_root()
}

/// A command that becomes `program` as the user of the servers.
fn as_user(program: &Path) -> Command {
    let mut command = clean("nice");
    command.args(["-n", URGENT]);
    if is_root() {
        command.args([
            "setpriv",
            "--reuid",
            USER,
            "--regid",
            USER,
            "--clear-groups",
        ]);
    }
    command.arg(program).env("LC_ALL", "C").current_dir("/");
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("PG") {
            command.env_remove(name);
        }
    }
    command
}

/// Runs a command, which must go well. Returns what it prints.
#[track_caller]
fn run(command: &mut Command) -> String {
    let output = command.output().expect("it starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// A directory of the user of the servers.
fn scratch() -> Scratch {
    let scratch = Scratch::new();
    if is_root() {
        run(clean("chown").arg(USER).arg(scratch.path()));
    }
    scratch
}

/// Copies a folder with all that it says of its files.
fn copy(from: &Path, to: &Path) {
    run(clean("cp").arg("-a").arg(from).arg(to));
}

/// Makes the files of a new server in `data`. That takes seconds, so a copy is kept beside cargo's other output.
fn initialise(programs: &Path, data: &Path) {
    // The order of texts is that of a language, as on most machines: what is to be ordered otherwise must say so.
    let arguments = "-U postgres -A trust --no-sync --encoding UTF8 --locale C --locale-provider icu --icu-locale en";
    let version = run(clean(programs.join("postgres")).arg("--version"));
    let name: String = version
        .chars()
        .filter(char::is_ascii_alphanumeric)
        .collect();
    let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-icu"));
    if !kept.exists() {
        let scratch = scratch();
        let made = scratch.path().join("data");
        let mut initdb = as_user(&programs.join("initdb"));
        run(initdb.args(words(arguments)).arg("-D").arg(&made));
        let copied = kept.with_file_name(format!("{name}-{}", uuid::Uuid::new_v4()));
        copy(&made, &copied);
        // Another test may have been first.
        if fs::rename(&copied, &kept).is_err() {
            let _ = fs::remove_dir_all(&copied);
        }
    }
    copy(&kept, data);
}

/// A PostgreSQL with an empty database `users`. Dropped, it is ended.
pub struct Postgres {
    programs: PathBuf,
    scratch: Scratch,
    /// Its port of 127.0.0.1.
    pub port: u16,
    process: Mutex<Option<Process>>,
    settings: Mutex<Vec<String>>,
}

impl Postgres {
    /// Starts one that trusts everybody, with these settings (`NAME=VALUE`) besides. Without PostgreSQL the test is to return.
    #[must_use]
    #[track_caller]
    pub fn start(settings: &[&str]) -> Option<Self> {
        let postgres = Postgres::prepare()?;
        postgres.set(settings);
        postgres.run();
        postgres.create();
        Some(postgres)
    }

    /// Makes the database of the tests.
    pub fn create(&self) {
        self.sql_in("postgres", &format!("CREATE DATABASE {DATABASE}"));
    }

    /// Makes one that does not run yet, and has no database.
    #[must_use]
    #[track_caller]
    pub fn prepare() -> Option<Self> {
        let (programs, scratch) = (programs()?, scratch());
        initialise(&programs, &scratch.path().join("data"));
        Some(Postgres {
            programs,
            scratch,
            port: free_port(),
            process: Mutex::default(),
            settings: Mutex::default(),
        })
    }

    /// Has these settings (`NAME=VALUE`) besides when it starts next.
    pub fn set(&self, settings: &[&str]) {
        let settings = settings.iter().map(|setting| (*setting).to_string());
        *self.settings.lock().unwrap() = settings.collect();
    }

    /// Asks everybody who comes by TCP for [`PASSWORD`], by SCRAM.
    pub fn ask_for_password(&self) {
        let quoted = PASSWORD.replace('\'', "''");
        self.sql(&format!("ALTER ROLE postgres PASSWORD '{quoted}'"));
        let lines = "local all all trust\nhost all all all scram-sha-256\n";
        fs::write(self.data().join("pg_hba.conf"), lines).expect("its file");
        self.sql("SELECT pg_reload_conf()");
        // The main process reads it when it comes to that.
        wait_until("it asks for a password", || {
            let mut psql = self.psql(DATABASE);
            psql.env_remove("PGHOST")
                .args(["-h", "127.0.0.1", "-w", "-c", "SELECT 1"]);
            !psql.output().expect("psql").status.success()
        });
    }

    /// Before its start: takes connections by TCP over TLS alone, and shows them `name.crt` of this authority.
    pub fn encrypt(&self, authority: &Authority, name: &str) {
        for file in ["crt", "key"] {
            let (from, to) = (format!("{name}.{file}"), format!("server.{file}"));
            let to = self.data().join(to);
            fs::copy(authority.path(&from), &to).expect("its file");
            fs::set_permissions(&to, fs::Permissions::from_mode(0o600)).expect("its file");
            if is_root() {
                run(clean("chown").arg(USER).arg(&to));
            }
        }
        let lines = "local all all trust\nhostssl all all all trust\n";
        fs::write(self.data().join("pg_hba.conf"), lines).expect("its file");
        self.set(&["ssl=on"]);
    }

    fn data(&self) -> PathBuf {
        self.scratch.path().join("data")
    }

    fn command(&self) -> Command {
        let mut command = as_user(&self.programs.join("postgres"));
        command.arg("-D").arg(self.data()).stdout(Stdio::null());
        let own = format!(
            "port={} listen_addresses=127.0.0.1 unix_socket_directories={} fsync=off full_page_writes=off \
             autovacuum=off logging_collector=off log_line_prefix= max_wal_size=4GB",
            self.port,
            self.scratch.path().display()
        );
        for setting in words(&own).iter().chain(&*self.settings.lock().unwrap()) {
            command.args(["-c", setting]);
        }
        command
    }

    /// Starts it again on the same data and the same port, and waits until it answers.
    pub fn run(&self) {
        // One that was killed leaves children behind for a moment, who keep its memory.
        wait_until("PostgreSQL starts", || {
            let mut process = Process::start(self.command());
            let is_ready = |process: &Process| {
                let lines = process.log.lines();
                let mut lines = lines.iter();
                lines.any(|line| line.contains("ready to accept connections"))
            };
            let mut has_ended = false;
            wait_until("it is ready or ends", || {
                has_ended = process.child.try_wait().expect("our child").is_some();
                has_ended || is_ready(&process)
            });
            if !has_ended {
                *self.process.lock().unwrap() = Some(process);
            }
            !has_ended
        });
    }

    /// Ends it at once, as a power cut does.
    pub fn kill(&self) {
        if let Some(process) = self.process.lock().unwrap().take() {
            signal_all(process.child.id(), "CONT");
            drop(process);
        }
    }

    /// Ends it: at once, but in order (`INT`), or as after a crash (`QUIT`).
    pub fn end(&self, signal: &str) {
        if let Some(mut process) = self.process.lock().unwrap().take() {
            signal_all(process.child.id(), "CONT");
            assert!(kill(signal, process.child.id()), "it runs");
            wait_for_end(&mut process.child).expect("it ends");
        }
    }

    /// Sends it and all its processes a signal by its name, such as STOP.
    pub fn signal(&self, name: &str) {
        let process = self.process.lock().unwrap();
        signal_all(process.as_ref().expect("it runs").child.id(), name);
    }

    /// Lets none of its files grow beyond this number of bytes, or `unlimited`: then its disk is as good as full. Its log of
    /// changes has files of 16 MiB.
    pub fn limit_files(&self, bytes: &str) {
        let process = self.process.lock().unwrap();
        let process = process.as_ref().expect("it runs").child.id();
        for process in [vec![process], children(process)].concat() {
            let mut prlimit = as_user(Path::new("prlimit"));
            prlimit.args(["--pid", &process.to_string()]);
            prlimit.arg(format!("--fsize={bytes}:unlimited"));
            // A process may have ended meanwhile.
            let _ = prlimit.status().expect("it runs");
        }
    }

    /// What `--store` takes.
    pub fn url(&self) -> String {
        self.url_of("postgres", "")
    }

    /// The same for this user, with these parameters, such as `?connect_timeout=1`.
    pub fn url_of(&self, user: &str, parameters: &str) -> String {
        let port = self.port;
        format!("postgres://{user}@127.0.0.1:{port}/{DATABASE}{parameters}")
    }

    /// psql, which knows where it is.
    fn psql(&self, database: &str) -> Command {
        let mut psql = clean(self.programs.join("psql"));
        psql.args([
            "-X",
            "-q",
            "-A",
            "-t",
            "-v",
            "ON_ERROR_STOP=1",
            "-U",
            "postgres",
        ]);
        psql.args(["-d", database, "-p", &self.port.to_string()]);
        psql.env("PGHOST", self.scratch.path())
            .env("PGCLIENTENCODING", "UTF8");
        psql
    }

    /// Has psql do this in the database of the tests. Returns what it prints.
    #[track_caller]
    pub fn sql(&self, statements: &str) -> String {
        self.sql_in(DATABASE, statements)
    }

    #[track_caller]
    fn sql_in(&self, database: &str, statements: &str) -> String {
        ask(self.psql(database), statements)
    }

    /// A session that stays open after these statements.
    pub fn session(&self, statements: &str) -> Sitting {
        Sitting::open(self.psql(DATABASE), statements, "\\echo")
    }

    /// How many connections are those of daemons.
    pub fn connections(&self) -> usize {
        let count =
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'blockchain-tcpd'";
        self.sql(count).trim().parse().expect("a number")
    }

    /// Cuts the connections of daemons, or of a PgBouncer: those over TCP. Returns how many they were.
    pub fn cut(&self) -> usize {
        let cut =
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE client_port > 0";
        self.sql(cut).trim().parse().expect("a number")
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let process = self
            .process
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
            .take();
        if let Some(mut process) = process {
            signal_all(process.child.id(), "CONT");
            kill("QUIT", process.child.id());
            let _ = wait_for_end(&mut process.child);
        }
    }
}

/// Sends a process and its children a signal.
fn signal_all(process: u32, name: &str) {
    kill(name, process);
    for child in children(process) {
        kill(name, child);
    }
}

/// The children of a process. The processes of PostgreSQL have no group in common.
fn children(process: u32) -> Vec<u32> {
    let processes = fs::read_dir("/proc").expect("/proc").flatten();
    let child = |entry: fs::DirEntry| {
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        // The name in brackets may hold anything.
        let (_, rest) = stat.rsplit_once(')')?;
        let parent = rest.split_whitespace().nth(1)?;
        let is_child = parent == process.to_string();
        is_child.then(|| entry.file_name().to_str()?.parse().ok())?
    };
    processes.filter_map(child).collect()
}

/// Has a command line for SQL do this, which must go well. Returns what it prints.
#[track_caller]
pub fn ask(mut command: Command, statements: &str) -> String {
    let child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = child.expect("it starts");
    let mut input = child.stdin.take().expect("stdin is piped");
    input.write_all(statements.as_bytes()).expect("it reads");
    drop(input);
    let output = child.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && said.is_empty(),
        "{statements}: {said}"
    );
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// A session of a command line for SQL that stays open, with its transaction and its locks. Dropped, it is killed.
pub struct Sitting(Child);

impl Sitting {
    /// Opens one, and waits until these statements are done; `echo` is its command to print something.
    pub fn open(mut command: Command, statements: &str, echo: &str) -> Self {
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut sitting = Sitting(child.expect("it starts"));
        let input = sitting.0.stdin.as_mut().expect("stdin is piped");
        writeln!(input, "{statements}\n{echo} done").expect("it reads");
        let output = sitting.0.stdout.take().expect("stdout is piped");
        let mut lines = BufReader::new(output).lines().map_while(Result::ok);
        assert!(lines.any(|line| line == "done"), "{statements:?} fails");
        sitting
    }
}

impl Drop for Sitting {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A PgBouncer in transaction mode in front of a PostgreSQL. Dropped, it is killed.
pub struct Bouncer {
    port: u16,
    _scratch: Scratch,
    _process: Process,
}

impl Bouncer {
    /// Starts one, and waits until it listens. Without PgBouncer the test is to return.
    #[must_use]
    #[track_caller]
    pub fn start(postgres: &Postgres) -> Option<Self> {
        // Debian has it where only root looks.
        let debian = Path::new("/usr/sbin/pgbouncer");
        let named = located(OsStr::new("pgbouncer"));
        let program = match *named == *"pgbouncer" && debian.exists() {
            true => debian,
            false if installed("pgbouncer") => Path::new(&*named),
            false => return None,
        };
        let (scratch, port) = (scratch(), free_port());
        let file = |name: &str| scratch.path().join(name);
        fs::write(file("users.txt"), "\"postgres\" \"\"\n").expect("a scratch file");
        // Fewer connections than a daemon has: it shares them between transactions.
        let settings = format!(
            "[databases]\n{DATABASE} = host=127.0.0.1 port={}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
             unix_socket_dir =\nauth_type = trust\nauth_file = {}\npool_mode = transaction\ndefault_pool_size = 2\n\
             server_login_retry = 0.1\n",
            postgres.port,
            file("users.txt").display()
        );
        fs::write(file("settings.ini"), settings).expect("a scratch file");
        let mut command = as_user(program);
        command.arg(file("settings.ini")).stdout(Stdio::null());
        let process = Process::start(command);
        process.log.wait_for("process up");
        Some(Bouncer {
            port,
            _scratch: scratch,
            _process: process,
        })
    }

    /// What `--store` takes.
    pub fn url(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{DATABASE}", self.port)
    }
}
