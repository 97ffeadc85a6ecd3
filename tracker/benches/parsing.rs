//! What is parsed while a start is held: the runtime's command line and the bundle's config. Each beside its baseline,
//! the least that anybody would do with the same bytes.

use std::ffi::OsString;

use divan::{Bencher, black_box};
use tracker::barrier::argv::{self, Dialect};
use tracker::enrich::{cgroup, oci};

#[global_allocator]
static ALLOCATIONS: divan::AllocProfiler = divan::AllocProfiler::system();

fn main() {
    divan::main();
}

/// A config as containerd writes it for a Kubernetes pod, with this many environment variables.
fn config(variables: usize) -> Vec<u8> {
    let environment: Vec<String> = (0..variables).map(|number| format!("VARIABLE_{number}=value {number}")).collect();
    serde_json::json!({
        "ociVersion": "1.0.2",
        "process": { "args": ["/bin/server", "--port", "8080"], "env": environment, "cwd": "/", "user": { "uid": 0, "gid": 0 } },
        "root": { "path": "rootfs" },
        "hostname": "web-7d4b9c-x2x4z",
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc" },
            { "destination": "/etc/hosts", "type": "bind", "source": "/var/lib/kubelet/pods/1/etc-hosts", "options": ["rbind"] },
        ],
        "annotations": {
            "io.kubernetes.cri.container-type": "container",
            "io.kubernetes.cri.container-name": "web",
            "io.kubernetes.cri.image-name": "registry.example/shop/web:1.2.3",
            "io.kubernetes.cri.sandbox-id": "9f6c3b1d0a0e4c52a3bb0f6f6f8f5b2c1d7e8a90b1c2d3e4f5a6b7c8d9e0f1a2",
            "io.kubernetes.cri.sandbox-name": "web-7d4b9c-x2x4z",
            "io.kubernetes.cri.sandbox-namespace": "shop",
            "io.kubernetes.cri.sandbox-uid": "1c0ae5b4-1111-2222-3333-444455556666",
        },
        "linux": {
            "cgroupsPath": "/kubepods/burstable/pod1c0ae5b4/9f6c3b1d",
            "namespaces": [{ "type": "pid" }, { "type": "mount" }, { "type": "network", "path": "/var/run/netns/cni-1" }],
        },
    })
    .to_string()
    .into_bytes()
}

#[divan::bench(args = [10, 1_000, 30_000])]
fn oci_config(bencher: Bencher<'_, '_>, variables: usize) {
    let bytes = config(variables);
    bencher.bench(|| oci::parse(black_box(&bytes)).is_ok());
}

#[divan::bench(args = [10, 1_000, 30_000])]
fn oci_config_baseline_any_json(bencher: Bencher<'_, '_>, variables: usize) {
    let bytes = config(variables);
    bencher.bench(|| serde_json::from_slice::<serde_json::Value>(black_box(&bytes)).is_ok());
}

fn command_line() -> Vec<OsString> {
    let line = "runc --root /run/containerd/runc/k8s.io --log /run/containerd/io.containerd.runtime.v2.task/k8s.io/web/log.json \
                --log-format json create --bundle /run/containerd/io.containerd.runtime.v2.task/k8s.io/web \
                --pid-file /run/containerd/io.containerd.runtime.v2.task/k8s.io/web/init.pid web";
    line.split_whitespace().map(OsString::from).collect()
}

#[divan::bench]
fn runc_command_line(bencher: Bencher<'_, '_>) {
    let words = command_line();
    bencher.bench(|| argv::parse(black_box(Dialect::Go), black_box(&words)).is_ok());
}

#[divan::bench]
fn runc_command_line_baseline_copy(bencher: Bencher<'_, '_>) {
    let words = command_line();
    bencher.bench(|| black_box(&words).clone());
}

#[divan::bench]
fn cgroup_file(bencher: Bencher<'_, '_>) {
    let text = b"9:name=systemd:/kubepods/pod1/web\n8:pids:/kubepods/pod1/web\n7:blkio:/kubepods/pod1/web\n\
        4:memory:/kubepods/pod1/web\n3:cpuset:/kubepods/pod1/web\n1:cpu,cpuacct:/kubepods/pod1/web\n0::/kubepods/pod1/web\n";
    bencher.bench(|| {
        black_box(cgroup::parse(black_box(text)));
    });
}
