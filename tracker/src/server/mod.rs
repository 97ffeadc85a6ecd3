//! The debug socket: HTTP/1.1 with JSON on a unix socket, so that `curl --unix-socket` works.

pub mod api;
pub mod client;
pub mod clock;
pub mod limits;
pub mod socket;

mod answer;
mod query;
