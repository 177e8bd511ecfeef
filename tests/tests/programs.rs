//! `.ci/programs` lists all programs that users must install, and tests find no other programs.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The folders with the system's programs.
const SYSTEM: [&str; 4] = ["/usr/bin", "/usr/sbin", "/bin", "/sbin"];
/// Programs that no file of this repository calls, but compilers and the builds of dependencies do.
const CALLED_BY_BUILDS: [&str; 5] = ["cc", "cmake", "protoc", "dpkg-shlibdeps", "strip"];
/// Names of packages that have no other meaning in scripts: a script that contains such a name installs the package.
const UNMISTAKABLE: [&str; 4] = ["iproute2", "nftables", "iputils-ping", "bird2"];

fn root() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().expect("workspace").to_path_buf()
}

/// One line of `.ci/programs`: a program, file or Python module, its package, and the groups of callers that need it.
struct Entry {
    name: String,
    package: String,
    groups: Vec<String>,
}

impl Entry {
    /// Whether the entry is a program. Files have a `/` in their name, and Python modules a `:`.
    fn is_program(&self) -> bool {
        !self.name.contains(['/', ':'])
    }

    fn is_for(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }
}

fn list() -> Vec<Entry> {
    let text = std::fs::read_to_string(root().join(".ci/programs")).expect(".ci/programs");
    let lines = text.lines().filter(|l| !l.is_empty() && !l.starts_with('#'));
    let entries = lines.map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [name, package, groups] = words[..] else {
            panic!("not 'PROGRAM PACKAGE GROUPS': {line}");
        };
        Entry {
            name: name.to_owned(),
            package: package.to_owned(),
            groups: groups.split(',').map(str::to_owned).collect(),
        }
    });
    entries.collect()
}

/// The names in a folder; none if it is not there.
fn names(folder: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten();
    entries.filter_map(|e| e.ok()?.file_name().into_string().ok()).collect()
}

/// All files below a folder, or the file itself.
fn files(path: &Path) -> Vec<PathBuf> {
    if path.is_file() {
        return vec![path.to_owned()];
    }
    names(path).iter().flat_map(|name| files(&path.join(name))).collect()
}

/// The text of a source without its comments.
fn code(file: &Path) -> String {
    // A file that is not text is no source and counts as empty.
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let is_code = |line: &&str| {
        let line = line.trim_start();
        line.starts_with("#!") || !line.starts_with("//") && !line.starts_with('#')
    };
    text.lines().filter(is_code).collect::<Vec<_>>().join("\n")
}

fn has_word(text: &str, word: &str) -> bool {
    let part = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    text.match_indices(word).any(|(at, _)| {
        let before = text[..at].chars().next_back();
        let after = text[at + word.len()..].chars().next();
        !before.is_some_and(part) && !after.is_some_and(part)
    })
}

/// The files and folders that may call the programs of a group.
fn callers(group: &str) -> &'static [&'static str] {
    match group {
        "build" | "lint" => &["Makefile", ".ci"],
        "fresh" => &[".ci"],
        "package" | "package-test" => &[".ci", "deploy/packages"],
        "demo" => &["deploy/lab/src", "agent/src"],
        "test" => &[
            "agent",
            "controller",
            "deploy/lab",
            "tests/attack",
            "tests/src",
            "tests/tests",
        ],
        "bench" => &["tests/bench", "deploy/lab/src"],
        "image" => &["deploy/docker"],
        "vm" => &["tests/vm", "deploy/vm", "deploy/lab/src/host"],
        _ => panic!("no group '{group}'"),
    }
}

#[test]
fn a_test_finds_the_listed_programs_and_no_others() {
    let path = std::env::var_os("PATH").expect("PATH");
    let folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let [folder] = &folders[..] else {
        panic!("start tests with cargo, whose runner gives them a PATH of their own (.cargo/config.toml): {path:?}");
    };
    let listed: BTreeSet<String> = list()
        .into_iter()
        .filter(|e| e.is_program() && e.is_for("test"))
        .map(|e| e.name)
        .collect();
    assert_eq!(names(folder), listed, "'.ci/prepare' installs what is missing");
    for name in &listed {
        assert!(folder.join(name).is_file(), "{name} is a link to nothing");
    }

    // Tests must not find a program that is installed but not listed. Shell built-ins such as `[` do not qualify,
    // because a shell finds them even with an empty PATH.
    let built_in = |name: &str| {
        let shell = Command::new("sh")
            .args(["-c", "PATH=; command -v \"$0\"", name])
            .output();
        shell.expect("sh").status.success()
    };
    let mut installed = SYSTEM.into_iter().flat_map(|folder| names(Path::new(folder)));
    let unlisted = installed.find(|name| !listed.contains(name) && !built_in(name));
    let unlisted = unlisted.expect("no system has only the listed programs");
    let started = Command::new(&unlisted).spawn();
    assert_eq!(started.expect_err(&unlisted).kind(), ErrorKind::NotFound, "{unlisted}");
    let shell = Command::new("sh").args(["-c", "command -v \"$0\"", &unlisted]).output();
    let shell = shell.expect("sh");
    assert!(!shell.status.success(), "a shell finds {unlisted}");
}

#[test]
fn every_listed_program_is_called() {
    let own = root().join("tests/tests/programs.rs");
    let mut idle = Vec::new();
    for group in [
        "build",
        "demo",
        "test",
        "bench",
        "lint",
        "fresh",
        "image",
        "vm",
        "package",
        "package-test",
    ] {
        let sources = callers(group).iter().flat_map(|place| files(&root().join(place)));
        let sources = sources.filter(|f| *f != own && !f.ends_with(".ci/programs"));
        let text: Vec<String> = sources.map(|f| code(&f)).collect();
        assert!(text.iter().any(|t| !t.is_empty()), "no sources of {group}");
        for entry in list() {
            let name = entry.name.as_str();
            if !entry.is_for(group) || !entry.is_program() || CALLED_BY_BUILDS.contains(&name) {
                continue;
            }
            // Scripts call `cargo-deny` as `cargo deny`.
            let name = name.replacen("cargo-", "cargo ", 1);
            if !text.iter().any(|t| has_word(t, &name)) {
                idle.push(format!("{group} does not call {name}"));
            }
        }
    }
    assert!(idle.is_empty(), "take these from .ci/programs: {idle:#?}");
    for entry in list() {
        for group in &entry.groups {
            callers(group);
        }
    }
}

#[test]
fn packages_are_installed_from_the_list_alone() {
    let packages: BTreeSet<String> = list().into_iter().map(|e| e.package).collect();
    for place in ["Makefile", ".ci", "tests/bench", "tests/vm"] {
        for file in files(&root().join(place)) {
            if !file.ends_with(".ci/prepare") {
                let installs = code(&file).contains("apt-get install");
                assert!(!installs, "{}: a second list of packages", file.display());
            }
        }
    }
    let prepare = code(&root().join(".ci/prepare"));
    let named: Vec<&String> = packages.iter().filter(|p| UNMISTAKABLE.contains(&p.as_str())).collect();
    assert_eq!(named.len(), UNMISTAKABLE.len(), "packages of the list");
    for package in named {
        assert!(!has_word(&prepare, package), "{package} is named in .ci/prepare too");
    }
}

#[test]
fn no_test_names_a_program_by_its_path() {
    let own = root().join("tests/tests/programs.rs");
    for place in callers("test") {
        for file in files(&root().join(place)) {
            if file == own || file.extension().is_none_or(|e| e != "rs") {
                continue;
            }
            let text = code(&file);
            for folder in SYSTEM {
                let named = text.contains(&format!("\"{folder}/"));
                assert!(!named, "{}: a program of {folder} that no list has", file.display());
            }
        }
    }
}
