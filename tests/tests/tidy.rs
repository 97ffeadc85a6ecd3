//! Rules about the source tree that no compiler checks. Needs neither root nor a kernel.
//!
//! A rule that stands in the way is changed here, with its reason, in the change that breaks it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests are one level below the root").to_path_buf()
}

/// The files under version control, and those not yet added but not ignored: what a change would consist of. All files
/// but the build's where this is not a clone.
fn files() -> Vec<String> {
    let mut list = Command::new("git");
    // The tests may run as another user than the clone's.
    list.current_dir(root()).args(["-c", "safe.directory=*", "ls-files", "--cached", "--others", "--exclude-standard"]);
    let mut files: Vec<String> = match list.output() {
        Ok(listed) if listed.status.success() => {
            String::from_utf8_lossy(&listed.stdout).lines().map(str::to_owned).collect()
        }
        _ => Vec::new(),
    };
    if files.is_empty() {
        walk(&root(), &mut files);
    }
    files.retain(|file| root().join(file).is_file());
    assert!(!files.is_empty());
    files
}

fn walk(directory: &Path, files: &mut Vec<String>) {
    for entry in fs::read_dir(directory).expect("the source tree is readable").flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        if path.is_file() {
            let path = path.strip_prefix(root()).expect("below the root, where the walk began");
            files.push(path.to_string_lossy().into_owned());
        } else if name != "target" && name != ".git" {
            walk(&path, files);
        }
    }
}

fn rust_files() -> Vec<(String, String)> {
    let files = files().into_iter().filter(|file| file.ends_with(".rs"));
    files.map(|file| (file.clone(), read(&file))).collect()
}

fn read(file: &str) -> String {
    String::from_utf8_lossy(&fs::read(root().join(file)).unwrap_or_default()).into_owned()
}

/// A module's tests in files of their own; they belong to the file beside them.
fn is_tests(file: &str) -> bool {
    file.ends_with("/tests.rs")
        || file.ends_with("/component_tests.rs")
        || file.contains("/src/") && file.contains("/tests/")
}

/// Code without comments and string literals, line by line, test modules left out.
fn code(file: &str, text: &str) -> Vec<(usize, String)> {
    let mut lines = Vec::new();
    if is_tests(file) {
        return lines;
    }
    for (number, line) in text.lines().enumerate() {
        // A test module at the end of a file; `mod tests;` alone is no reason to stop reading.
        if line.starts_with("#[cfg(test)]") && text.lines().nth(number + 1).is_some_and(|next| next.ends_with('{')) {
            break;
        }
        let line = line.split("//").next().unwrap_or_default();
        let outside_quotes: Vec<&str> = line.split('"').step_by(2).collect();
        lines.push((number + 1, outside_quotes.join("\"\"")));
    }
    lines
}

/// Whether a line contains a path that does not go on to the left: `nix::` is not in `unix::`.
fn contains_path(line: &str, path: &str) -> bool {
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    line.match_indices(path).any(|(at, _)| at == 0 || !is_name(line.as_bytes()[at - 1]))
}

/// Compares, and shows what is too much and what is missing.
fn check(rule: &str, violations: Vec<String>) {
    assert!(violations.is_empty(), "{rule}:\n  {}", violations.join("\n  "));
}

#[test]
fn the_top_level_is_the_house_and_nothing_else() {
    let found: BTreeSet<String> = files()
        .iter()
        .map(|file| file.split('/').next().unwrap_or(file).to_owned())
        .filter(|name| !name.starts_with('.'))
        .collect();
    let house = ["tracker", "tracker-common", "tracker-ebpf", "tests", "xtask", "docs"];
    let papers = ["README.md", "ARCHITECTURE.md", "STYLE.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"];
    let build = ["Cargo.toml", "Cargo.lock", "clippy.toml", "rustfmt.toml", "deny.toml", "rust-toolchain.toml"];
    let licences = ["LICENSE-APACHE", "LICENSE-MIT", "LICENSE-GPL2"];
    let allowed: BTreeSet<&str> = house.into_iter().chain(papers).chain(build).chain(licences).collect();
    check(
        "names not planned for the top level",
        found.into_iter().filter(|name| !allowed.contains(name.as_str())).collect(),
    );
}

#[test]
fn what_decides_does_no_io() {
    let pure = [
        "tracker/src/container",
        "tracker/src/fact",
        "tracker/src/filter",
        "tracker/src/enrich",
        "tracker/src/collection",
    ];
    let io = [
        "aya::",
        "nix::",
        "tokio::fs",
        "tokio::net",
        "std::fs",
        "std::net::Tcp",
        "std::net::Udp",
        "std::process::Command",
    ];
    let mut violations = Vec::new();
    for (file, text) in rust_files() {
        if !pure.iter().any(|module| file.starts_with(module)) {
            continue;
        }
        for (number, line) in code(&file, &text) {
            let grouped = line.trim_start().starts_with("use std::{") && contains_path(&line, "fs");
            if grouped || io.iter().any(|name| contains_path(&line, name)) {
                violations.push(format!("{file}:{number}: {}", line.trim()));
            }
        }
    }
    check(
        "`container`, `fact`, `filter`, `enrich` and `collection` decide; files, sockets and the kernel are for sources",
        violations,
    );
}

#[test]
fn long_lived_tasks_and_threads_start_in_one_place() {
    // Everything else hands `tracker.rs` something to run. These start bounded, short-lived ones.
    let allowed = [
        ("tracker/src/tracker.rs", "starts everything that lives as long as the tracker"),
        ("tracker/src/tracker/handle.rs", "starts the threads of subscribers, which end with the collection"),
        ("tracker/src/server/", "one task per connection, their number bounded"),
        ("tracker/src/route/", "a thread per first look into a network namespace: only a thread can be moved there"),
        (
            "tracker/src/barrier/",
            "threads that may be lost to a file that hangs, from a bounded pool; the keeper's own process",
        ),
        ("tracker/src/source/proc/", "threads that may be lost to a file that hangs, four at most"),
        ("tracker/src/source/find/", "one look at a time, of which four may be lost to a file that hangs"),
        ("tracker/src/source/aside.rs", "threads that may be lost to a file that hangs, a few at most"),
        ("tracker/src/cli/", "what a command does while it waits, until it ends"),
        ("tracker/src/main.rs", "the process's own signals"),
    ];
    let starts = ["tokio::spawn(", "thread::spawn(", "thread::Builder::new(", "spawn_blocking(", "thread::scope("];
    let mut violations = Vec::new();
    for (file, text) in rust_files() {
        if !file.starts_with("tracker/src/") || allowed.iter().any(|(place, _)| file.starts_with(place)) {
            continue;
        }
        for (number, line) in code(&file, &text) {
            if starts.iter().any(|start| line.contains(start)) {
                violations.push(format!("{file}:{number}: {}", line.trim()));
            }
        }
    }
    check("tasks and threads are started by tracker.rs", violations);
}

#[test]
fn unsafe_lives_in_named_files() {
    let allowed = [
        ("tracker-ebpf/", "every load from the kernel's memory is"),
        ("tracker-common/src/", "records are read from bytes, and a file is mapped and read as words"),
        ("tracker-common/tests/", "a file that another one maps"),
        ("tracker/src/barrier/", "fanotify and another process's memory have no safe interface"),
        ("tracker/src/source/kernel", "records and maps shared with the kernel"),
        ("tracker/src/plane", "a mapping shared with other programs"),
        ("tracker/src/readable.rs", "registering a descriptor with tokio"),
        ("tracker/src/sys.rs", "calls into the kernel that no crate offers"),
        ("tracker/src/bin/tracker-demo-runtime/", "a clone into new namespaces"),
        ("tests/", "system calls that tests make in all the wrong ways"),
        ("tracker/examples/", "an example's own records"),
        ("tracker/benches/", "an allocator that counts"),
        ("tracker/tests/no_allocation.rs", "an allocator that counts"),
    ];
    let mut violations = Vec::new();
    for (file, text) in rust_files() {
        if allowed.iter().any(|(place, _)| file.starts_with(place)) {
            continue;
        }
        for (number, line) in code(&file, &text) {
            if line.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == "unsafe") {
                violations.push(format!("{file}:{number}: {}", line.trim()));
            }
        }
    }
    check("`unsafe` outside of the files that have a reason for it", violations);
}

#[test]
fn the_project_speaks_of_itself_alone() {
    // Built from pieces, so that this file does not contain what it looks for.
    let foreign = [
        ["/wo", "rk/"],
        ["/tmp", "/wt"],
        ["LAB", ".md"],
        ["DESIGN", ".md"],
        ["KERNELS", ".md"],
        ["brief", ".md"],
        ["crates", ".io"],
    ]
    .map(|pieces| pieces.concat());
    let mut violations = Vec::new();
    for file in files() {
        if file.ends_with("Cargo.lock") || file.starts_with("LICENSE") || file.starts_with("tracker/bpf/") {
            continue;
        }
        for (number, line) in read(&file).lines().enumerate() {
            if let Some(word) = foreign.iter().find(|word| line.contains(word.as_str())) {
                violations.push(format!("{file}:{}: `{word}`", number + 1));
            }
        }
    }
    check("words that only one workplace knows", violations);
}

#[test]
fn no_test_is_left_out() {
    let pieces = [["#[ign", "ore"], ["todo", "!("], ["unimpl", "emented!("]].map(|pieces| pieces.concat());
    let mut violations = Vec::new();
    for (file, text) in rust_files() {
        for (number, line) in text.lines().enumerate() {
            if pieces.iter().any(|piece| line.trim_start().starts_with(piece.as_str())) {
                violations.push(format!("{file}:{}: {}", number + 1, line.trim()));
            }
        }
    }
    check("tests that never run, and code that is not there", violations);
}

#[test]
fn every_file_says_what_it_owns() {
    let mut violations = Vec::new();
    for (file, text) in rust_files() {
        if !is_tests(&file) && !text.starts_with("//!") && !text.starts_with("#!") && !text.trim().is_empty() {
            violations.push(file);
        }
    }
    check("files that do not open with a `//!` of what they own, promise and leave to others", violations);
}

#[test]
fn dependencies_come_from_one_list() {
    // One version and one set of features per dependency: members say `workspace = true`, with their reason if it is
    // theirs alone.
    let own: &[(&str, &str)] = &[("xtask/Cargo.toml", "protoc-bin-vendored")];
    let mut violations = Vec::new();
    for member in ["tracker/Cargo.toml", "tracker-common/Cargo.toml", "tests/Cargo.toml", "xtask/Cargo.toml"] {
        let text = read(member);
        let mut inside = false;
        for line in text.lines() {
            if line.starts_with('[') {
                inside = line.contains("dependencies");
                continue;
            }
            let name = line.split(['.', ' ', '=']).next().unwrap_or_default();
            let is_entry = inside && !name.is_empty() && !name.starts_with('#');
            if is_entry && !line.contains("workspace = true") && !own.contains(&(member, name)) {
                violations.push(format!("{member}: {line}"));
            }
        }
    }
    check("dependencies whose version is not in the workspace's Cargo.toml", violations);
}
