//! Waiting for the end of a process, whoever its parent is.

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::unix::AsyncFd;

use crate::readable::readable;
use crate::sys::pidfd_open;

/// A process that lived when it was opened, and is not mistaken for a later one with its pid.
#[derive(Debug)]
pub(super) struct Owner(AsyncFd<OwnedFd>);

impl Owner {
    /// The process `pid` of this pid namespace. To be called inside a tokio runtime with io.
    pub(super) fn open(pid: u32) -> io::Result<Self> {
        readable(pidfd_open(pid)?).map(Self)
    }

    /// Returns when it has ended.
    pub(super) async fn ended(&self) {
        // A pidfd becomes readable once, at the end. An error means that the runtime is going: then all owners' are.
        let _ = self.0.readable().await;
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn the_end_of_a_process_is_seen() {
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let owner = Owner::open(child.id()).unwrap();
        child.kill().unwrap();
        tokio::time::timeout(Duration::from_secs(20), owner.ended()).await.expect("its end is seen");
        child.wait().unwrap();
        assert!(Owner::open(child.id()).is_err());
    }
}
