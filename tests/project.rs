//! The promises about the tree itself, and what the documents show.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::nc::{one_liners, shell as run_shell};
use crate::support::kernel::{shell, through};
use crate::support::{Daemon, Scratch, assert_contains, installed_for_part, skipped};

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
fn the_oldest_rust_is_the_one_that_the_locked_packages_need() {
    let platform = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["metadata", "--locked", "--format-version", "1"]);
    cargo.args(["--filter-platform", &platform]);
    let output = cargo.current_dir(root()).output().expect("cargo runs");
    assert!(output.status.success(), "{output:?}");
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let parts = |version: &str| -> Vec<u32> {
        let parts = version.split('.').take(2).map(str::parse);
        parts.collect::<Result<_, _>>().expect("numbers")
    };
    let packages = metadata["packages"].as_array().expect("packages");
    let others = packages
        .iter()
        .filter(|package| !package["source"].is_null());
    let needed = others.filter_map(|package| package["rust_version"].as_str());
    let newest = needed.map(parts).max().expect("some say so");
    let own = env!("CARGO_PKG_RUST_VERSION");
    assert!(parts(own) >= newest, "rust-version is below {newest:?}");
    assert_contains(&read("README.md"), &format!("Rust ({own} or later)"));
    let fuzz = format!("rust-version = \"{own}\"");
    assert_contains(&read("fuzz/Cargo.toml"), &fuzz);
}

#[test]
fn the_dependencies_include_these_packages_and_no_event_loop() {
    let lock = read("Cargo.lock");
    let is_locked = |name: &&str| lock.contains(&format!("\nname = \"{name}\"\n"));
    let packages = ["", "crates/shared/", "crates/client/"];
    let manifests = packages
        .map(|package| read(&format!("{package}Cargo.toml")))
        .concat();
    let ours = "crossbeam-channel threadpool uuid log env_logger signal-hook ctrlc";
    for name in ours.split(' ') {
        assert!(is_locked(&name), "{name}");
        let is_named = |after| manifests.contains(&format!("\n{name}{after}"));
        assert!(is_named(" = ") || is_named(".workspace = true"), "{name}");
    }
    let loops = "tokio mio hyper smol async-io async-std futures-executor";
    let mut loops = loops.split(' ');
    assert_eq!(loops.find(|name| is_locked(name)), None);
}

/// Whether a path on the machine that something was made on is in `text`, which would be of no use elsewhere.
fn names_a_place_of_its_own(text: &[u8]) -> bool {
    let text = String::from_utf8_lossy(text);
    let within =
        |before: &str| before.ends_with(|last: char| last == '.' || last.is_ascii_lowercase());
    ["work", "farm"].iter().any(|folder| {
        let path = format!("/{folder}/");
        let mut found = text.match_indices(&path);
        found.any(|(at, _)| !within(&text[..at]))
    })
}

#[test]
fn no_file_names_a_place_on_a_machine_of_ours() {
    let ours = ["see ", "work", "/x"].join("/");
    assert!(names_a_place_of_its_own(ours.as_bytes()));
    assert!(!names_a_place_of_its_own(b"bench/work/x ./work/x"));
    if !root().join(".git").exists() {
        skipped("needs the repository");
        return;
    }
    needs!("git");
    let mut git = Command::new("git");
    git.arg("-C").arg(root()).args(["ls-files", "-z"]);
    let listed = git.output().expect("git runs");
    assert!(listed.status.success(), "{listed:?}");
    let listed = String::from_utf8(listed.stdout).expect("UTF-8");
    assert!(listed.split('\0').any(|file| file == "Cargo.toml"));
    for file in listed.split_terminator('\0') {
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
fn links_lead_to_files_and_readme_links_to_every_record_of_a_decision() {
    let documents = files(&root().join("docs"), ".md").into_iter();
    for document in documents.chain([root().join("README.md")]) {
        let text = fs::read_to_string(&document).expect("a document");
        let links = text
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split([')', '#']).next());
        let folder = document.parent().expect("a folder");
        let mut links = links.filter(|link| !link.contains("://"));
        let broken = links.find(|link| !folder.join(link).exists());
        assert_eq!(broken, None, "{}", document.display());
    }
    let readme = read("README.md");
    for file in files(&root().join("docs/adr"), ".md") {
        let file = file.strip_prefix(root()).expect("a file of ours");
        assert_contains(&readme, &format!("({})", file.display()));
    }
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
    let netcats = ["nc ", "ncat ", "socat ", "/dev/tcp/"];
    line.contains("4242") && netcats.iter().any(|netcat| line.contains(netcat))
}

/// Ids and counts differ from one time to the next: `<id>` and `<count>` stand for them.
fn shape(printed: &str) -> String {
    let lines = printed.lines().map(|line| match line {
        id if uuid::Uuid::parse_str(id).is_ok() => "<id>\n".to_string(),
        count if count != "42" && count.parse::<usize>().is_ok() => "<count>\n".to_string(),
        line => format!("{line}\n"),
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
        let script = format!("cd {} && {before} true", scratch.path().display());
        let arguments = arguments.split_whitespace();
        if arguments.clone().any(|argument| argument == "--help") {
            let output = through(&shell(&script)).args(arguments).output();
            assert!(output.expect("it runs").status.success(), "{command}");
        } else {
            let daemon = Daemon::start_through(&shell(&script), arguments);
            let id = fs::read_to_string(scratch.path().join("state/server-id")).unwrap();
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
            let last = command.rsplit("| ").next().unwrap_or_default();
            let program = match last.split(' ').next() {
                Some("nc") => "nc.openbsd",
                Some(program) if !command.contains("/dev/tcp/") => program,
                _ => "bash",
            };
            if installed_for_part(program) {
                let really = run_shell(&command, "nc.openbsd", &daemon);
                assert_eq!(shape(&really), shape(&printed), "{document}: {command}");
            }
        }
    }
}

/// What is asked may differ; how it is sent may not.
#[test]
fn the_one_liners_that_readme_shows_are_tested_ones() {
    let readme = read("README.md").replace("\\|", "|");
    let spans = readme.split('`').skip(1).step_by(2).map(str::to_string);
    let shown = examples(&readme).into_iter().map(|example| example.command);
    let shown = spans
        .chain(shown)
        .filter(|line| asks(line) && !line.contains('\n'));
    let sent = |line: &str| line.rsplit(" | ").next().unwrap_or(line).to_string();
    let tested: BTreeSet<String> = one_liners().map(|(_, line)| sent(line)).collect();
    let shown: BTreeSet<String> = shown.map(|line| sent(&line)).collect();
    assert!(!shown.is_empty());
    let untested: Vec<_> = shown.difference(&tested).collect();
    assert!(
        untested.is_empty(),
        "not in tests/nc/one-liners.txt: {untested:?}"
    );
}
