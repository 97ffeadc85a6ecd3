//! What containerd's CRI plugin alone can tell of real pods, there before the tracker or new: field by field, through
//! restarts and ends, with the daemon killed in between.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tracker_tests::bundle::{Bundle, RootFs};
use tracker_tests::containerd::{Containerd, IMAGE};
use tracker_tests::daemon::Daemon;
use tracker_tests::kubelet::{CRUN, ContainerOptions, Kubelet, Network, PodOptions};
use tracker_tests::process;
use tracker_tests::runc::{Kind, Runtime};
use tracker_tests::wait::eventually;
use tracker_tests::{kernel, require, requirement};

const SLEEP: &[&str] = &["/bin/sleep", "1000"];

/// A pod's name that no test beside this one has: the kernel shows them all to every tracker.
fn unique(name: &str) -> String {
    format!("{name}-{}", std::process::id())
}

macro_rules! require_pods {
    () => {
        require!(requirement::root(), requirement::tracker(), kernel::btf());
        require!(requirement::program("containerd"), requirement::program("ctr"), requirement::program("runc"));
        require!(requirement::program("busybox"));
    };
}

/// A tracker that knows this containerd, and looks at lists seldom: what is new has to be found by hints.
fn track(containerd: &Containerd) -> Result<Daemon> {
    track_with(containerd, "")
}

/// The same with more in its configuration.
fn track_with(containerd: &Containerd, more: &str) -> Result<Daemon> {
    Daemon::start(&format!(
        "node = 'here'\n[barrier]\nruntimes = [{:?}]\n[containerd]\nsockets = [{:?}]\n[cri]\npoll-interval-ms = 600000\n{more}",
        containerd.runtime().program(),
        containerd.socket()
    ))
}

/// What is known of a container when the CRI has spoken.
#[track_caller]
fn told(daemon: &Daemon, id: &str, state: &str) -> Value {
    eventually(&format!("the CRI has told of {id}, which is {state}"), || {
        daemon.in_state(id, state).filter(|known| {
            known["awaiting"] == json!([]) && known["restart_count"].is_u64() | (known["kind"] == "sandbox")
        })
    })
}

/// The ids of containers in an answer, sorted.
fn ids(answer: &Value) -> Vec<&str> {
    let containers = answer.as_array().or_else(|| answer["containers"].as_array()).into_iter().flatten();
    let mut ids: Vec<_> = containers.filter_map(|container| container["id"].as_str()).collect();
    ids.sort_unstable();
    ids
}

fn sorted<const N: usize>(mut ids: [&str; N]) -> [&str; N] {
    ids.sort_unstable();
    ids
}

/// Whether a story has a line of this source that tells of this.
fn has_line(story: &str, source: &str, what: &str) -> bool {
    story.lines().any(|line| line.contains(&format!(" {source} ")) && line.contains(what))
}

/// Something, when the CRI source is in this condition.
fn condition(daemon: &Daemon, condition: &str) -> Option<()> {
    daemon.sources("cri").ok()?.iter().any(|line| line["condition"] == condition).then_some(())
}

/// Each field has its value.
#[track_caller]
fn check(known: &Value, fields: &[(&str, Value)]) {
    for (pointer, expected) in fields {
        // What is not known is absent.
        assert_eq!(known.pointer(pointer), Some(expected).filter(|value| !value.is_null()), "{pointer} of {known}");
    }
}

#[test]
fn each_field_of_a_pod_is_told_before_and_after() -> Result<()> {
    require_pods!();
    let containerd = Containerd::start_with_cri()?;
    let mut kubelet = Kubelet::connect(&containerd)?;
    let daemon = track(&containerd)?;
    let name = &*unique("cells");
    let options = PodOptions { port: Some((18080, 80)), privileged: true, ..PodOptions::default() };
    let pod = kubelet.run_pod_with("shop", name, options)?;
    let options = ContainerOptions {
        memory: 64 << 20,
        cpu_quota: 50_000,
        mount: Some(("/usr/share", "/given")),
        attempt: 3,
        privileged: true,
        env: &[],
    };
    let front = kubelet.start_with(&pod, "front", SLEEP, options)?;
    let back = kubelet.start(&pod, "back", 0, SLEEP)?;

    let of = json!({
        "name": name,
        "namespace": "shop",
        "uid": pod.uid,
        "sandbox_id": pod.id,
        "labels": { "app": name },
        "annotations": { "note/pod": name },
    });
    let runtime =
        json!({ "name": "containerd", "namespace": "k8s.io", "handler": "io.containerd.runc.v2", "oci": "runc" });
    let addresses = json!([{ "ip": "192.0.2.1" }]);
    let of_all = |id: &str, kind: &str, pid: u32| -> Result<Vec<(&str, Value)>> {
        Ok(vec![
            ("/id", json!(id)),
            ("/kind", json!(kind)),
            ("/pod", of.clone()),
            ("/runtime", runtime.clone()),
            ("/hostname", json!(name)),
            ("/addresses", addresses.clone()),
            ("/host_network", json!(false)),
            ("/pid", json!(pid)),
            ("/netns", json!(kernel::namespace(pid, "net")?)),
            ("/exit", Value::Null),
        ])
    };
    // A tracker that was there, and one that comes later.
    let later = track(&containerd)?;
    for daemon in [&daemon, &later] {
        let sandbox = told(daemon, &pod.id, "running");
        check(&sandbox, &of_all(&pod.id, "sandbox", kubelet.sandbox_pid(&pod)?)?);
        let port = json!({ "container": 80, "protocol": "tcp", "host": 18080 });
        check(&sandbox, &[("/name", Value::Null), ("/ports", json!([port])), ("/privileged", json!(true))]);
        check(&sandbox, &[("/labels/app", json!(name)), ("/annotations/note~1pod", json!(name))]);

        let container = told(daemon, &front, "running");
        check(&container, &of_all(&front, "container", kubelet.status(&front)?.pid)?);
        check(
            &container,
            &[
                ("/name", json!("front")),
                ("/image/name", json!(IMAGE)),
                ("/image/id", json!(kubelet.image_id(&front)?)),
                ("/labels/io.kubernetes.container.name", json!("front")),
                ("/annotations/note~1container", json!("front")),
                ("/restart_count", json!(3)),
                ("/privileged", json!(true)),
                ("/resources", json!({ "cpu_millis": 500, "memory": 64 << 20 })),
                ("/mounts", json!([{ "destination": "/given", "source": "/usr/share", "read_only": true }])),
                ("/ports", Value::Null),
            ],
        );
        assert!(container["image"]["digest"].as_str().is_some_and(|digest| digest.starts_with("sha256:")));
        for field in ["created_at", "started_at"] {
            assert!(container[field].is_string(), "{field} of {container}");
        }

        let other = told(daemon, &back, "running");
        check(&other, &of_all(&back, "container", kubelet.status(&back)?.pid)?);
        check(&other, &[("/privileged", json!(false)), ("/restart_count", json!(0)), ("/mounts", json!([]))]);
    }
    Ok(())
}

#[test]
fn pods_share_what_they_were_told_to_share() -> Result<()> {
    require_pods!();
    let containerd = Containerd::start_with_cri()?;
    let mut kubelet = Kubelet::connect(&containerd)?;
    let daemon = track(&containerd)?;
    let name = &*unique("share");
    let of_one = kubelet.run_pod_with("shop", name, PodOptions { shares_pids: true, ..PodOptions::default() })?;
    let pair = [kubelet.start(&of_one, "front", 0, SLEEP)?, kubelet.start(&of_one, "back", 0, SLEEP)?];
    let of_host = kubelet.run_pod("bank", name, Network::Host)?;
    let lone = kubelet.start(&of_host, "lone", 0, SLEEP)?;

    // One pid ns, and still each of them is itself.
    let sandbox = told(&daemon, &of_one.id, "running");
    for (id, called) in pair.iter().zip(["front", "back"]) {
        let known = told(&daemon, id, "running");
        check(&known, &[("/pidns", sandbox["pidns"].clone()), ("/name", json!(called)), ("/kind", json!("container"))]);
        check(&known, &[("/pid", json!(kubelet.status(id)?.pid)), ("/pod/sandbox_id", json!(of_one.id))]);
        assert_ne!(known["mntns"], sandbox["mntns"]);
    }
    // A sandbox names its containers, and its net ns is all of theirs.
    let inspected = daemon.ask_json(&["inspect", &of_one.id])?;
    let mut named: Vec<&str> =
        inspected["containers"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    named.sort_unstable();
    assert_eq!(named, sorted([&pair[0], &pair[1]]), "{inspected}");
    let answer = daemon.ask_json(&["lookup", "--netns", &sandbox["netns"].to_string(), "-o", "json"])?;
    assert_eq!(ids(&answer), sorted([&of_one.id, &pair[0], &pair[1]]), "{answer}");
    let first = answer["containers"].as_array().and_then(|all| all.iter().find(|one| one["kind"] == "sandbox"));
    assert_eq!(first.map(|one| &one["containers"]), Some(&inspected["containers"]), "{answer}");

    // Addresses of a host network are the host's, and not told.
    for id in [&of_host.id, &lone] {
        check(&told(&daemon, id, "running"), &[("/host_network", json!(true)), ("/addresses", Value::Null)]);
    }
    let shown = daemon.ask_json(&["ps", "-o", "json", "-l", &format!("pod={name}")])?;
    assert_eq!(ids(&shown), sorted([&pair[0], &pair[1], &lone]), "sandboxes are hidden: {shown}");
    let sandboxes = daemon.ask_json(&["ps", "--kind", "sandbox", "-o", "json", "-l", &format!("pod={name}")])?;
    assert_eq!(ids(&sandboxes), sorted([&of_one.id, &of_host.id]), "until they are asked for");
    Ok(())
}

#[test]
fn pods_of_another_handler_are_told_alike() -> Result<()> {
    require_pods!();
    require!(Kind::Crun.requirement());
    let containerd = Containerd::start_with_cri()?;
    let mut kubelet = Kubelet::connect(&containerd)?;
    let daemon = track(&containerd)?;
    let name = &*unique("crun");
    let pod = kubelet.run_pod_with("shop", name, PodOptions { handler: CRUN, ..PodOptions::default() })?;
    let id = kubelet.start(&pod, "main", 0, SLEEP)?;
    for (id, kind) in [(&pod.id, "sandbox"), (&id, "container")] {
        let known = told(&daemon, id, "running");
        check(
            &known,
            &[
                ("/kind", json!(kind)),
                ("/runtime/oci", json!("crun")),
                ("/runtime/handler", json!("io.containerd.runc.v2")),
                ("/pod/name", json!(name)),
                ("/addresses/0/ip", json!("192.0.2.1")),
            ],
        );
    }
    Ok(())
}

#[test]
fn ends_and_new_tries_in_a_pod_are_told() -> Result<()> {
    require_pods!();
    let containerd = Containerd::start_with_cri()?;
    let mut kubelet = Kubelet::connect(&containerd)?;
    let daemon = track(&containerd)?;
    let name = &*unique("tries");
    let pod = kubelet.run_pod("shop", name, Network::Pod)?;
    told(&daemon, &pod.id, "running");
    // The same container of the pod, three times.
    for (attempt, code) in [(0, 3), (1, 0), (2, 44)] {
        let id = kubelet.start(&pod, "main", attempt, &["/bin/sh", "-c", &format!("/bin/sleep 1; exit {code}")])?;
        let running = told(&daemon, &id, "running");
        check(&running, &[("/restart_count", json!(attempt)), ("/name", json!("main"))]);
        let over = eventually(&format!("the CRI has told of the end of {id}"), || {
            let told = daemon.ask(&["explain", &id]).ok().filter(|said| has_line(&said.out, "cri", "exited"))?;
            daemon.in_state(&id, "exited").filter(|_| told.code == 0)
        });
        check(&over, &[("/exit/code", json!(code)), ("/exit/signal", Value::Null), ("/restart_count", json!(attempt))]);
        assert_eq!(kubelet.status(&id)?.exit_code, code);
    }
    Ok(())
}

#[test]
fn a_life_is_followed_for_at_most_three_calls_that_of_its_sandbox_included() -> Result<()> {
    require_pods!();
    let containerd = Containerd::start_with_cri()?;
    let mut kubelet = Kubelet::connect(&containerd)?;
    let namespace = &*unique("lives");
    // Pods of other servers, which the kernel shows as well, are asked about, too: once each, in vain.
    let filter = format!("[filter]\nexclude = ['pod-namespace:.*']\ninclude = ['pod-namespace:^{namespace}$']\n");
    let daemon = track_with(&containerd, &filter)?;
    // The first one's images are new.
    let first = kubelet.run_pod(namespace, "first", Network::Host)?;
    let warm = kubelet.start(&first, "warm", 0, SLEEP)?;
    told(&daemon, &warm, "running");
    told(&daemon, &first.id, "running");
    let calls = || -> Result<[f64; 2]> {
        // A server that was behind what the kernel showed is asked once more.
        let of_cri = daemon.calls("cri", "status")? - daemon.metric("tracker_cri_behind_total")?;
        Ok([of_cri, daemon.calls("containerd", "container")? + daemon.calls("containerd", "image")?])
    };
    let says = |id: &str, what: &str| daemon.ask(&["explain", id]).is_ok_and(|story| has_line(&story.out, "cri", what));
    let before = calls()?;
    let lives = 4;
    for life in 0..lives {
        let pod = kubelet.run_pod(namespace, &format!("pod-{life}"), Network::Host)?;
        let id = kubelet.start(&pod, "only", 0, SLEEP)?;
        told(&daemon, &pod.id, "running");
        told(&daemon, &id, "running");
        if life % 2 == 0 {
            kubelet.stop(&id, 0)?;
            eventually("the CRI has told of its end", || says(&id, "exited").then_some(()));
        }
        kubelet.remove_pod(&pod)?;
        eventually("its sandbox is over", || daemon.in_state(&pod.id, "exited"));
        let is_told = || says(&id, "exited") || says(&id, "no longer knows it");
        eventually("the CRI has been asked about its end", || is_told().then_some(()));
    }
    let after = calls()?;
    let [of_cri, of_containerd] = [0, 1].map(|who| after[who] - before[who]);
    assert!(of_cri <= f64::from(3 * lives), "{of_cri} calls of the CRI for {lives} lives");
    assert!(of_cri >= f64::from(2 * lives), "{of_cri} calls are too few: nobody was asked");
    // One for the record of each of the two, whose images are known.
    assert!(of_containerd <= f64::from(2 * lives), "{of_containerd} calls of containerd for {lives} lives");
    Ok(())
}

#[test]
fn a_daemon_that_was_killed_tells_of_what_started_meanwhile() -> Result<()> {
    require_pods!();
    let mut containerd = Containerd::start_with_cri()?;
    let mut kubelet = Kubelet::connect(&containerd)?;
    // Without anybody's hints: what is not known is found by lists alone.
    let daemon = Daemon::start(&format!(
        "node = 'here'\n[barrier]\nenabled = false\n[containerd]\nenabled = false\n[cri]\nsockets = [{:?}]\n",
        containerd.socket()
    ))?;
    let name = &*unique("killed");
    let pod = kubelet.run_pod("shop", name, Network::Pod)?;
    let (stays, ends) = (kubelet.start(&pod, "stays", 0, SLEEP)?, kubelet.start(&pod, "ends", 0, SLEEP)?);
    let before = told(&daemon, &stays, "running");
    told(&daemon, &ends, "running");

    let ends_pid = kubelet.status(&ends)?.pid;
    containerd.kill();
    eventually("it is noticed", || condition(&daemon, "waiting"));
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(ends_pid.try_into()?), Signal::SIGKILL)?;
    eventually("the kernel has told", || daemon.in_state(&ends, "exited"));
    check(&daemon.find(&stays).context("it is known")?, &[("/state", json!("running")), ("/name", json!("stays"))]);

    containerd.restart()?;
    let mut kubelet = Kubelet::connect(&containerd)?;
    eventually("its CRI plugin has begun", || kubelet.status(&stays).ok());
    let comes = kubelet.start(&pod, "comes", 0, SLEEP)?;
    eventually("it is live again", || condition(&daemon, "live"));
    let known = told(&daemon, &comes, "running");
    check(&known, &[("/pod/uid", json!(pod.uid)), ("/pid", json!(kubelet.status(&comes)?.pid))]);
    let after = told(&daemon, &stays, "running");
    for field in ["pid", "mntns", "addresses", "restart_count", "image", "pod"] {
        assert_eq!(before[field], after[field], "{field}");
    }
    check(&told(&daemon, &ends, "exited"), &[("/exit/code", json!(137)), ("/exit/signal", json!(9))]);
    kubelet.remove(&ends)?;
    Ok(())
}

#[test]
fn a_containerd_without_the_cri_is_left_alone() -> Result<()> {
    require_pods!();
    let containerd = Containerd::start()?;
    let daemon = track(&containerd)?;
    let line = eventually("it is told", || daemon.sources("cri").ok()?.into_iter().next());
    assert_eq!(line["condition"], "refused", "{line}");
    assert!(line["detail"].as_str().is_some_and(|detail| detail.contains("CRI plugin")), "{line}");
    assert_eq!(daemon.request("GET", "/readyz", "")?.0, 200);
    assert!(!daemon.log().contains("WARN"), "{}", daemon.log());
    Ok(())
}

/// A container as CRI-O starts one: by a conmon with CRI-O's own arguments, and with its annotations in the bundle.
struct LikeCriO<'a> {
    runtime: &'a Runtime,
    id: String,
    pid: u32,
}

impl Drop for LikeCriO<'_> {
    fn drop(&mut self) {
        // Its conmon ends with it.
        let _ = process::run(self.runtime.command().args(["delete", "--force", &self.id]));
    }
}

/// A pod of the name `pod`, of which this is the sandbox, or another container of `sandbox`'s.
fn like_cri_o<'a>(
    runtime: &'a Runtime,
    root: &RootFs,
    directory: &Path,
    pod: &str,
    sandbox: Option<&LikeCriO<'_>>,
) -> Result<LikeCriO<'a>> {
    let (kind, name) = if sandbox.is_none() { ("sandbox", "POD") } else { ("container", "main") };
    let id = format!("{:0>64}", kind.bytes().chain(pod.bytes()).map(|byte| format!("{byte:x}")).collect::<String>());
    let in_kubelets_words = format!("k8s_{name}_{pod}_shop_cafe_0");
    let labels = json!({
        "io.kubernetes.container.name": name,
        "io.kubernetes.pod.name": pod,
        "io.kubernetes.pod.namespace": "shop",
        "io.kubernetes.pod.uid": "cafe",
        "app": "web",
    });
    let annotations = json!({
        "io.container.manager": "cri-o",
        "io.kubernetes.cri-o.ContainerID": id,
        "io.kubernetes.cri-o.ContainerName": in_kubelets_words,
        "io.kubernetes.cri-o.ContainerType": kind,
        "io.kubernetes.cri-o.SandboxID": sandbox.map_or(&id, |sandbox| &sandbox.id),
        "io.kubernetes.cri-o.SandboxName": format!("k8s_{pod}_shop_cafe_0"),
        "io.kubernetes.cri-o.ImageName": if sandbox.is_none() { "registry.example/pause:1" } else { IMAGE },
        "io.kubernetes.cri-o.Labels": labels.to_string(),
    });
    // There, podman's containers are as well.
    let place = format!("overlay-containers/{id}/userdata");
    let bundle = Bundle::create_with(directory, &place, root, SLEEP, |config| {
        config["annotations"] = annotations;
        config["linux"]["cgroupsPath"] = json!(format!("/{pod}/crio-{id}"));
        if let Some(LikeCriO { pid, .. }) = sandbox {
            for namespace in config["linux"]["namespaces"].as_array_mut().into_iter().flatten() {
                for (kind, file) in [("network", "net"), ("ipc", "ipc"), ("uts", "uts")] {
                    if namespace["type"] == kind {
                        namespace["path"] = json!(format!("/proc/{pid}/ns/{file}"));
                    }
                }
            }
            // The sandbox has named the host in their common UTS namespace.
            config.as_object_mut().map(|config| config.remove("hostname"));
        }
    })?;
    let conmon = requirement::program("conmon").map_err(anyhow::Error::msg)?;
    let file = |name: &str| bundle.path().join(name);
    let exits = directory.join("exits");
    fs::create_dir_all(&exits)?;
    let mut command = Command::new(conmon);
    command.arg("-b").arg(bundle.path()).args(["-c", &id]).arg("--exit-dir").arg(exits);
    command.arg("-l").arg(file("log")).args(["--log-level", "info", "-n", &in_kubelets_words]);
    command.arg("-P").arg(file("conmon-pidfile")).arg("-p").arg(file("pidfile"));
    command.arg("--persist-dir").arg(bundle.path()).arg("-r").arg(runtime.program());
    command.arg("--runtime-arg").arg(format!("--root={}", runtime.root().display()));
    command.arg("--socket-dir-path").arg(directory).args(["--syslog", "-u", &id]);
    let mut made = LikeCriO { runtime, id, pid: 0 };
    // It goes on in the background.
    process::run(&mut command)?;
    made.pid = eventually("its init exists", || fs::read_to_string(file("pidfile")).ok()?.trim().parse().ok());
    process::run(runtime.command().args(["start", &made.id]))?;
    Ok(made)
}

#[test]
fn pods_of_a_cri_o_are_told_by_their_bundles() -> Result<()> {
    require!(requirement::root(), requirement::tracker(), kernel::btf(), requirement::program("conmon"));
    require!(Kind::Runc.requirement(), Kind::Crun.requirement());
    for kind in [Kind::Runc, Kind::Crun] {
        let directory = tempfile::Builder::new().prefix("crio-").tempdir()?;
        let runtime = Runtime::copy(kind, directory.path())?;
        let root = RootFs::create(directory.path())?;
        let pod = &*unique(if kind == Kind::Runc { "crio-runc" } else { "crio-crun" });
        let track =
            |barrier: &str| Daemon::start(&format!("[proc]\nroots = [{:?}]\n[barrier]\n{barrier}\n", runtime.root()));
        let daemon = track(&format!("runtimes = [{:?}]", runtime.program()))?;
        let sandbox = like_cri_o(&runtime, &root, directory.path(), pod, None)?;
        let container = like_cri_o(&runtime, &root, directory.path(), pod, Some(&sandbox))?;
        let later = track("enabled = false")?;
        for (daemon, grade) in [(&daemon, "held"), (&later, "observed")] {
            let made = [(&sandbox, "sandbox", Value::Null, "registry.example/pause:1")];
            for (made, kind, called, image) in made.into_iter().chain([(&container, "container", json!("main"), IMAGE)])
            {
                let known = eventually(&format!("{kind} is known"), || {
                    daemon.in_state(&made.id, "running").filter(|known| known["bundle"].is_string())
                });
                check(
                    &known,
                    &[
                        ("/kind", json!(kind)),
                        ("/name", called),
                        ("/pid", json!(made.pid)),
                        ("/grade", json!(grade)),
                        ("/runtime/name", json!("cri-o")),
                        ("/runtime/oci", json!(runtime.program().file_name().and_then(|name| name.to_str()))),
                        ("/pod/name", json!(pod)),
                        ("/pod/namespace", json!("shop")),
                        ("/pod/uid", json!("cafe")),
                        ("/pod/sandbox_id", json!(sandbox.id)),
                        ("/image/name", json!(image)),
                        ("/labels/app", json!("web")),
                    ],
                );
                // Its conmon is no podman's, though its bundle lies where podman's do.
                let story = daemon.ask(&["explain", &made.id])?.out;
                assert!(!has_line(&story, "podman", ""), "{story}");
            }
            // Each names the other.
            let inspected = daemon.ask_json(&["inspect", &sandbox.id])?;
            assert_eq!(inspected["containers"], json!([container.id]), "{inspected}");
            let netns = kernel::namespace(sandbox.pid, "net")?.to_string();
            let answer = daemon.ask_json(&["lookup", "--netns", &netns, "-o", "json"])?;
            assert_eq!(ids(&answer), sorted([&sandbox.id, &container.id]), "{answer}");
            let shown = daemon.ask_json(&["ps", "-o", "json", "-l", &format!("pod={pod}")])?;
            assert_eq!(ids(&shown), [&*container.id], "a sandbox is hidden: {shown}");
        }
        drop((container, sandbox));
        kernel::remove_cgroup(pod);
    }
    Ok(())
}

#[test]
fn a_beginning_of_an_id_that_two_runtimes_have_is_ambiguous() -> Result<()> {
    require_pods!();
    let containerd = Containerd::start_with_cri()?;
    let mut kubelet = Kubelet::connect(&containerd)?;
    let daemon = track(&containerd)?;
    let pod = kubelet.run_pod("shop", &unique("twins"), Network::Pod)?;
    let id = kubelet.start(&pod, "main", 0, SLEEP)?;
    told(&daemon, &id, "running");
    // Another runtime's, with an id that begins alike, and one that is the same but in another place.
    let directory = tempfile::tempdir()?;
    let root = RootFs::create(directory.path())?;
    let bundle = Bundle::create(directory.path(), "bundle", &root, SLEEP)?;
    let twin = format!("{}-twin", &id[..12]);
    let other = containerd.runtime().create(&bundle, &twin)?;
    other.start()?;
    eventually("it is known", || daemon.in_state(&twin, "running"));

    let said = daemon.ask(&["inspect", &id[..12]])?;
    assert_eq!(said.code, 1, "{} {}", said.out, said.err);
    assert!(said.err.contains("could be 2 containers"), "{}", said.err);
    assert!(said.err.contains(&id) && said.err.contains(&twin), "{}", said.err);
    for whole in [&id, &twin] {
        assert_eq!(daemon.ask_json(&["inspect", whole])?["id"], whole.as_str());
    }
    Ok(())
}
