//! Says in time what is missing for the build: `protoc`, which the containerd source needs.
//!
//! The crate that needs it (`containerd-client`) fails with a panic that does not know of `cargo xtask` and of our features. This script
//! has no dependencies, so that it is over long before that crate's own begins.

#![allow(clippy::print_stdout, reason = "that is how a build script speaks to cargo")]

use std::env;
use std::path::{Path, PathBuf};

fn main() {
    for variable in ["PROTOC", "PATH"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    // Nothing else here depends on the sources.
    println!("cargo::rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_CONTAINERD").is_some() && !has_protoc() {
        for line in [
            "the feature `containerd` needs the protocol buffer compiler `protoc` to build, and there is none",
            "either let xtask bring one:     cargo xtask build",
            "or install it:                  apt-get install protobuf-compiler",
            "or name the one there is:       PROTOC=/path/to/protoc cargo build",
            "or leave containerd out:        cargo build --no-default-features",
        ] {
            println!("cargo::error={line}");
        }
    }
}

/// As `prost-build` looks for it: the variable `PROTOC`, else the search path.
fn has_protoc() -> bool {
    match env::var_os("PROTOC") {
        Some(protoc) => is_program(Path::new(&protoc)),
        None => search_path().any(|directory| directory.join("protoc").is_file()),
    }
}

/// A path, or a bare name to be found on the search path.
fn is_program(protoc: &Path) -> bool {
    protoc.is_file() || search_path().any(|directory| directory.join(protoc).is_file())
}

fn search_path() -> impl Iterator<Item = PathBuf> {
    env::var_os("PATH").map(|path| env::split_paths(&path).collect::<Vec<_>>()).unwrap_or_default().into_iter()
}
