//! What all programs of the kernel side share: how a task is read, and what they were told before they loaded.
//!
//! One object has to pass the verifiers of Linux 6.1 to 6.18, which asks for some care:
//! - Never choose between two pointers and load afterwards: LLVM merges both loads into one through a pointer of two
//!   types, which Linux 6.1 refuses. Load both, choose between the numbers.
//! - Offsets come from [`setup`], a frozen global: they are constants to the verifier, and a branch on them is decided
//!   while verifying.
//! - A load has exactly the width of its field.
#![no_std]

pub mod setup;

pub mod task;
