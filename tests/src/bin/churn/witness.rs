//! Somebody who follows the feed while the containers come and go, and notes when each change arrived.

use std::collections::HashMap;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tracker::container::{Grade, State};
use tracker::{BootTime, Container, FeedItem, FeedOptions, Tracker};

use crate::Lived;

/// What the feed said about one container.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) exited: Option<BootTime>,
    pub(crate) grade: Option<Grade>,
}

/// By container id.
pub(crate) type AllSeen = HashMap<String, Seen>;

pub(crate) struct Witness {
    thread: JoinHandle<()>,
    notes: Receiver<(BootTime, Note)>,
    tracker: tracker::Handle,
}

/// A change as it matters here.
struct Note {
    id: String,
    state: State,
    grade: Option<Grade>,
}

impl Note {
    fn of(container: &Container) -> Note {
        Note { id: container.id.to_string(), state: container.state, grade: container.grade }
    }
}

impl Witness {
    pub(crate) fn start(tracker: &Tracker) -> Result<Witness> {
        let mut feed = tracker.subscribe_blocking(FeedOptions::new("churn")).context("subscribe")?;
        // Large enough for every change of a full run; were it full, the feed would lag, which it tells.
        let (sender, notes) = sync_channel(1 << 18);
        let thread = thread::Builder::new()
            .name("witness".to_owned())
            .spawn(move || {
                while let Some(item) = feed.next_blocking() {
                    let now = BootTime::now();
                    let told = match item {
                        FeedItem::Bundle { containers, .. } => {
                            containers.iter().try_for_each(|container| sender.send((now, Note::of(container))))
                        }
                        FeedItem::Change(change) => match change.after {
                            Some(container) => sender.send((now, Note::of(&container))),
                            None => Ok(()),
                        },
                        FeedItem::Lagged { .. } => Ok(()),
                    };
                    if told.is_err() {
                        return;
                    }
                }
            })
            .context("start the witness")?;
        Ok(Witness { thread, notes, tracker: (**tracker).clone() })
    }

    /// Waits until the end of every life was told, or for `patience` without any news, and says what was seen.
    pub(crate) fn end(self, lived: &[Lived], patience: Duration) -> AllSeen {
        let mut seen = AllSeen::new();
        let is_over =
            |seen: &AllSeen| lived.iter().all(|one| seen.get(&one.life.id).is_some_and(|seen| seen.exited.is_some()));
        let mut checked = Instant::now();
        while let Ok((at, note)) = self.notes.recv_timeout(patience) {
            let entry = seen.entry(note.id).or_default();
            entry.grade = note.grade.or(entry.grade);
            if note.state == State::Exited {
                entry.exited = entry.exited.or(Some(at));
            }
            if checked.elapsed() > Duration::from_millis(100) {
                if is_over(&seen) {
                    break;
                }
                checked = Instant::now();
            }
        }
        // The thread ends when it finds nobody listening, or with the tracker.
        drop(self.notes);
        drop(self.tracker);
        drop(self.thread);
        seen
    }
}
