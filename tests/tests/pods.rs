//! Pods, made through containerd's CRI plugin as a kubelet makes them: known before they run, by pod and by number, and
//! followed to their end.

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tracker_tests::containerd::{Containerd, IMAGE};
use tracker_tests::daemon::Daemon;
use tracker_tests::kubelet::{ContainerOptions, Kubelet, Network, PodOptions};
use tracker_tests::wait::eventually;
use tracker_tests::{kernel, require, requirement};

const SLEEP: &[&str] = &["/bin/sleep", "1000"];
/// A process that ends with 7 when it is asked to end.
const POLITE: &[&str] = &["/bin/sh", "-c", "trap 'exit 7' TERM; /bin/sleep 1000 & wait"];

/// A pod's name that no test beside this one has: the kernel shows them all to every tracker.
fn unique(name: &str) -> String {
    format!("{name}-{}", std::process::id())
}

macro_rules! require_pods {
    () => {
        require!(requirement::root(), requirement::tracker(), kernel::btf(), kernel::permission_events());
        require!(requirement::program("containerd"), requirement::program("ctr"), requirement::program("runc"));
        require!(requirement::program("busybox"));
    };
}

/// A tracker that knows this containerd and its runtime, and need not be told of others.
fn track(containerd: &Containerd, more: &str) -> Result<Daemon> {
    Daemon::start(&format!(
        "node = 'here'\n[barrier]\nruntimes = [{:?}]\n[containerd]\nsockets = [{:?}]\n{more}",
        containerd.runtime().program(),
        containerd.socket()
    ))
}

/// What is known of a container when nothing more is to come: containerd has spoken, and so has, where the tracker came
/// later, who reads the runtime's state directory.
#[track_caller]
fn settled(daemon: &Daemon, id: &str, state: &str) -> Value {
    eventually(&format!("all is known of {id}, which is {state}"), || {
        let is_known = |known: &Value, field: &str| known.pointer(field).is_some_and(Value::is_string);
        daemon.in_state(id, state).filter(|known| {
            known["awaiting"] == json!([])
                && is_known(known, "/image/id")
                && is_known(known, "/bundle")
                && (is_known(known, "/cgroup/path") || is_known(known, "/cgroup/v1_path"))
        })
    })
}

/// What `lookup` answers about a pod.
fn lookup(daemon: &Daemon, pod: &str) -> Result<Value> {
    daemon.ask_json(&["lookup", "--pod", pod, "-o", "json"])
}

/// The ids of containers in an answer, sorted.
fn ids(answer: &Value) -> Vec<&str> {
    let containers = answer.as_array().or_else(|| answer["containers"].as_array()).into_iter().flatten();
    let mut ids: Vec<_> = containers.filter_map(|container| container["id"].as_str()).collect();
    ids.sort_unstable();
    ids
}

/// Whether a process has a handler for a signal.
fn catches(pid: u32, signal: Signal) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap_or_default();
    u64::from_str_radix(mask.trim(), 16).is_ok_and(|mask| mask >> (signal as i32 - 1) & 1 == 1)
}

fn sorted<const N: usize>(mut ids: [&str; N]) -> [&str; N] {
    ids.sort_unstable();
    ids
}

#[test]
fn a_pod_is_held_told_as_it_was_made_and_found_again_by_a_later_tracker() -> Result<()> {
    require_pods!();
    let containerd = Containerd::start_with_cri()?;
    let mut kubelet = Kubelet::connect(&containerd)?;
    let daemon = track(&containerd, "")?;
    let name = &*unique("told");
    let pod = kubelet.run_pod("shop", name, Network::Host)?;
    let (front, back) = (kubelet.start(&pod, "front", 0, SLEEP)?, kubelet.start(&pod, "back", 0, SLEEP)?);

    let made = [
        (&pod.id, "sandbox", None, kubelet.sandbox_pid(&pod)?),
        (&front, "container", Some("front"), kubelet.status(&front)?.pid),
        (&back, "container", Some("back"), kubelet.status(&back)?.pid),
    ];
    for (id, kind, called, pid) in &made {
        // Their starts were held until they were known with all that their bundles say: nobody has to wait.
        let known = daemon.find(id).with_context(|| format!("find {id}; the log:\n{}", daemon.log()))?;
        assert_eq!(known["grade"], "held", "{known}; the log:\n{}", daemon.log());
        assert_eq!((known["kind"].as_str(), known["name"].as_str()), (Some(*kind), *called), "{known}");
        let of = json!({ "name": name, "namespace": "shop", "uid": pod.uid, "sandbox_id": pod.id });
        for (key, value) in of.as_object().context("an object")? {
            assert_eq!(known["pod"][key], *value, "{key} of {known}");
        }
        assert_eq!(known["runtime"]["namespace"], "k8s.io", "{known}");
        assert_eq!(known["annotations"]["note/pod"], name, "{known}");
        assert_eq!(known["host_network"], true, "{known}");
        assert_eq!(known["pid"], *pid, "{known}");
        for (field, namespace) in [("mntns", "mnt"), ("netns", "net"), ("pidns", "pid")] {
            assert_eq!(known[field], kernel::namespace(*pid, namespace)?, "{field} of {known}");
        }
        assert!(known["cgroup"]["v1_path"].as_str().or(known["cgroup"]["path"].as_str()).is_some_and(|path| {
            path.starts_with(&format!("/{}/pod{}/", containerd.cgroup(), pod.uid)) && path.ends_with(id.as_str())
        }));
    }

    let later = track(&containerd, "")?;
    for (id, kind, ..) in &made {
        let (mut known, mut found) = (settled(&daemon, id, "running"), settled(&later, id, "running"));
        if *kind == "container" {
            assert_eq!(known["image"]["name"], IMAGE, "{known}");
            assert_eq!(known["annotations"]["note/container"], known["name"], "{known}");
            assert_eq!(known["pod"]["labels"], json!({ "app": name }), "its sandbox knows them: {known}");
            assert_eq!(known["labels"]["io.kubernetes.container.name"], known["name"], "{known}");
        } else {
            assert_eq!(known["labels"]["app"], name, "{known}");
        }
        assert_eq!(found["grade"], "observed", "{found}");
        // What only those can tell who were there: how early, in which order, to the nanosecond.
        for who in [&mut known, &mut found] {
            let fields = who.as_object_mut().context("an object")?;
            for field in ["grade", "sequence", "created_at", "started_at"] {
                fields.remove(field);
            }
        }
        assert_eq!(known, found);
    }
    Ok(())
}

#[test]
fn a_pod_is_looked_up_by_its_name_and_selected() -> Result<()> {
    require_pods!();
    let containerd = Containerd::start_with_cri()?;
    let mut kubelet = Kubelet::connect(&containerd)?;
    let daemon = track(&containerd, "")?;
    // One name, two pod namespaces; the same container names in both.
    let name = &*unique("found");
    let (shop, bank) = (kubelet.run_pod("shop", name, Network::Host)?, kubelet.run_pod("bank", name, Network::Host)?);
    let (sold, paid) = (kubelet.start(&shop, "main", 0, SLEEP)?, kubelet.start(&bank, "main", 0, SLEEP)?);

    for (namespace, of, container) in [("shop", &shop, &sold), ("bank", &bank, &paid)] {
        let pod = &*format!("{namespace}/{name}");
        let answer = lookup(&daemon, pod)?;
        assert_eq!(ids(&answer), sorted([&of.id, container]), "{answer}");
        assert_eq!(answer["pod"]["uid"], of.uid.as_str(), "{answer}");
        let pid = kubelet.status(container)?.pid;
        let main = answer["containers"].as_array().and_then(|all| all.iter().find(|one| one["id"] == **container));
        let main = main.with_context(|| format!("the container in {answer}"))?;
        assert_eq!((&main["pid"], &main["mntns"]), (&json!(pid), &json!(kernel::namespace(pid, "mnt")?)), "{main}");
        // And back: each number names the pod.
        for (option, number) in [("--pid", pid), ("--mntns", kernel::namespace(pid, "mnt")?)] {
            let answer = daemon.ask_json(&["lookup", option, &number.to_string(), "-o", "json"])?;
            assert_eq!((ids(&answer), &answer["pod"]["uid"]), (vec![container.as_str()], &json!(of.uid)), "{answer}");
        }
        let table = daemon.ask(&["lookup", "--pod", pod])?;
        assert!(table.code == 0 && table.out.contains(pod) && table.out.contains(&pid.to_string()), "{}", table.out);
    }
    // Both are in the host's net ns, which says nothing about either.
    let netns = kernel::namespace(kubelet.status(&sold)?.pid, "net")?.to_string();
    assert_eq!(daemon.ask_json(&["lookup", "--netns", &netns, "-o", "json"])?["answer"], "host");

    // Labels are containerd's own word, which follows.
    for id in [&shop.id, &sold, &paid] {
        settled(&daemon, id, "running");
    }
    for (selector, expected) in [
        (format!("pod={name},pod-namespace=shop,kind=container"), &[&*sold][..]),
        (format!("pod={name},pod-namespace=shop"), &sorted([&shop.id, &sold])),
        (format!("pod={name},pod-namespace in (shop,bank),name=main"), &sorted([&sold, &paid])),
        (format!("pod=*{name},pod-namespace!=shop,label:io.kubernetes.container.name"), &[&*paid]),
        (format!("pod-label:app={name},pod-namespace=shop"), &sorted([&shop.id, &sold])),
        (format!("pod={name},pod-namespace=other"), &[]),
    ] {
        let answer = daemon.ask_json(&["ps", "--all", "-o", "json", "-l", &selector])?;
        assert_eq!(ids(&answer), expected, "{selector}");
    }
    let shown = daemon.ask_json(&["ps", "-o", "json", "-l", &format!("pod={name},pod-namespace=shop")])?;
    assert_eq!(ids(&shown), [&*sold], "sandboxes show when they are asked for");

    let unknown = daemon.ask(&["lookup", "--pod", &format!("other/{name}")])?;
    assert_eq!((unknown.code, unknown.out.as_str()), (3, ""), "{}", unknown.err);
    let no_pod = daemon.ask(&["lookup", "--pod", "web"])?;
    assert_eq!(no_pod.code, 2, "{}", no_pod.err);
    assert!(no_pod.err.contains("default/web"), "the remedy has an example: {}", no_pod.err);
    Ok(())
}

#[test]
fn a_pod_with_a_net_ns_of_its_own_is_all_that_the_net_ns_names() -> Result<()> {
    require_pods!();
    let containerd = Containerd::start_with_cri()?;
    let mut kubelet = Kubelet::connect(&containerd)?;
    let daemon = track(&containerd, "")?;
    let name = &*unique("own");
    let pod = kubelet.run_pod("shop", name, Network::Pod)?;
    let containers = [kubelet.start(&pod, "front", 0, SLEEP)?, kubelet.start(&pod, "back", 0, SLEEP)?];

    let netns = kernel::namespace(kubelet.sandbox_pid(&pod)?, "net")?;
    assert_ne!(netns, kernel::namespace(std::process::id(), "net")?);
    let answer = daemon.ask_json(&["lookup", "--netns", &netns.to_string(), "-o", "json"])?;
    assert_eq!(ids(&answer), sorted([&pod.id, &containers[0], &containers[1]]), "{answer}");
    assert_eq!((&answer["pod"]["namespace"], &answer["pod"]["name"]), (&json!("shop"), &json!(name)), "{answer}");
    for container in answer["containers"].as_array().into_iter().flatten() {
        assert_eq!(container["host_network"], false, "{container}");
        assert_eq!(container["grade"], "held", "{container}; the log:\n{}", daemon.log());
    }
    Ok(())
}

#[test]
fn of_a_pod_s_environment_only_what_is_allowed_is_told_by_whoever_is_asked() -> Result<()> {
    require_pods!();
    let containerd = Containerd::start_with_cri()?;
    let mut kubelet = Kubelet::connect(&containerd)?;
    let socket = containerd.socket();
    // Each of the two that know the environment, alone.
    let by_containerd = format!("[containerd]\nsockets = [{socket:?}]\n[cri]\nenabled = false\n");
    let by_cri = format!("[containerd]\nenabled = false\n[cri]\nsockets = [{socket:?}]\n");
    let daemons = [&by_containerd, &by_cri]
        .map(|config| Daemon::start(&format!("env-allow = ['STAGE', 'ABSENT']\n[barrier]\nenabled = false\n{config}")));
    let [of_containerd, of_cri] = daemons;
    let silent = Daemon::start(&format!("[barrier]\nenabled = false\n{by_containerd}"))?;
    let pod = kubelet.run_pod_with("shop", &unique("env"), PodOptions::default())?;
    let options = ContainerOptions { env: &[("STAGE", "a=b"), ("TOKEN", "secret")], ..Default::default() };
    let id = kubelet.start_with(&pod, "main", SLEEP, options)?;
    for (who, daemon) in [("containerd", &of_containerd?), ("cri", &of_cri?)] {
        let told = eventually(&format!("{who} tells its environment"), || {
            daemon.in_state(&id, "running").filter(|known| known["env"].is_object())
        });
        assert_eq!(told["env"], json!({ "STAGE": "a=b" }), "{who}");
        let story = daemon.ask_json(&["explain", &id, "-o", "json"])?;
        assert!(!story.to_string().contains("secret"), "{story}");
    }
    let known = eventually("containerd tells of it", || {
        silent
            .in_state(&id, "running")
            .filter(|known| known["image"]["name"] == IMAGE && known["awaiting"] == json!([]))
    });
    assert_eq!(known["env"], Value::Null, "nothing is allowed");
    Ok(())
}

#[test]
fn restarts_ends_and_removal_in_a_pod_are_followed() -> Result<()> {
    require_pods!();
    let containerd = Containerd::start_with_cri()?;
    let mut kubelet = Kubelet::connect(&containerd)?;
    let (daemon, forgetful) = (track(&containerd, "")?, track(&containerd, "[collection]\nlinger-ms = 1\n")?);
    let name = &*unique("ends");
    let of = &*format!("shop/{name}");
    let pod = kubelet.run_pod("shop", name, Network::Host)?;
    let (polite, stubborn) = (kubelet.start(&pod, "polite", 0, POLITE)?, kubelet.start(&pod, "stubborn", 0, SLEEP)?);

    let pid = kubelet.status(&polite)?.pid;
    eventually("it has set its trap", || catches(pid, Signal::SIGTERM).then_some(()));
    kubelet.stop(&polite, 20)?;
    kubelet.stop(&stubborn, 0)?;
    for (id, signal) in [(&polite, None), (&stubborn, Some(9))] {
        let over = settled(&daemon, id, "exited");
        let truth = kubelet.status(id)?;
        assert_eq!(over["exit"]["code"], truth.exit_code, "{over}");
        assert_eq!(over["exit"]["signal"].as_u64(), signal, "{over}");
        assert!(over["exited_at"].is_string() && over["pid"].is_u64() && over["mntns"].is_u64(), "{over}");
    }
    assert_eq!(kubelet.status(&polite)?.exit_code, 7);
    assert_eq!(kubelet.status(&stubborn)?.exit_code, 137);
    assert_eq!(ids(&lookup(&daemon, of)?), [&*pod.id], "what has ended is not there now");

    // A restart in a pod is another container of the same name.
    let again = kubelet.start(&pod, "polite", 1, POLITE)?;
    assert_ne!(again, polite);
    assert_eq!(kubelet.status(&again)?.attempt, 1);
    let known = daemon.find(&again).context("it is known")?;
    assert_eq!((&known["name"], &known["grade"]), (&json!("polite"), &json!("held")), "{known}");
    for daemon in [&daemon, &forgetful] {
        assert_eq!(ids(&lookup(daemon, of)?), sorted([&pod.id, &again]));
    }
    let at = settled(&daemon, &polite, "exited")["started_at"].as_str().context("its start")?.to_owned();
    let then = daemon.ask_json(&["lookup", "--pod", of, "--at", &at, "-o", "json"])?;
    assert!(ids(&then).contains(&&*polite) && !ids(&then).contains(&&*again), "{then}");

    kubelet.remove(&polite)?;
    kubelet.remove_pod(&pod)?;
    for id in [&pod.id, &again] {
        settled(&daemon, id, "exited");
    }
    let gone = daemon.ask(&["lookup", "--pod", of])?;
    assert_eq!((gone.code, gone.out.as_str()), (3, ""), "{}", gone.err);
    let selector = format!("pod={name}");
    eventually("nothing is left of it", || {
        let left = forgetful.ask_json(&["ps", "--all", "-o", "json", "-l", &selector]).ok()?;
        (left == json!([])).then_some(())
    });
    Ok(())
}
