//! A PostgreSQL on a free port of 127.0.0.1, with the settings of a new cluster but for its directories.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::common::Result;

/// How long it may take to start.
const TIMEOUT: Duration = Duration::from_secs(60);

/// The user whose process it is if the bench runs as root, which it refuses.
const USER: &str = "postgres";

/// A running PostgreSQL. Dropped, it is ended, and its files are removed.
pub struct Postgres {
    programs: PathBuf,
    /// Holds its files, and those of the bench.
    pub directory: PathBuf,
    address: SocketAddr,
    process: Option<Child>,
}

impl Postgres {
    /// Starts one with the databases `ours` and `reference`. `None` if none is installed.
    pub fn start() -> Result<Option<Self>> {
        let Some(programs) = programs() else {
            return Ok(None);
        };
        let directory = std::env::temp_dir().join(format!("bench-{}", Uuid::new_v4().simple()));
        fs::create_dir(&directory)?;
        let mut postgres = Postgres {
            programs,
            directory,
            address: TcpListener::bind("127.0.0.1:0")?.local_addr()?,
            process: None,
        };
        let data = postgres.directory.join("data");
        if rustix::process::getuid().is_root() {
            succeed(Command::new("chown").arg(USER).arg(&postgres.directory))?;
        }
        let mut initdb = postgres.command("initdb");
        initdb.args(["-U", USER, "-A", "trust", "-E", "UTF8", "--locale", "C"]);
        succeed(initdb.arg("-D").arg(&data))?;
        let mut server = postgres.command("postgres");
        server
            .arg("-D")
            .arg(&data)
            .args(["-p", &postgres.address.port().to_string()]);
        server.arg("-k").arg(&postgres.directory);
        server
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        postgres.process = Some(server.spawn()?);
        let until = Instant::now() + TIMEOUT;
        while TcpStream::connect(postgres.address).is_err()
            || postgres.sql("postgres", "SELECT 1").is_err()
        {
            if Instant::now() > until {
                return Err("PostgreSQL does not start".into());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        for database in ["ours", "reference"] {
            postgres.sql("postgres", &format!("CREATE DATABASE {database}"))?;
        }
        Ok(Some(postgres))
    }

    /// Returns what `--store` takes.
    pub fn url(&self) -> String {
        format!("postgres://{USER}@{}/ours", self.address)
    }

    /// Returns psql for this database, without the user's settings. It stops at the first error.
    pub fn psql(&self, database: &str) -> Command {
        let mut psql = Command::new(self.programs.join("psql"));
        psql.env_clear().args([
            "-qAtX",
            "-v",
            "ON_ERROR_STOP=1",
            "-h",
            "127.0.0.1",
            "-U",
            USER,
        ]);
        psql.args(["-p", &self.address.port().to_string(), "-d", database]);
        psql.stdin(Stdio::null());
        psql
    }

    /// Runs SQL, and returns what it prints.
    pub fn sql(&self, database: &str, sql: &str) -> Result<String> {
        succeed(self.psql(database).args(["-c", sql]))
    }

    /// Returns a program as the user whose process it is.
    fn command(&self, program: &str) -> Command {
        let program = self.programs.join(program);
        let mut command = match rustix::process::getuid().is_root() {
            true => {
                let mut command = Command::new("setpriv");
                command.args(["--reuid", USER, "--regid", USER, "--clear-groups"]);
                command.arg(program);
                command
            }
            false => Command::new(program),
        };
        command
            .current_dir("/")
            .env_clear()
            .env("PATH", "/usr/bin:/bin");
        command
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if let Some(process) = &mut self.process {
            // SIGQUIT ends it with all its processes, at once.
            let pid = rustix::process::Pid::from_child(process);
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::QUIT);
            let _ = process.wait();
        }
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// Returns the folder of the newest programs that Debian's packages have installed.
fn programs() -> Option<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").ok()?.flatten();
    let number = |folder: &Path| folder.file_name()?.to_str()?.parse::<u32>().ok();
    let newest = { versions.map(|version| version.path()) }
        .filter(|folder| folder.join("bin/initdb").exists())
        .max_by_key(|folder| number(folder))?;
    Some(newest.join("bin"))
}

/// Runs a command, and returns what it prints.
pub fn succeed(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .map_err(|error| format!("{command:?}: {error}"))?;
    match output.status.success() {
        true => Ok(String::from_utf8(output.stdout)?),
        false => Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr)).into()),
    }
}
