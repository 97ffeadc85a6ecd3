use proptest::prelude::*;

use super::*;

fn words(line: &str) -> Vec<OsString> {
    line.split(' ').map(|word| OsString::from(word.replace('_', " ").trim())).collect()
}

/// Parses `line` and spells the outcome as `verb id root bundle pid-file`, `-` for what is absent.
#[track_caller]
fn check(dialect: Dialect, line: &str, expected: &str) {
    let show = |path: &Option<PathBuf>| path.as_ref().map_or("-".into(), |path| path.display().to_string());
    let outcome = match parse(dialect, &words(line)) {
        Ok(Command::Container(i)) => {
            format!("{} {} {} {} {}", i.verb.name(), i.id, show(&i.root), show(&i.bundle), show(&i.pid_file))
        }
        Ok(Command::Itself) => "itself".into(),
        Ok(Command::Other) => "other".into(),
        Err(ArgvError::Usage(_)) => "usage".into(),
        Err(ArgvError::Id(_)) => "id".into(),
        Err(ArgvError::NotOci) => "not-oci".into(),
        Err(ArgvError::TooLong) => "too-long".into(),
    };
    assert_eq!(outcome, expected, "{line}");
}

#[test]
fn runc_command_lines_mean_what_runc_makes_of_them() {
    let check = |line, expected| check(Dialect::Go, line, expected);
    check("runc create -b /b c1", "create c1 - /b -");
    check("runc create c1", "create c1 - - -");
    check("runc --root /r --log /l --log-format json create --bundle /b --pid-file /p c1", "create c1 /r /b /p");
    check("runc -root=/r -systemd-cgroup --rootless auto run -d -bundle=/b c1", "run c1 /r /b -");
    check("runc create c1 --bundle /b", "create c1 - /b -");
    check("runc create --no-pivot c1 --bundle /b", "usage");
    check("runc create --no-pivot --bundle /b c1", "create c1 - /b -");
    check("runc create -b --no-pivot c1", "create c1 - --no-pivot -");
    check("runc create -b /a -b /b c1", "create c1 - /b -");
    check("runc create -b /a --bundle /b c1", "usage");
    check("runc create --bund /b c1", "usage");
    check("runc create -b/b c1", "usage");
    check("runc create --preserve-fds 0x10 c1", "create c1 - - -");
    check("runc create --preserve-fds x c1", "usage");
    check("runc create --no-pivot=maybe c1", "usage");
    check("runc create -b /b -- -c1", "create -c1 - /b -");
    check("runc -- create -b /b c1", "create c1 - /b -");
    check("runc start c1 c2", "usage");
    check("runc start", "usage");
    check("runc start --", "usage");
    check("runc start ..", "id");
    check("runc start a/b", "id");
    check("runc kill c1 -9", "kill c1 - - -");
    check("runc kill -9 c1", "usage");
    check("runc kill --all c1 KILL", "kill c1 - - -");
    check("runc delete c1 -f", "delete c1 - - -");
    check("runc restore --image-path /i -b /b c1", "restore c1 - /b -");
    check("runc init", "itself");
    check("runc --version", "other");
    check("runc state c1", "other");
    check("runc -h create c1", "other");
    check("runc create c1 -h", "other");
    check("runc ---root /r create c1", "usage");
    check("ls -l", "usage");
    check("ls /tmp", "not-oci");
    check("sh", "not-oci");
}

#[test]
fn crun_command_lines_mean_what_crun_makes_of_them() {
    let check = |line, expected| check(Dialect::Argp, line, expected);
    check("crun create -b /b c1", "create c1 - /b -");
    check("crun create -b/b c1", "create c1 - /b -");
    check("crun create --bund /b c1", "create c1 - /b -");
    check("crun --roo=/r create --bundle=/b --pid /p c1", "create c1 /r /b /p");
    check("crun --root /r --rootless /s start c1", "start c1 /s - -");
    check("crun --lo /l start c1", "usage");
    check("crun create -bundle c1", "create c1 - undle -");
    check("crun create c1 --bundle /b", "usage");
    check("crun create --no c1", "usage");
    check("crun create --no-piv c1", "create c1 - - -");
    check("crun create --no-pivot=1 c1", "usage");
    check("crun run -db /b c1", "run c1 - /b -");
    check("crun run -bd /b", "id");
    check("crun create -b /a -b /b c1", "create c1 - /b -");
    check("crun -- create -b /b -- c1", "create c1 - /b -");
    check("crun -root /r create c1", "usage");
    check("crun --root r start c1", "usage");
    check("crun create", "usage");
    check("crun creat c1", "not-oci");
    check("crun start --he c1", "other");
    check("crun delete --regex c.*", "other");
    check("crun kill -a c1 KILL", "kill c1 - - -");
    check("crun exec c1 sh", "other");
}

#[test]
fn long_but_real_command_lines_pass() {
    let long = format!("/{}", "x".repeat(4095));
    let mut argv = words("runc --root /r create");
    argv.extend((0..400).map(|_| OsString::from("--no-pivot")));
    argv.extend([OsString::from("--bundle"), OsString::from(&long), OsString::from("c1")]);
    let Ok(Command::Container(invocation)) = parse(Dialect::Go, &argv) else { panic!("400 arguments are fine") };
    assert_eq!(invocation.bundle.as_deref(), Some(Path::new(&long)));
    argv.extend((0..MAX_ARGUMENTS).map(|_| OsString::from("x")));
    assert_eq!(parse(Dialect::Go, &argv), Err(ArgvError::TooLong));
}

#[test]
fn the_dialect_follows_the_file_name() {
    assert_eq!(Dialect::of(Path::new("/usr/bin/crun")), Dialect::Argp);
    assert_eq!(Dialect::of(Path::new("/opt/crun-wasm")), Dialect::Argp);
    assert_eq!(Dialect::of(Path::new("/usr/sbin/runc")), Dialect::Go);
    assert_eq!(Dialect::of(Path::new("/opt/crunch/kata-runtime")), Dialect::Go);
}

fn spelling() -> impl Strategy<Value = Vec<u8>> {
    let known: Vec<&'static str> = vec![
        "create",
        "start",
        "run",
        "init",
        "--",
        "-",
        "--root",
        "--root=/r",
        "-b",
        "-b=/x",
        "--bundle",
        "-db",
        "--pid-file",
        "-h",
        "--no-pivot",
        "c1",
        "..",
        "",
        "---",
        "-=",
        "--=x",
    ];
    prop_oneof![
        3 => prop::sample::select(known).prop_map(|word| word.as_bytes().to_vec()),
        1 => prop::collection::vec(any::<u8>(), 0..40),
    ]
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic_and_ids_are_valid(words in prop::collection::vec(spelling(), 0..12)) {
        let argv: Vec<OsString> = words.into_iter().map(OsString::from_vec).collect();
        for dialect in [Dialect::Go, Dialect::Argp] {
            if let Ok(Command::Container(invocation)) = parse(dialect, &argv) {
                prop_assert!(ContainerId::new(invocation.id.as_str()).is_ok());
                prop_assert!(argv.iter().any(|word| word.as_bytes() == invocation.id.as_str().as_bytes()));
            }
        }
    }

    #[test]
    fn splitting_a_command_line_loses_no_word(words in prop::collection::vec("[a-z]{0,5}", 1..8)) {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.bytes().chain([0])).collect();
        let expected: Vec<OsString> =
            if bytes.iter().all(|byte| *byte == 0) && words.len() == 1 { vec![] } else { words.iter().map(OsString::from).collect() };
        prop_assert_eq!(split_nul(&bytes), expected);
    }
}
