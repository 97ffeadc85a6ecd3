//! Containers of real OCI runtimes: born as children of `create`, executed by `start`, ended by a signal.

use std::fs;

use anyhow::{Context, Result};
use tracker::container::TaskId;
use tracker::fact::What;
use tracker::source::kernel::Machine;
use tracker::source::scan::Scanner;
use tracker_tests::bundle::{Bundle, RootFs};
use tracker_tests::probes::Probes;
use tracker_tests::runc::{Kind, Runtime};
use tracker_tests::{kernel, require, requirement};

#[test]
fn a_container_of_runc_is_born_executes_and_ends() -> Result<()> {
    require!(requirement::root(), kernel::btf(), Kind::Runc.requirement());
    container_lives(Kind::Runc)
}

#[test]
fn a_container_of_crun_is_born_executes_and_ends() -> Result<()> {
    require!(requirement::root(), kernel::btf(), Kind::Crun.requirement());
    container_lives(Kind::Crun)
}

fn container_lives(kind: Kind) -> Result<()> {
    let directory = tempfile::tempdir().context("make a directory")?;
    let root = RootFs::create(directory.path())?;
    let bundle = Bundle::create(directory.path(), "bundle", &root, &["/bin/sleep", "1000"])?;
    let runtime = Runtime::copy(kind, directory.path())?;
    let probes = Probes::start()?;
    let id = format!("kernel-{}-{}", kind.name(), std::process::id());
    let container = runtime.create(&bundle, &id)?;
    let task = TaskId { pid: container.pid(), start_ticks: kernel::start_ticks(container.pid())? };

    let born = probes.until("the birth of the container's init", |facts| {
        facts.iter().find_map(|fact| match fact.what {
            What::Born(born) if born.task == task => Some(born),
            _ => None,
        })
    });
    assert_eq!(born.namespaces.mnt, kernel::namespace(task.pid, "mnt")?);
    assert_eq!(born.namespaces.pid, kernel::namespace(task.pid, "pid")?);
    let creator = born.parent.context("the birth names its parent")?;
    assert!(!kernel::is_alive(creator.pid), "`create`, which is the parent, has ended");
    assert!(!found(task)?, "its init waits for `start`");

    container.start()?;
    probes.until("the first exec", |facts| {
        facts.iter().find_map(|fact| match fact.what {
            What::Executed(execution) if execution.by_init && execution.task.task == task => Some(()),
            _ => None,
        })
    });
    assert!(found(task)?, "its entrypoint runs");
    assert_eq!(fs::read_to_string(format!("/proc/{}/comm", task.pid))?.trim(), "sleep");

    container.kill("KILL")?;
    let life = probes.life(task.pid);
    let [What::Born(_), What::Executed(_), What::Ended(end)] = &life[..] else { panic!("{life:#?}") };
    assert_eq!((end.task, end.generation), (task, born.generation));
    assert_eq!((end.exit.code, end.exit.signal, end.exit.oom), (137, Some(9), Some(false)));
    Ok(())
}

/// Whether a scan says that the container's entrypoint runs; by the iterator and by `/proc`.
fn found(task: TaskId) -> Result<bool> {
    let machine = Machine::examine()?;
    let mut answers = Vec::new();
    for mut scanner in [Scanner::new(Ok(&machine), None)?, Scanner::of_proc()?] {
        let births = scanner.scan()?;
        let birth = births.iter().find(|birth| birth.task == task);
        answers.push(birth.with_context(|| format!("found by {:?}", scanner.source()))?.executed);
    }
    assert_eq!(answers[0], answers[1]);
    Ok(answers[0])
}
