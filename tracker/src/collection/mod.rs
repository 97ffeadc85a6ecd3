//! The collection: the set of entities, its one writer, its views and its feeds.
//!
//! Sources state facts through [`Facts`](door::Facts); one thread applies them to the state and publishes; readers look
//! up in views ([`Reader`](view::Reader)), subscribers follow feeds ([`Feed`](feed::Feed)), and hooks run while a start
//! is held. Nothing outside changes the state, and nothing here does IO.

pub mod config;
pub mod door;
pub mod enrichment;
pub mod feed;
pub mod hook;
pub mod story;
pub mod view;
pub mod writer;

mod chunks;
mod journal;
mod merge;
mod news;
mod pause;
mod pool;
mod run;
mod state;
mod table;
mod timeline;

pub(crate) use state::RowChange;
pub use timeline::Containers;
#[cfg(test)]
pub(crate) use timeline::Interval;
