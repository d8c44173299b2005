//! Python and Node.js with the packages that `tests/registry/install` installs from their registries.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{clean, installed, must_test_all, skipped};

/// Where the packages are.
fn folder() -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent();
    target
        .expect("it is in the target's folder")
        .join("registry")
}

/// Python with the packages of `tests/registry/python.txt`. Without them the test is to return: it is reported as skipped.
#[must_use]
#[track_caller]
pub fn python() -> Option<Command> {
    let program = folder().join("python/bin/python3");
    let mut command = with(&program, "Python's packages")?;
    command.env("PYTHONDONTWRITEBYTECODE", "1");
    Some(command)
}

/// Where the packages of `tests/registry/package.json` are.
pub fn node_packages() -> PathBuf {
    folder().join("node_modules")
}

/// Node.js with the packages of `tests/registry/package.json`, or the same.
#[must_use]
#[track_caller]
pub fn node() -> Option<Command> {
    let packages = node_packages();
    with(&packages, "the packages of npm")?;
    let mut command = installed("node").then(|| clean("node"))?;
    command.env("NODE_PATH", packages);
    Some(command)
}

#[track_caller]
fn with(program: &Path, what: &str) -> Option<Command> {
    if program.exists() {
        return Some(clean(program));
    }
    assert!(!must_test_all(), "{} is missing", program.display());
    skipped(&format!("needs {what}: tests/registry/install"));
    None
}
