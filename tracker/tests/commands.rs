//! The commands as a shell sees them: exit codes, what goes to which stream, and closed pipes. No tracker runs here.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::io::Write;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};

fn tracker(socket: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tracker"));
    command.env("TRACKER_SOCKET", socket).args(arguments);
    command
}

fn run(arguments: &[&str]) -> Output {
    let directory = tempfile::tempdir().unwrap();
    tracker(&directory.path().join("none.sock"), arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn without_a_tracker_each_asking_command_says_what_to_do() {
    for arguments in [
        &["ps"][..],
        &["inspect", "x"],
        &["lookup", "--pid", "1"],
        &["watch"],
        &["explain", "x"],
        &["sources"],
        &["dump"],
    ] {
        let Output { status, stdout, stderr } = run(arguments);
        assert_eq!(status.code(), Some(1), "{arguments:?}");
        assert!(stdout.is_empty(), "{arguments:?}");
        assert!(text(&stderr).contains("none.sock") && text(&stderr).contains("tracker run"), "{}", text(&stderr));
    }
}

#[test]
fn a_wrong_command_line_is_exit_code_2() {
    for arguments in [&["frobnicate"][..], &["lookup"], &["ps", "--output", "xml"], &["completions", "cmd.exe"]] {
        assert_eq!(run(arguments).status.code(), Some(2), "{arguments:?}");
    }
}

#[test]
fn completions_are_made_for_the_usual_shells() {
    for shell in ["bash", "zsh", "fish"] {
        let Output { status, stdout, .. } = run(&["completions", shell]);
        assert!(status.success());
        assert!(text(&stdout).contains("lookup"), "{shell}");
    }
}

#[test]
fn a_reader_that_closes_the_pipe_early_is_no_error() {
    let directory = tempfile::tempdir().unwrap();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = tracker(&directory.path().join("none.sock"), &["completions", "bash"]);
    let output = command.stdout(writer).stderr(Stdio::piped()).output().unwrap();
    assert!(output.status.success(), "{:?}", output.status);
    assert!(output.stderr.is_empty(), "{}", text(&output.stderr));
}

#[test]
fn the_doctor_needs_no_tracker_and_speaks_json() {
    let Output { status, stdout, .. } = run(&["doctor", "-o", "json"]);
    let checks: serde_json::Value = serde_json::from_slice(&stdout).unwrap();
    let verdicts: Vec<_> = checks.as_array().unwrap().iter().map(|check| check["verdict"].as_str().unwrap()).collect();
    let expected = if verdicts.contains(&"fail") { 1 } else { 0 };
    assert_eq!(status.code(), Some(expected), "{verdicts:?}");
}

#[test]
fn whatever_answers_at_the_socket_is_not_believed_to_be_a_tracker() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("other.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let other = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"220 mail.example ESMTP\r\n").unwrap();
    });
    let Output { status, stderr, .. } = tracker(&socket, &["ps"]).output().unwrap();
    other.join().unwrap();
    assert_eq!(status.code(), Some(1));
    assert!(text(&stderr).contains("does not speak like a tracker"), "{}", text(&stderr));
}

#[test]
fn a_configuration_with_an_unknown_key_is_refused_before_anything_starts() {
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("tracker.toml");
    std::fs::write(&config, "[server]\nsockets = '/x'\n").unwrap();
    let socket = directory.path().join("t.sock");
    let output = tracker(&socket, &["run", "--config", config.to_str().unwrap()]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stderr);
    assert!(said.contains("sockets") && said.contains("tracker.toml"), "{said}");
    assert!(!socket.exists());
}
