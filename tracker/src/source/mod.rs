//! One file per source of facts.

pub mod file;
pub mod health;
pub mod task;
