//! What is asked of a dockerd: calls that all have a deadline and a cap, and are counted.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use form_urlencoded::byte_serialize;
use serde::Deserialize;

use super::events::FILTERS;
use super::runtimes::Runtimes;
use super::wire::{Image, Info, Inspection, Summary};
use super::{Config, Stats};
use crate::container::{ContainerId, Domain, Str};
use crate::source::http::{CallError, Daemon, Objects, within};
use crate::source::images::MAX_IMAGES;

/// The newest version of the API whose answers are known here; older daemons are asked in theirs.
const NEWEST: Version = Version(1, 47);
/// From this version on `/info` names containerd's namespaces.
const TELLS_NAMESPACES: Version = Version(1, 46);
/// Bytes of an inspection, of a list's entry and of an event: their labels may be many.
const MAX_OBJECT_LEN: usize = 8 << 20;
/// Containers of one list.
const MAX_CONTAINERS: usize = 100_000;

/// A version of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Version(u32, u32);

/// Who answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Greeting {
    /// What it calls itself: `Docker/20.10.24 (linux)`.
    pub server: String,
    version: Version,
}

impl Greeting {
    /// Whether it is a dockerd, and no other program that speaks like one.
    pub(super) fn is_docker(&self) -> bool {
        self.server.starts_with("Docker/")
    }
}

/// Calls to one daemon. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Client {
    daemon: Daemon,
    version: Version,
    deadline: Duration,
    list_deadline: Duration,
    stats: Arc<Stats>,
}

impl Client {
    pub(super) fn new(path: &Path, domain: Domain, config: &Config, stats: Arc<Stats>) -> Self {
        let (deadline, list_deadline) = (config.deadline(), config.list_deadline());
        Self { daemon: Daemon::at(path, domain), version: NEWEST, deadline, list_deadline, stats }
    }

    /// Who answers: the cheapest call there is, and the question whether it is alive.
    pub(super) async fn ping(&self) -> Result<Greeting, CallError> {
        const CALL: &str = "ping";
        self.stats.calls_alive.fetch_add(1, Relaxed);
        let (headers, _) = self.counted(self.daemon.get(CALL, "/_ping", self.deadline, 64 << 10)).await?;
        let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let version = header("api-version").split_once('.');
        let version = version.and_then(|(major, minor)| Some(Version(major.parse().ok()?, minor.parse().ok()?)));
        let reason = "an answer without the version of its API".to_owned();
        let version = version.ok_or(CallError::Garbled { call: CALL, reason })?;
        let server = header("server").chars().filter(|c| !c.is_control()).take(64).collect();
        Ok(Greeting { server, version })
    }

    /// Speaks as who answered understands it.
    pub(super) fn speak_with(&mut self, greeting: &Greeting) {
        self.version = greeting.version.min(NEWEST);
    }

    /// All events from now on. When this returns, the daemon has begun to tell them, or is about to.
    pub(super) async fn events(&self) -> Result<Objects, CallError> {
        let filters: String = byte_serialize(FILTERS.as_bytes()).collect();
        let target = self.target(&format!("/events?filters={filters}"));
        self.counted(self.daemon.objects("events", &target, self.deadline, MAX_OBJECT_LEN)).await
    }

    /// All containers, those that do not run included, one by one. Returns how many could not be read.
    pub(super) async fn each_container(&self, each: impl FnMut(Summary)) -> Result<u64, CallError> {
        self.each("list of containers", "/containers/json?all=1", MAX_CONTAINERS, each).await
    }

    /// All images, one by one.
    pub(super) async fn each_image(&self, each: impl FnMut(Image)) -> Result<(), CallError> {
        self.each("list of images", "/images/json", MAX_IMAGES, each).await.map(drop)
    }

    async fn each<T: for<'de> Deserialize<'de>>(
        &self,
        call: &'static str,
        path: &str,
        max: usize,
        mut each: impl FnMut(T),
    ) -> Result<u64, CallError> {
        self.stats.calls_list.fetch_add(1, Relaxed);
        let target = self.target(path);
        let read = async {
            let mut objects = self.daemon.objects(call, &target, self.list_deadline, MAX_OBJECT_LEN).await?;
            let (mut count, mut unread) = (0, 0);
            while let Some(object) = objects.next().await? {
                count += 1;
                if count > max {
                    return Err(CallError::Garbled { call, reason: format!("more than {max} of them") });
                }
                match object.read() {
                    Some(Ok(item)) => each(item),
                    Some(Err(_)) | None => unread += 1,
                }
            }
            Ok(unread)
        };
        self.counted(async { within(call, self.list_deadline, read).await? }).await
    }

    /// All about one container.
    pub(super) async fn inspect(&self, id: &ContainerId) -> Result<Inspection, CallError> {
        self.stats.calls_inspect.fetch_add(1, Relaxed);
        let target = self.target(&format!("/containers/{}/json", segment(id.as_str())));
        self.counted(self.daemon.json("inspection of a container", &target, self.deadline, MAX_OBJECT_LEN)).await
    }

    /// All about one image.
    pub(super) async fn image(&self, id: &str) -> Result<Image, CallError> {
        self.stats.calls_image.fetch_add(1, Relaxed);
        let target = self.target(&format!("/images/{}/json", segment(id)));
        self.counted(self.daemon.json("inspection of an image", &target, self.deadline, MAX_OBJECT_LEN)).await
    }

    /// The containerd namespace of its containers, by its own word; older daemons do not tell.
    pub(super) async fn containerd_namespace(&self) -> Result<Option<Str>, CallError> {
        if self.version < TELLS_NAMESPACES {
            return Ok(None);
        }
        let info = self.info().await?;
        let namespace = info.containerd.and_then(|containerd| containerd.namespaces?.containers);
        Ok(namespace.filter(|namespace| ContainerId::new(namespace).is_ok()).map(Str::from))
    }

    /// What its names for OCI runtimes mean.
    pub(super) async fn runtimes(&self) -> Result<Runtimes, CallError> {
        Ok(Runtimes::told(self.info().await?.runtimes))
    }

    async fn info(&self) -> Result<Info, CallError> {
        self.stats.calls_alive.fetch_add(1, Relaxed);
        let target = self.target("/info");
        self.counted(self.daemon.json("info", &target, self.deadline, MAX_OBJECT_LEN)).await
    }

    /// The process that listens, while it does.
    pub(super) async fn listener(&self) -> Option<u32> {
        self.daemon.listener(self.deadline).await
    }

    fn target(&self, path: &str) -> String {
        let Version(major, minor) = self.version;
        format!("/v{major}.{minor}{path}")
    }

    async fn counted<T>(&self, call: impl Future<Output = Result<T, CallError>>) -> Result<T, CallError> {
        let answer = call.await;
        match &answer {
            Err(CallError::Deadline { .. }) => self.stats.calls_late.fetch_add(1, Relaxed),
            Err(error @ (CallError::Refused { .. } | CallError::Garbled { .. })) if !error.is_not_found() => {
                self.stats.calls_failed.fetch_add(1, Relaxed)
            }
            _ => 0,
        };
        answer
    }
}

/// `text` as one segment of a path.
fn segment(text: &str) -> String {
    // What form encoding leaves alone is allowed in a path; its `+` for a blank is not the same there.
    byte_serialize(text.as_bytes()).collect::<String>().replace('+', "%20")
}
