//! Holding an OCI runtime until the collection knows its container.
