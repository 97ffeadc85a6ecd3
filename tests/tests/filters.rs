//! The configuration's filter on real containers: who is left out, what look-ups say then, and what `filter test` foretells.

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tracker_tests::bundle::{Bundle, RootFs};
use tracker_tests::containerd::{Containerd, IMAGE};
use tracker_tests::daemon::{self, Daemon};
use tracker_tests::kubelet::{Kubelet, Network};
use tracker_tests::runc::{Kind, Runtime};
use tracker_tests::wait::eventually;
use tracker_tests::{kernel, process, require, requirement};

const SLEEP: &[&str] = &["/bin/sleep", "1000"];

macro_rules! require_containerd {
    () => {
        require!(requirement::root(), requirement::tracker(), kernel::btf(), kernel::permission_events());
        require!(requirement::program("containerd"), requirement::program("ctr"), Kind::Runc.requirement());
        require!(requirement::program("busybox"));
    };
}

/// A tracker that knows this containerd and has this filter.
fn track(containerd: &Containerd, filter: &str) -> Result<Daemon> {
    Daemon::start(&format!(
        "node = 'here'\n[barrier]\nruntimes = [{:?}]\n[containerd]\nsockets = [{:?}]\n[filter]\n{filter}\n",
        containerd.runtime().program(),
        containerd.socket()
    ))
}

/// The ids among `wanted` that `ps --all` shows.
fn shown<'a>(daemon: &Daemon, wanted: &[&'a str]) -> Vec<&'a str> {
    wanted.iter().copied().filter(|id| daemon.find(id).is_some()).collect()
}

/// What `filter test` says of the container `id`, as its decision and its rule.
fn fate<'a>(fates: &'a Value, id: &str) -> (&'a Value, &'a Value) {
    let fate = fates.as_array().and_then(|fates| fates.iter().find(|fate| fate["id"] == id));
    fate.map_or((&Value::Null, &Value::Null), |fate| (&fate["decision"], &fate["rule"]))
}

#[test]
fn pods_of_an_excluded_namespace_never_show_and_explain_says_why() -> Result<()> {
    require_containerd!();
    let containerd = Containerd::start_with_cri()?;
    let own = std::process::id();
    let (noise, shop) = (format!("noise-{own}"), format!("shop-{own}"));
    let rules = format!("exclude = ['pod-namespace:^{noise}$']\ninclude = ['name:^needed$']\n");
    let daemon = track(&containerd, &rules)?;
    let mut watch = Command::new(requirement::tracker().map_err(anyhow::Error::msg)?);
    watch.arg("--socket").arg(daemon.socket()).args(["watch", "--all", "-o", "json"]);
    let directory = tempfile::tempdir().context("create a directory")?;
    let seen = directory.path().join("seen");
    let _watch = process::Process::start(&mut watch, &seen)?;
    eventually("the watch has begun", || fs::read_to_string(&seen).ok().filter(|seen| seen.contains("bundle")));

    let mut kubelet = Kubelet::connect(&containerd)?;
    let loud = kubelet.run_pod(&noise, "loud", Network::Host)?;
    let dull = kubelet.start(&loud, "dull", 0, SLEEP)?;
    let needed = kubelet.start(&loud, "needed", 0, SLEEP)?;
    let quiet = kubelet.run_pod(&shop, "quiet", Network::Host)?;
    let web = kubelet.start(&quiet, "web", 0, SLEEP)?;

    // Held until published: who is not there now was not published.
    let all = [dull.as_str(), needed.as_str(), web.as_str(), loud.id.as_str(), quiet.id.as_str()];
    assert_eq!(shown(&daemon, &all), [&*needed, &*web, &*quiet.id]);
    let pid = kubelet.status(&dull)?.pid;
    let mntns = kernel::namespace(pid, "mnt")?.to_string();
    let rule = format!("exclude `pod-namespace:^{noise}$`");
    for who in [&["explain", &dull][..], &["explain", "--mntns", &mntns], &["explain", "--pid", &pid.to_string()]] {
        let story = daemon.ask_json(&[who, &["-o", "json"]].concat())?;
        assert_eq!((&story["container"]["id"], &story["excluded"]), (&json!(dull), &json!(rule)), "{who:?}");
        assert!(daemon.ask(who)?.out.contains(&rule));
    }
    let lookup = daemon.ask(&["lookup", "--mntns", &mntns, "-o", "json"])?;
    let answer: Value = serde_json::from_str(&lookup.out)?;
    assert_eq!((lookup.code, &answer["answer"], &answer["excluded"]), (3, &json!("unknown"), &json!(1)), "{lookup:?}");
    assert!(lookup.err.contains("tracker explain"), "{}", lookup.err);
    let inspect = daemon.ask(&["inspect", &dull])?;
    assert_eq!(inspect.code, 3);
    assert!(inspect.err.contains(&rule), "{}", inspect.err);
    // The sandbox and one container.
    let counted = daemon.request("GET", "/metrics", "")?.1;
    let sample = format!("tracker_excluded{{rule=\"{rule}\"}} 2");
    assert!(counted.lines().any(|line| line.starts_with(&sample)), "`{sample}` is not in {counted}");

    // It was not told in passing either.
    eventually("the watch has told of the last one", || {
        let told = fs::read_to_string(&seen).ok()?;
        told.contains(&web).then_some(())
    });
    let told = fs::read_to_string(&seen).context("read what was watched")?;
    assert!(told.contains(&needed) && !told.contains(&dull), "{told}");

    kubelet.stop(&dull, 0)?;
    let story = eventually("its end is known all the same", || {
        daemon.ask_json(&["explain", &dull, "-o", "json"]).ok().filter(|s| s["container"]["state"] == "exited")
    });
    assert_eq!(story["excluded"], rule);
    assert_eq!(shown(&daemon, &[&dull]), [""; 0]);
    Ok(())
}

#[test]
fn an_image_that_is_known_later_removes_its_container_and_a_file_foretells_it() -> Result<()> {
    require_containerd!();
    let containerd = Containerd::start()?;
    containerd.import_image("default")?;
    let id = format!("c-{}", std::process::id());
    let rule = format!("image:^{IMAGE}$");
    let daemon = track(&containerd, &format!("exclude = ['{rule}']\n"))?;
    let open = track(&containerd, "")?;
    containerd.run("default", &id, &[], SLEEP)?;
    let told = format!("exclude `{rule}`");
    eventually("the image is known, and the container excluded", || {
        daemon.ask_json(&["explain", &id, "-o", "json"]).ok().filter(|story| story["excluded"] == told)
    });
    assert!(daemon.find(&id).is_none());
    // The other tracker, which has no filter, shows it.
    eventually("the image is known", || open.find(&id).filter(|known| known["image"]["name"] == IMAGE));

    let directory = tempfile::tempdir().context("create a directory")?;
    let path = |name: &str| directory.path().join(name).to_string_lossy().into_owned();
    let (tried, listed) = (path("tried.toml"), path("containers.json"));
    fs::write(&tried, format!("[filter]\nexclude = ['{rule}', 'colour:blue']\n"))?;
    fs::write(&listed, open.ask(&["ps", "--all", "-o", "json"])?.out)?;
    let test =
        |daemon: &Daemon, more: &[&str]| daemon.ask(&[&["filter", "test", "-f", &tried, "-o", "json"], more].concat());
    // Of the running tracker's containers those are judged, too, that its own filter leaves out.
    for said in [test(&daemon, &[])?, test(&open, &[])?, test(&daemon, &["--containers", &listed])?] {
        assert_eq!(said.code, 0, "{}", said.err);
        let fates: Value = serde_json::from_str(&said.out)?;
        assert_eq!(fate(&fates, &id), (&json!("excluded"), &json!(told)), "{fates}");
        assert!(said.err.contains("there is no field `colour`"), "{}", said.err);
    }
    // The same from standard input, as a table.
    let mut command = Command::new(requirement::tracker().map_err(anyhow::Error::msg)?);
    command.args(["filter", "test", "-f", "-", "--containers", &listed]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().context("start `tracker filter test`")?;
    let config = format!("[filter]\ninclude = ['{rule}']\nexclude = ['name:.*']\n");
    child.stdin.take().context("its input")?.write_all(config.as_bytes())?;
    let output = child.wait_with_output()?;
    let table = String::from_utf8(output.stdout)?;
    let line = table.lines().find(|line| line.contains(&id)).with_context(|| format!("find {id} in {table}"))?;
    assert!(
        output.status.success() && line.starts_with("kept") && line.contains(&format!("include `{rule}`")),
        "{line}"
    );
    Ok(())
}

#[test]
fn who_shares_a_pod_with_an_excluded_sandbox_is_still_found() -> Result<()> {
    require_containerd!();
    let containerd = Containerd::start_with_cri()?;
    let daemon = track(&containerd, "exclude-sandboxes = true\ninclude = ['name:.*', 'image:.*']")?;
    let mut kubelet = Kubelet::connect(&containerd)?;
    let pod = kubelet.run_pod(&format!("shop-{}", std::process::id()), "web", Network::Pod)?;
    let web = kubelet.start(&pod, "web", 0, SLEEP)?;
    let pid = kubelet.status(&web)?.pid;
    assert_eq!(shown(&daemon, &[&web, &pod.id]), [&*web]);
    let netns = kernel::namespace(pid, "net")?.to_string();
    let answer = daemon.ask_json(&["lookup", "--netns", &netns, "-o", "json"])?;
    let ids: Vec<_> = answer["containers"].as_array().into_iter().flatten().map(|found| &found["id"]).collect();
    assert_eq!((ids, &answer["excluded"]), (vec![&json!(web)], &json!(1)), "{answer}");
    assert_eq!(answer["pod"]["name"], "web");
    Ok(())
}

#[test]
fn a_container_without_a_name_is_kept_by_any_pattern_but_that_for_nothing() -> Result<()> {
    require!(requirement::root(), requirement::tracker(), kernel::btf(), kernel::permission_events());
    require!(Kind::Runc.requirement(), requirement::program("busybox"));
    let directory = tempfile::tempdir().context("create a directory")?;
    let runtime = Runtime::copy(Kind::Runc, directory.path())?;
    let root = RootFs::create(directory.path())?;
    let id = format!("bare-{}", std::process::id());
    let bundle = Bundle::create(directory.path(), &id, &root, SLEEP)?;
    let config = |rule: &str| {
        let (program, state) = (runtime.program(), runtime.root());
        format!(
            "[barrier]\nruntimes = [{program:?}]\n[proc]\nroots = [{state:?}]\n[filter]\nexclude = ['image:{rule}']"
        )
    };
    let any = Daemon::start(&config(".*"))?;
    let nothing = Daemon::start(&config("^$"))?;
    let container = runtime.create(&bundle, &id)?;
    container.start()?;
    assert!(any.find(&id).is_some());
    assert!(nothing.find(&id).is_none());
    let story = nothing.ask_json(&["explain", "--pid", &container.pid().to_string(), "-o", "json"])?;
    assert_eq!((&story["container"]["id"], &story["excluded"]), (&json!(id), &json!("exclude `image:^$`")));
    Ok(())
}

#[test]
fn bad_patterns_are_all_told_at_the_start_and_by_the_test() -> Result<()> {
    require!(requirement::root(), requirement::tracker());
    let tracker = requirement::tracker().map_err(anyhow::Error::msg)?;
    let directory = tempfile::tempdir().context("create a directory")?;
    let file = directory.path().join("bad.toml");
    fs::write(&file, "[filter]\ninclude = ['name:ok', 'name:a(b']\nexclude = ['image:[z-a]', 'pod-namespace:+']\n")?;
    let file = file.to_string_lossy().into_owned();
    let socket = directory.path().join("sock");
    for command in [&["run", "--config", &file][..], &["filter", "test", "-f", &file]] {
        let said = daemon::ask(&tracker, &socket, command)?;
        assert_eq!(said.code, 1, "{command:?}: {}", said.err);
        for bad in [
            "include, rule 2 `name:a(b`, column 7: unclosed group",
            "exclude, rule 1 `image:[z-a]`",
            "exclude, rule 2 `pod-namespace:+`",
        ] {
            assert!(said.err.contains(bad), "`{bad}` is not in: {}", said.err);
        }
    }
    Ok(())
}
