//! The clients of `examples/clients`: each against the daemon, and against servers that mean harm.
//!
//! The sessions of `tests/samples/sessions` are a test of each language, and named so: `samples::perl::hostile`.

mod readme;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::session::play;
use crate::support::installed;
use crate::support::registry::{node, node_packages, python};

/// A client in one language.
struct Sample {
    /// Its file.
    file: &'static str,
    /// The programs without which it is left out.
    programs: &'static [&'static str],
    /// Builds OUT from FILE, or is empty.
    build: &'static str,
    /// Runs OUT or FILE.
    run: &'static str,
    built: OnceLock<()>,
}

impl Sample {
    const fn new(
        file: &'static str,
        programs: &'static [&'static str],
        build: &'static str,
        run: &'static str,
    ) -> Self {
        let built = OnceLock::new();
        Sample {
            file,
            programs,
            build,
            run,
            built,
        }
    }

    /// Whether it can be run here; otherwise it is left out, and that is said.
    fn installed(&self) -> bool {
        self.programs.iter().all(|program| installed(program))
    }

    /// The words of this command, for this sample.
    fn words(&self, command: &str) -> String {
        let (file, out) = (folder().join(self.file), out().join(self.file));
        let command = command.replace("FILE", &file.display().to_string());
        command.replace("OUT", &out.display().to_string())
    }

    fn build(&self) {
        std::fs::create_dir_all(out()).expect("a folder");
        let build = self.words(self.build);
        if let Some((program, words)) = build.split_once(' ') {
            let built = anywhere(&mut Command::new(program))
                .args(words.split(' '))
                .output();
            let built = built.expect("the compiler runs");
            let said = String::from_utf8_lossy(&built.stderr);
            assert!(built.status.success() && said.is_empty(), "{said}");
        }
    }

    /// Plays these sessions with it. Nothing runs into a time-out that no server is meant to miss.
    fn play(&self, sessions: &str) {
        if self.installed() {
            self.built.get_or_init(|| self.build());
            let client = self.words(self.run);
            play(
                &format!("samples/sessions/{sessions}.txt"),
                &[("CLIENT", &client), ("TIMEOUT", "20")],
            );
        }
    }
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/clients")
}

fn out() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("samples")
}

/// Go keeps what it has compiled in the home directory, which may be missing, and looks for modules, of which there are none.
fn anywhere(command: &mut Command) -> &mut Command {
    command.env("GOCACHE", out().join("go"));
    command.env("GO111MODULE", "off").env("GOFLAGS", "")
}

macro_rules! samples {
    ($($language:ident: $file:literal $programs:expr, $build:literal, $run:literal;)*) => {
        $(mod $language {
            use super::Sample;

            pub static SAMPLE: Sample = Sample::new($file, &$programs, $build, $run);

            #[test]
            fn daemon() {
                SAMPLE.play("daemon");
            }

            #[test]
            fn hostile() {
                SAMPLE.play("hostile");
            }

            #[test]
            fn words() {
                SAMPLE.play("words");
            }
        })*

        /// Every sample.
        static SAMPLES: &[&Sample] = &[$(&$language::SAMPLE),*];
    };
}

samples! {
    python: "client.py" ["python3"], "", "python3 FILE";
    node: "client.js" ["node"], "", "node FILE";
    perl: "client.pl" ["perl"], "", "perl FILE";
    bash: "client.bash" ["bash"], "", "bash FILE";
    go: "client.go" ["go"], "go build -o OUT FILE", "OUT";
    java: "Client.java" ["javac", "java"], "javac -Xlint:all -d OUT FILE",
        "java -XX:TieredStopAtLevel=1 -XX:+UseSerialGC -cp OUT Client";
    c: "client.c" ["gcc"], "gcc -std=c11 -O2 -Wall -Wextra -Wpedantic -Wconversion -fsanitize=address,undefined \
        -fno-sanitize-recover=all -o OUT FILE", "OUT";
    rust: "client.rs" ["rustc"], "rustc --edition 2021 -O -D warnings -o OUT FILE", "OUT";
}

/// The tools of a language may be found by the home directory.
fn play_at_home(sessions: &str) {
    let home = std::env::var("HOME").unwrap_or_default();
    let cache = out().join("go").display().to_string();
    play(sessions, &[("HOME", &home), ("GOCACHE", &cache)]);
}

#[test]
fn copied_parts_work_in_other_programs() {
    play_at_home("samples/sessions/copied.txt");
}

#[test]
fn stock_libraries_ask_over_every_protocol() {
    let (Some(python), Some(_)) = (python(), node()) else {
        return;
    };
    let python = python.get_program().to_string_lossy().into_owned();
    let packages = node_packages().display().to_string();
    let cache = out().join("go").display().to_string();
    let variables = [
        ("PYTHON", &*python),
        ("NODE_PATH", &*packages),
        ("GOCACHE", &*cache),
    ];
    play("samples/sessions/protocols.txt", &variables);
}

#[test]
fn formatters_and_linters_find_nothing() {
    play_at_home("samples/sessions/linters.txt");
}
