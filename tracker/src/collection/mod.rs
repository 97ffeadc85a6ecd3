//! The collection: the set of entities, its one writer, its views and its feeds.

pub mod door;
