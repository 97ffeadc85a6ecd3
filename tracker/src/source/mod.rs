//! One file per source of facts.

pub mod health;
pub mod task;
