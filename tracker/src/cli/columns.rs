//! The columns of a table of containers: `ps`, `lookup`, `inspect -o table` and the live list show the same ones.

use std::net::SocketAddr;

use tracker::container::Kind;
use tracker::server::api::Container;

use super::output::{Cell, Column};

/// All columns, in the order of `-o wide`.
pub(crate) const CONTAINER: &[Column<Container>] = &[
    Column { name: "id", wide: false, cell: |c| Cell::text(&*c.id).shown_as(short(&c.id).to_owned()) },
    Column { name: "name", wide: false, cell: name },
    Column { name: "state", wide: false, cell: state },
    Column { name: "grade", wide: false, cell: |c| c.grade.map(|grade| grade.name()).into() },
    Column { name: "image", wide: false, cell: image },
    Column { name: "pod", wide: false, cell: pod },
    Column { name: "pid", wide: false, cell: |c| c.pid.into() },
    Column { name: "mntns", wide: false, cell: |c| c.mntns.into() },
    Column { name: "created", wide: false, cell: |c| c.created_at.map_or_else(Cell::absent, Cell::age) },
    Column { name: "started", wide: true, cell: |c| c.started_at.map_or_else(Cell::absent, Cell::age) },
    Column { name: "exited", wide: true, cell: |c| c.exited_at.map_or_else(Cell::absent, Cell::age) },
    Column { name: "kind", wide: true, cell: |c| Cell::text(c.kind.name()) },
    Column { name: "runtime", wide: true, cell: runtime },
    Column { name: "addresses", wide: true, cell: addresses },
    Column { name: "ports", wide: true, cell: ports },
    Column { name: "netns", wide: true, cell: |c| c.netns.into() },
    Column { name: "pidns", wide: true, cell: |c| c.pidns.into() },
    Column { name: "cgroup", wide: true, cell: |c| c.cgroup.id.map_or_else(Cell::absent, Cell::number) },
    Column {
        name: "cgroup-path",
        wide: true,
        cell: |c| c.cgroup.path.as_deref().or(c.cgroup.v1_path.as_deref()).into(),
    },
    Column { name: "parent", wide: true, cell: |c| c.parent.as_ref().map(|parent| &*parent.id).into() },
    Column { name: "node", wide: true, cell: |c| Cell::text(&*c.node) },
    Column { name: "full-id", wide: true, cell: |c| Cell::text(&*c.id) },
];

/// The first twelve digits of an id that is nothing but digits, as docker shows it; other ids are whole.
pub(crate) fn short(id: &str) -> &str {
    let digits = id.len() >= 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    if digits { &id[..12] } else { id }
}

/// An image's name without what everybody leaves out when they type it.
pub(crate) fn familiar(name: &str) -> &str {
    name.strip_prefix("docker.io/").map_or(name, |name| name.strip_prefix("library/").unwrap_or(name))
}

/// A sandbox has no name of its own, and stands among the containers of its pod.
fn name(container: &Container) -> Cell {
    match (&container.name, container.kind) {
        (None, Kind::Sandbox) => Cell::absent().shown_as("(sandbox)".to_owned()),
        (name, _) => name.as_deref().into(),
    }
}

fn state(container: &Container) -> Cell {
    let state = container.state.name();
    match container.exit {
        Some(exit) if container.state.is_over() => {
            let killed = if exit.oom == Some(true) { ", out of memory" } else { "" };
            Cell::text(format!("{state} ({}{killed})", exit.code))
        }
        _ => Cell::text(state),
    }
}

fn image(container: &Container) -> Cell {
    let Some(image) = &container.image else { return Cell::absent() };
    match (&image.name, &image.id) {
        (Some(name), _) => Cell::text(&**name).shown_as(familiar(name).to_owned()),
        (None, Some(id)) => {
            let digits = id.split_once(':').map_or(&**id, |(_, digits)| digits);
            Cell::text(&**id).shown_as(short(digits).to_owned())
        }
        (None, None) => Cell::absent(),
    }
}

fn pod(container: &Container) -> Cell {
    let Some(pod) = &container.pod else { return Cell::absent() };
    match (&pod.namespace, &pod.name) {
        (Some(namespace), Some(name)) => Cell::text(format!("{namespace}/{name}")),
        (_, name) => name.as_deref().into(),
    }
}

fn addresses(container: &Container) -> Cell {
    let addresses = container.details.addresses.iter().flat_map(|all| all.iter());
    let addresses: Vec<String> = addresses.map(|address| address.ip.to_string()).collect();
    Cell::text(addresses.join(","))
}

/// As docker shows them: `127.0.0.1:8080->80/tcp`, and `80/tcp` for what is only exposed.
fn ports(container: &Container) -> Cell {
    let ports = container.details.ports.iter().flat_map(|all| all.iter());
    let ports: Vec<String> = ports
        .map(|port| {
            let inside = format!("{}/{}", port.container, port.protocol);
            match (port.host, port.host_ip) {
                (Some(host), Some(ip)) => format!("{}->{inside}", SocketAddr::new(ip, host)),
                (Some(host), None) => format!("{host}->{inside}"),
                (None, _) => inside,
            }
        })
        .collect();
    Cell::text(ports.join(","))
}

fn runtime(container: &Container) -> Cell {
    let runtime = &container.runtime;
    let parts: Vec<&str> = [&runtime.name, &runtime.namespace].into_iter().flatten().map(|part| &**part).collect();
    if parts.is_empty() { runtime.oci.as_deref().into() } else { Cell::text(parts.join("/")) }
}

#[cfg(test)]
mod tests {
    use super::short;

    #[test]
    fn only_ids_of_digits_are_shortened() {
        let digits = "0123456789abcdef".repeat(4);
        assert_eq!(short(&digits), "0123456789ab");
        for whole in ["c1", "web-with-a-long-name-that-somebody-chose", "mntns-123456789012"] {
            assert_eq!(short(whole), whole);
        }
    }
}
