//! The plane: what other programs look up in, without asking us and even while we restart. Written by the collection's
//! writer in its publish step.

pub mod config;

mod image;
mod table;

pub use config::Config;
