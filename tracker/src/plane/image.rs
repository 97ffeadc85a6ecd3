//! What the plane says of a container: its row, for the file and for BPF programs.

use tracker_common::plane::{BpfRow, Row, TEXTS};

use super::table::Image;
use crate::collection::view;
use crate::container::{Container, Exit, Grade, Kind, State};

/// Of a row of the collection; without texts where it is excluded.
pub(super) fn of(row: &view::Row) -> Image<'_> {
    let container = &*row.container;
    let texts = if row.excluded.is_some() { [""; TEXTS] } else { texts(container) };
    Image { row: fields(row), texts }
}

/// In the order of the plane: id, name, pod, pod namespace, image, runtime.
fn texts(container: &Container) -> [&str; TEXTS] {
    let pod = container.pod.as_ref();
    [
        &container.id,
        container.name.as_deref().unwrap_or_default(),
        pod.and_then(|pod| pod.name.as_deref()).unwrap_or_default(),
        pod.and_then(|pod| pod.namespace.as_deref()).unwrap_or_default(),
        container.image.as_ref().and_then(|image| image.name.as_deref()).unwrap_or_default(),
        container.runtime.name.as_deref().unwrap_or_default(),
    ]
}

fn fields(row: &view::Row) -> Row {
    let container = &*row.container;
    let excluded = if row.excluded.is_some() { Row::EXCLUDED } else { 0 };
    let exit_known = if container.exit.is_some() { Row::EXIT_KNOWN } else { 0 };
    Row {
        flags: Row::IN_USE | excluded | exit_known,
        mntns: container.namespaces.mnt,
        netns: container.namespaces.net,
        pidns: container.namespaces.pid,
        pid: container.pid().unwrap_or(0),
        opened: row.here.opened.0,
        closed: row.here.closed.0,
        generation: container.generation.unwrap_or(0),
        kind: kind(container.kind),
        state: state(container.state),
        grade: container.grade.map_or(0, grade),
        exit_code: container.exit.map_or(0, |Exit { code, .. }| code),
        init_opened: row.init.opened.0,
        init_closed: row.init.closed.0,
        cgroup: container.cgroup.id.unwrap_or(0),
        start_ticks: container.task.map_or(0, |task| task.start_ticks),
        born: container.created_at.map_or(0, |at| at.0),
        started: container.started_at.map_or(0, |at| at.0),
        died: container.exited_at.map_or(0, |at| at.0),
        sequence: container.sequence,
        instance: container.instance,
        ..Row::FREE
    }
}

/// The same for BPF programs: texts cut at the size of their fields.
pub(super) fn for_bpf(image: &Image<'_>) -> BpfRow {
    let [id, name, pod, pod_namespace, ..] = image.texts;
    let mut was_cut = false;
    let mut fixed = |text: &str| {
        let mut bytes = [0; 64];
        let len = (0..=text.len().min(bytes.len())).rev().find(|len| text.is_char_boundary(*len)).unwrap_or(0);
        bytes[..len].copy_from_slice(&text.as_bytes()[..len]);
        was_cut |= len < text.len();
        (bytes, len as u8)
    };
    let ((id, id_len), (name, name_len)) = (fixed(id), fixed(name));
    let ((pod, pod_len), (pod_namespace, pod_namespace_len)) = (fixed(pod), fixed(pod_namespace));
    let Row { flags, generation, opened, cgroup, kind, state, grade, .. } = image.row;
    BpfRow {
        lock: 0,
        generation: if generation == 0 { opened } else { generation },
        cgroup,
        flags: flags | if was_cut { Row::TRUNCATED } else { 0 },
        uses: 0,
        kind,
        state,
        grade,
        id_len,
        name_len,
        pod_len,
        pod_namespace_len,
        reserved: 0,
        id,
        name,
        pod,
        pod_namespace,
    }
}

/// As in [`tracker_common::plane::KINDS`].
pub(super) fn kind(kind: Kind) -> u8 {
    match kind {
        Kind::Container => 1,
        Kind::Sandbox => 2,
        Kind::Unmanaged => 3,
        Kind::SandboxedProcess => 4,
    }
}

/// As in [`tracker_common::plane::STATES`].
pub(super) fn state(state: State) -> u8 {
    match state {
        State::Provisional => 1,
        State::Created => 2,
        State::Running => 3,
        State::Paused => 4,
        State::Exited => 5,
        State::Aborted => 6,
    }
}

/// As in [`tracker_common::plane::GRADES`].
fn grade(grade: Grade) -> u8 {
    match grade {
        Grade::Held => 1,
        Grade::LetGo => 2,
        Grade::FirstExec => 3,
        Grade::Observed => 4,
    }
}

#[cfg(test)]
mod tests {
    use tracker_common::plane::{GRADES, KINDS, STATES};

    use super::*;

    #[test]
    fn numbers_and_names_are_those_of_the_plane() {
        for value in [Kind::Container, Kind::Sandbox, Kind::Unmanaged, Kind::SandboxedProcess] {
            assert_eq!(KINDS[usize::from(kind(value)) - 1], value.name());
        }
        for value in [State::Provisional, State::Created, State::Running, State::Paused, State::Exited, State::Aborted]
        {
            assert_eq!(STATES[usize::from(state(value)) - 1], value.name());
        }
        for value in [Grade::Held, Grade::LetGo, Grade::FirstExec, Grade::Observed] {
            assert_eq!(GRADES[usize::from(grade(value)) - 1], value.name());
        }
    }
}
