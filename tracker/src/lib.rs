//! Turns a kernel event's numbers (mount ns, net ns, cgroup id, pid) into the right container: early, for
//! nanoseconds, and truthfully.

pub mod barrier;
pub mod collection;
pub mod config;
pub mod container;
pub mod doctor;
pub mod enrich;
pub mod fact;
pub mod filter;
pub mod histogram;
pub mod metrics;
pub mod plane;
mod readable;
pub mod route;
pub mod selector;
pub mod server;
pub mod source;
mod sys;
pub mod time;
pub mod tracker;

pub use collection::Containers;
pub use collection::enrichment::{Enrich, Enrichment, Verdict};
pub use collection::feed::{Change, ChangeKind, Feed, FeedItem, FeedOptions};
pub use collection::story::{Story, StoryLine, Who};
pub use collection::view::{ById, Group, Lookup, Reader};
pub use config::Config;
pub use container::{Container, ContainerId, ContainerKey};
pub use plane::selection::Selection;
pub use selector::Selector;
pub use time::BootTime;
pub use tracker::{Handle, StartError, Tracker};

/// Compiles the README's example.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
