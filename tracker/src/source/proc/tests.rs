//! Real processes, real directories; what stands for a container is a child of this test with a state file that
//! names it. Containers of real runtimes are in the privileged tests.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::{Child, Command};

use nix::sys::stat::Mode;
use nix::unistd::{Uid, mkfifo};
use serde_json::json;

use super::*;
use crate::collection::door::Delivery;
use crate::container::{ContainerKey, Domain, State};
use crate::fact::Statement;
use crate::source::task::Task;

/// A process, a bundle and a root directory of an OCI runtime that knows both.
struct Lab {
    temp: tempfile::TempDir,
    child: Child,
    birth: Birth,
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Lab {
    fn new() -> Self {
        let temp = tempfile::tempdir().unwrap();
        let child = Command::new("sleep").arg("60").spawn().unwrap();
        let birth = Task::open(child.id()).unwrap().view().unwrap().birth(true);
        for dir in ["root/web", "bundle"] {
            fs::create_dir_all(temp.path().join(dir)).unwrap();
        }
        fs::set_permissions(temp.path().join("root"), fs::Permissions::from_mode(0o711)).unwrap();
        let config = json!({"annotations": {"io.kubernetes.container.name": "nginx"}, "linux": {}});
        fs::write(temp.path().join("bundle/config.json"), config.to_string()).unwrap();
        Self { temp, child, birth }
    }

    fn root(&self) -> PathBuf {
        self.temp.path().join("root")
    }

    fn config(&self) -> Config {
        Config { roots: vec![self.root()], usual_roots: false }
    }

    fn write_state(&self, start_ticks: u64) {
        let bundle = format!("bundle={}", self.temp.path().join("bundle").display());
        let state = json!({"init_process_pid": self.birth.task.pid, "init_process_start": start_ticks,
            "config": {"labels": [bundle]}});
        fs::write(self.root().join("web/state.json"), state.to_string()).unwrap();
    }

    fn look(&self) -> Found {
        self.look_with(&mut Finder::new(&self.config(), Arc::default()))
    }

    fn look_with(&self, finder: &mut Finder) -> Found {
        finder.look(&[self.birth]).pop().unwrap()
    }

    #[track_caller]
    fn find(&self) -> (ContainerKey, Statement) {
        match self.look() {
            Found::Container { key, statement } => (key, *statement),
            other => panic!("{other:?}"),
        }
    }

    #[track_caller]
    fn find_nothing(&self) {
        assert!(matches!(self.look(), Found::Nothing(_)));
    }
}

fn own_domain() -> Domain {
    let uid = Uid::current();
    if uid.is_root() { Domain::Host } else { Domain::User(uid.as_raw()) }
}

#[test]
fn a_container_is_found_by_its_init_process_and_described_by_its_bundle() {
    let lab = Lab::new();
    lab.write_state(lab.birth.task.start_ticks);
    let (key, statement) = lab.find();
    assert_eq!(key.domain, own_domain());
    assert_eq!(key.to_string(), format!("oci{}/web", lab.root().display()));
    assert_eq!(statement.task, Some(lab.birth.task));
    assert_eq!(statement.state, Some(State::Running));
    assert_eq!(statement.namespaces, Some(lab.birth.namespaces));
    assert_eq!(statement.runtime.unwrap().oci.as_deref(), Some("runc"));
    if key.domain == Domain::Host {
        assert_eq!(statement.name.as_deref(), Some("nginx"));
        assert!(statement.missing.is_empty());
    } else {
        assert_eq!(statement.missing.len(), 1);
    }

    mkfifo(&lab.root().join("web/exec.fifo"), Mode::S_IRWXU).unwrap();
    assert_eq!(lab.find().1.state, Some(State::Created));
}

#[test]
fn a_container_whose_bundle_is_unreadable_is_found_with_the_reason() {
    let lab = Lab::new();
    lab.write_state(lab.birth.task.start_ticks);
    fs::write(lab.temp.path().join("bundle/config.json"), "{").unwrap();
    let (_, statement) = lab.find();
    assert_eq!(statement.missing.len(), 1);
    fs::remove_file(lab.temp.path().join("bundle/config.json")).unwrap();
    assert_eq!(lab.find().1.missing.len(), 1);
}

#[test]
fn a_state_file_of_another_process_with_the_same_pid_is_not_believed() {
    let lab = Lab::new();
    lab.write_state(lab.birth.task.start_ticks + 1);
    lab.find_nothing();
}

#[test]
fn a_process_that_has_gone_is_not_looked_for() {
    let mut lab = Lab::new();
    lab.write_state(lab.birth.task.start_ticks);
    lab.child.kill().unwrap();
    lab.child.wait().unwrap();
    assert!(matches!(lab.look(), Found::Gone));
}

#[test]
fn a_directory_that_others_can_write_to_speaks_for_nobody() {
    let lab = Lab::new();
    lab.write_state(lab.birth.task.start_ticks);
    fs::set_permissions(lab.root(), fs::Permissions::from_mode(0o777)).unwrap();
    lab.find_nothing();
}

#[test]
fn links_and_fifos_are_neither_followed_nor_waited_for() {
    let lab = Lab::new();
    lab.write_state(lab.birth.task.start_ticks);
    let state = lab.root().join("web/state.json");
    fs::rename(&state, lab.temp.path().join("elsewhere")).unwrap();
    symlink(lab.temp.path().join("elsewhere"), &state).unwrap();
    lab.find_nothing();
    fs::remove_file(&state).unwrap();
    mkfifo(&state, Mode::S_IRWXU).unwrap();
    lab.find_nothing();
}

#[test]
fn what_is_remembered_is_read_again_when_it_changes() {
    let lab = Lab::new();
    let mut finder = Finder::new(&lab.config(), Arc::default());
    fs::write(lab.root().join("web/state.json"), "{}").unwrap();
    assert!(matches!(lab.look_with(&mut finder), Found::Nothing(_)));
    lab.write_state(lab.birth.task.start_ticks);
    for _ in 0..2 {
        assert!(matches!(lab.look_with(&mut finder), Found::Container { .. }));
    }
    fs::remove_dir_all(lab.root().join("web")).unwrap();
    assert!(matches!(lab.look_with(&mut finder), Found::Nothing(_)));
}

#[test]
fn a_star_stands_for_every_directory() {
    let lab = Lab::new();
    lab.write_state(lab.birth.task.start_ticks);
    let config = Config { roots: vec![lab.temp.path().join("*")], usual_roots: false };
    assert!(matches!(lab.look_with(&mut Finder::new(&config, Arc::default())), Found::Container { .. }));
}

#[tokio::test]
async fn a_state_file_that_is_written_after_the_request_is_found_all_the_same() {
    let lab = Lab::new();
    let (facts, mut deliveries) = Facts::queue();
    let (requests, queue) = mpsc::channel(4);
    let (stats, cancel) = (Arc::new(Stats::default()), CancellationToken::new());
    let health = HealthBoard::new();
    let running = tokio::spawn(run(lab.config(), queue, facts, health.clone(), Arc::clone(&stats), cancel.clone()));
    requests.send(lab.birth).await.unwrap();
    while stats.requested.load(Ordering::Relaxed) == 0 {
        tokio::task::yield_now().await;
    }
    lab.write_state(lab.birth.task.start_ticks);

    let fact = loop {
        let delivery = timeout(Duration::from_secs(20), deliveries.next()).await.unwrap().unwrap();
        let Delivery::Facts(mut stated) = delivery else { panic!("{delivery:?}") };
        assert_eq!((stated.len(), stated[0].source), (1, Source::Proc));
        // Until then it is what it shows of itself.
        if !matches!(&stated[0].what, What::Looked { task, .. } if *task == lab.birth.task) {
            break stated.remove(0);
        }
    };
    assert!(matches!(&fact.what, What::Stated { key, .. } if key.id.as_str() == "web"));
    assert!(health.is_reporting(Source::Proc));
    assert_eq!(stats.found.load(Ordering::Relaxed), 1);
    cancel.cancel();
    timeout(Duration::from_secs(5), running).await.unwrap().unwrap();
}

#[test]
fn wanted_births_are_unique_and_bounded() {
    let lab = Lab::new();
    let mut wanted = Wanted::default();
    let now = Instant::now();
    let birth = |pid| Birth { task: crate::container::TaskId { pid, ..lab.birth.task }, ..lab.birth };
    for pid in 0..MAX_WANTED as u32 {
        assert!(wanted.add(birth(pid), now, 0));
    }
    assert!(wanted.add(birth(7), now, 0));
    assert!(wanted.add(birth(7), now + Duration::from_secs(9), 0), "no later than before");
    assert!(!wanted.add(birth(MAX_WANTED as u32), now, 0));
    assert_eq!(wanted.take_due(now).len(), BATCH_LEN);
    assert_eq!(wanted.births.len(), MAX_WANTED - BATCH_LEN);
}
