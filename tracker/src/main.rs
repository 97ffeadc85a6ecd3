//! Arguments, logging, exit code.
fn main() {}
