//! Generates the module list of the sets of commands, so that a new set is one new file: each
//! `src/command/sets/NAME.rs` becomes a module, and its `SET` an element of `SETS` under that name,
//! in alphabetical order.

use std::path::Path;
use std::{env, fs};

fn main() {
    let folder = Path::new(&env::var("CARGO_MANIFEST_DIR").expect("cargo says where it is"))
        .join("src/command/sets");
    println!("cargo::rerun-if-changed={}", folder.display());
    let mut files: Vec<_> = fs::read_dir(&folder)
        .expect("the sets of commands")
        .map(|entry| entry.expect("an entry of a folder").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .collect();
    files.sort();
    let (mut modules, mut sets) = (String::new(), String::new());
    for file in files {
        let name = file.file_stem().expect("a name").to_str().expect("ASCII");
        modules += &format!("#[path = {file:?}]\npub mod {name};\n");
        sets += &format!("    ({name:?}, {name}::SET),\n");
    }
    let code = format!(
        "{modules}\n/// All sets, with their names.\npub const SETS: &[(&str, super::CommandSet)] = &[\n{sets}];\n"
    );
    let out = Path::new(&env::var("OUT_DIR").expect("cargo says where to")).join("sets.rs");
    fs::write(out, code).expect("cargo's own folder takes a file");
}
