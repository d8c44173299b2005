//! The promises about the tree itself, and what the documents show.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::nc::{one_liners, shell};
use crate::support::{self, Daemon, Scratch, installed_for_part};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(file: &str) -> String {
    fs::read_to_string(root().join(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

/// The files below `folder` whose names end so.
fn files(folder: &Path, end: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(files(&path, end));
        } else if path.to_string_lossy().ends_with(end) {
            found.push(path);
        }
    }
    found
}

/// Each package of Cargo.lock that this machine's kind builds, with the oldest Rust that it says it needs.
#[test]
fn the_oldest_rust_is_the_one_that_what_is_locked_needs() {
    let own = env!("CARGO_PKG_RUST_VERSION");
    let platform = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--locked", "--format-version", "1"])
        .args(["--filter-platform", &platform])
        .current_dir(root())
        .output();
    let output = output.expect("cargo runs");
    assert!(output.status.success(), "{output:?}");
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let parts = |version: &str| -> Vec<u32> {
        let parts = version.split('.').map(|part| part.parse());
        parts.collect::<Result<_, _>>().expect("numbers")
    };
    let own = &parts(own)[..2];
    let packages = metadata["packages"].as_array().expect("packages");
    let others = packages
        .iter()
        .filter(|package| !package["source"].is_null());
    let needed = others.filter_map(|package| package["rust_version"].as_str());
    let newest = needed.map(|version| parts(version)[..2].to_vec()).max();
    let newest = newest.expect("some say so");
    assert!(
        own >= &newest[..],
        "rust-version in Cargo.toml is below {newest:?}"
    );
    let said = format!("Rust ({} or later)", env!("CARGO_PKG_RUST_VERSION"));
    assert!(read("README.md").contains(&said), "{said}");
    let fuzz = format!("rust-version = \"{}\"", env!("CARGO_PKG_RUST_VERSION"));
    assert!(read("fuzz/Cargo.toml").contains(&fuzz), "{fuzz}");
}

#[test]
fn no_event_loop_is_in_the_tree_of_dependencies() {
    let lock = read("Cargo.lock");
    let names: BTreeSet<&str> = lock
        .lines()
        .filter_map(|line| line.strip_prefix("name = \"")?.strip_suffix('"'))
        .collect();
    assert!(names.contains("crossbeam-channel"));
    for name in [
        "tokio",
        "mio",
        "hyper",
        "smol",
        "async-io",
        "async-std",
        "futures-executor",
    ] {
        assert!(!names.contains(name), "{name}");
    }
}

#[test]
fn the_seven_packages_are_ours() {
    let manifests = [
        "Cargo.toml",
        "crates/shared/Cargo.toml",
        "crates/client/Cargo.toml",
    ]
    .map(read);
    for name in [
        "crossbeam-channel",
        "threadpool",
        "uuid",
        "log",
        "env_logger",
        "signal-hook",
        "ctrlc",
    ] {
        let is_dependency = |line: &str| {
            let rest = line.strip_prefix(name);
            rest.is_some_and(|rest| rest.starts_with([' ', '.']))
        };
        let named = manifests
            .iter()
            .any(|manifest| manifest.lines().any(is_dependency));
        assert!(named, "{name}");
    }
}

/// Whether a path on the machine that something was made on is in `text`, which would be of no use elsewhere.
fn names_a_place_of_its_own(text: &[u8]) -> bool {
    ["work", "farm"].iter().any(|folder| {
        let path = format!("/{folder}/");
        let mut found = text.windows(path.len()).enumerate();
        found.any(|(at, window)| {
            let before = at.checked_sub(1).map(|before| text[before]);
            let within = before.is_some_and(|byte| matches!(byte, b'a'..=b'z' | b'.'));
            window == path.as_bytes() && !within
        })
    })
}

#[test]
fn no_file_names_a_place_on_a_machine_of_ours() {
    assert!(names_a_place_of_its_own(
        &["see ", "work", "/x"].join("/").into_bytes()
    ));
    assert!(!names_a_place_of_its_own(b"bench/work/x ./work/x"));
    if !root().join(".git").exists() {
        crate::support::skipped("needs the repository");
        return;
    }
    needs!("git");
    let listed = Command::new("git")
        .arg("-C")
        .arg(root())
        .args(["ls-files", "-z"])
        .output();
    let listed = listed.expect("git runs");
    assert!(
        listed.status.success(),
        "{}",
        String::from_utf8_lossy(&listed.stderr)
    );
    let listed = String::from_utf8(listed.stdout).expect("UTF-8");
    let files: Vec<&str> = listed.split_terminator('\0').collect();
    assert!(files.contains(&"Cargo.toml"));
    for file in files {
        // One that is deleted but not yet committed can't be read.
        if let Ok(content) = fs::read(root().join(file)) {
            assert!(!names_a_place_of_its_own(&content), "{file}");
        }
    }
}

#[test]
fn every_source_file_says_first_what_it_is_for() {
    let mut sources = files(&root().join("src"), ".rs");
    sources.extend(files(&root().join("crates"), ".rs"));
    assert!(sources.len() > 10);
    for file in sources {
        let text = fs::read_to_string(&file).expect("a source file");
        assert!(text.starts_with("//! "), "{}", file.display());
    }
}

#[test]
fn readme_links_to_every_record_of_a_decision() {
    let readme = read("README.md");
    for file in files(&root().join("docs/adr"), ".md") {
        let name = file
            .file_name()
            .expect("a name")
            .to_string_lossy()
            .into_owned();
        assert!(readme.contains(&format!("(docs/adr/{name})")), "{name}");
    }
    let mut links = readme
        .split("](")
        .skip(1)
        .filter_map(|rest| rest.split(')').next());
    let broken = links.find(|link| !link.contains("://") && !root().join(link).exists());
    assert_eq!(broken, None);
}

#[test]
fn each_of_the_twelve_factors_is_shown_by_a_file_and_says_what_is_not_claimed() {
    let document = read("docs/twelve-factors.md");
    let rows: Vec<Vec<&str>> = document
        .lines()
        .filter(|line| line.starts_with("| ") && !line.starts_with("| |"))
        .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
        .collect();
    let numbers: Vec<&str> = rows.iter().map(|row| row[0]).collect();
    let roman = "I II III IV V VI VII VIII IX X XI XII";
    assert_eq!(numbers.join(" "), roman);
    for row in rows {
        let [_, _, here, shown, not_claimed] = row[..] else {
            panic!("{row:?}");
        };
        assert!(!here.is_empty() && !not_claimed.is_empty(), "{row:?}");
        assert!(shown.contains("]("), "no file: {row:?}");
    }
    let mut links = document
        .split("](")
        .skip(1)
        .filter_map(|rest| rest.split(')').next())
        .filter(|link| !link.contains("://"));
    let broken = links.find(|link| !root().join("docs").join(link).exists());
    assert_eq!(broken, None);
}

/// A command that a document shows after a `$ `, and what it shows below as printed.
pub struct Example {
    pub command: String,
    pub printed: String,
}

/// The examples in indented or fenced blocks.
pub fn examples(document: &str) -> Vec<Example> {
    let mut examples: Vec<Example> = Vec::new();
    let mut open = false;
    for line in document.lines() {
        let line = line.trim();
        if let Some(command) = line.strip_prefix("$ ") {
            let (command, printed) = (command.to_string(), String::new());
            examples.push(Example { command, printed });
            open = true;
        } else if line.is_empty() || line.starts_with("```") {
            open = false;
        } else if let Some(example) = examples.last_mut().filter(|_| open) {
            example.printed += &format!("{line}\n");
        }
    }
    examples
}

/// Whether a line of a shell asks the daemon something, by whatever netcat.
fn asks(line: &str) -> bool {
    line.contains("4242")
        && (line.contains("nc ") || line.contains("ncat ") || asks_without_nc(line))
}

fn asks_without_nc(line: &str) -> bool {
    line.contains("socat ") || line.contains("/dev/tcp/")
}

/// Ids and counts differ from one time to the next: `<id>` and `<count>` stand for them.
fn shape(printed: &str) -> String {
    let lines = printed.lines().map(|line| {
        if uuid::Uuid::parse_str(line).is_ok() {
            "<id>\n".to_string()
        } else if line != "42" && line.parse::<usize>().is_ok() {
            "<count>\n".to_string()
        } else {
            format!("{line}\n")
        }
    });
    lines.collect()
}

/// Those that start the daemon start this one, on a free port.
#[test]
fn the_examples_that_start_the_daemon_do_so() {
    const SHOWN: &str = "target/release/blockchain-tcpd";
    let scratch = Scratch::new();
    let mut served = false;
    for Example { command, .. } in examples(&read("README.md")) {
        let Some((before, arguments)) = command.split_once(SHOWN) else {
            continue;
        };
        let script =
            support::kernel::shell(&format!("cd {} && {before} true", scratch.path().display()));
        let wrapper: Vec<&str> = script.iter().map(String::as_str).collect();
        if arguments.contains("--help") {
            let output = support::kernel::through(&wrapper)
                .args(arguments.split_whitespace())
                .output();
            assert!(
                output.is_ok_and(|output| output.status.success()),
                "{command}"
            );
        } else {
            let daemon = Daemon::start_through(&wrapper, arguments.split_whitespace());
            let id = std::fs::read_to_string(scratch.path().join("state/server-id")).unwrap();
            assert_eq!(daemon.ask("WHERE\n"), id);
            served = true;
        }
    }
    assert!(served);
}

#[test]
fn the_examples_in_the_documents_print_what_they_show() {
    let daemon = Daemon::start(["--max-clients", "4"]);
    for document in ["README.md", "docs/protocol.md"] {
        let mut examples = examples(&read(document));
        examples.retain(|example| asks(&example.command));
        assert!(!examples.is_empty(), "no examples in {document}");
        for Example { command, printed } in examples {
            let program = command
                .rsplit("| ")
                .next()
                .and_then(|netcat| netcat.split(' ').next());
            let program = match program {
                Some("nc") => "nc.openbsd",
                Some(program) if !command.contains("/dev/tcp/") => program,
                _ => "bash",
            };
            if installed_for_part(program) {
                let really = shell(&command, "nc.openbsd", &daemon);
                assert_eq!(shape(&really), shape(&printed), "{document}: {command}");
            }
        }
    }
}

#[test]
fn the_one_liners_that_readme_shows_are_tested_ones() {
    let readme = read("README.md").replace("\\|", "|");
    let spans = readme.split('`').skip(1).step_by(2).map(str::to_string);
    let shown = examples(&readme).into_iter().map(|example| example.command);
    let shown = spans
        .chain(shown)
        .filter(|line| asks(line) && !line.contains('\n'));
    let shown: Vec<String> = shown.collect();
    assert!(!shown.is_empty());
    // What is asked may differ; how it is sent may not.
    let sent = |line: &str| {
        line.split_once(" | ")
            .map_or(line, |(_, sent)| sent)
            .to_string()
    };
    let tested: BTreeSet<String> = one_liners().map(|(_, line)| sent(line)).collect();
    for line in shown {
        assert!(
            tested.contains(&sent(&line)),
            "not in tests/nc/one-liners.txt: {line}"
        );
    }
}
