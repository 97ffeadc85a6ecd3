//! Holding an OCI runtime's own `create` and `start` until the collection knows the container.

pub mod argv;
