//! Holding an OCI runtime's own `create` and `start` until the collection knows the container.

pub mod argv;
mod custody;
mod keeper;
mod sys;
mod wire;

pub use keeper::keeper_entry;
