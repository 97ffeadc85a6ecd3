//! What containerd's CRI plugin alone can tell of real pods, there before the tracker or new: field by field, through
//! restarts and ends, with the daemon killed in between.

use anyhow::Result;
use serde_json::{Value, json};
use tracker_tests::containerd::{Containerd, IMAGE};
use tracker_tests::daemon::Daemon;
use tracker_tests::kubelet::{ContainerOptions, Kubelet, PodOptions};
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
    Daemon::start(&format!(
        "node = 'here'\n[barrier]\nruntimes = [{:?}]\n[containerd]\nsockets = [{:?}]\n[cri]\npoll-interval-ms = 600000\n",
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

/// Each field has its value.
#[track_caller]
fn check(known: &Value, fields: &[(&str, Value)]) {
    for (pointer, expected) in fields {
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
    };
    let front = kubelet.start_with(&pod, "front", SLEEP, options)?;
    let back = kubelet.start(&pod, "back", 0, SLEEP)?;

    let of =
        json!({ "name": name, "namespace": "shop", "uid": pod.uid, "sandbox_id": pod.id, "labels": { "app": name } });
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
    // One status for each of them, and what lists cost: what it asks is not for every pod that starts.
    assert_eq!(later.metric("tracker_cri_calls_total")?, 3.0 + 2.0 + 1.0);
    Ok(())
}
