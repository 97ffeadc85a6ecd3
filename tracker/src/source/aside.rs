//! Work that may never come back, such as reading a file of somebody else's: done aside, in a thread that is left
//! behind when it takes too long.
//!
//! A file system that does not answer (FUSE, NFS) keeps whoever asks it, beyond any signal. So few threads may be left
//! behind at one time; as long as that many are, nothing is tried.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::timeout;

/// Runs work in threads of their own, one after the other for each caller. Cheap to clone: clones share the bound.
#[derive(Clone, Debug)]
pub(super) struct Aside {
    name: &'static str,
    patience: Duration,
    max_lost: usize,
    /// Threads that have not come back.
    lost: Arc<AtomicUsize>,
}

/// Why there is no result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NoResult {
    /// So many former ones have not come back that no further one is tried.
    #[error("too many files do not answer: no further ones are read")]
    TooManyLost,
    /// This one has not come back in time.
    #[error("a file does not answer")]
    Late,
    /// There can be no further thread now.
    #[error("no thread can be started")]
    NoThread,
}

impl Aside {
    /// `name` is the threads' name; work may take as long as `patience`.
    pub(super) fn new(name: &'static str, patience: Duration, max_lost: usize) -> Self {
        Self { name, patience, max_lost, lost: Arc::default() }
    }

    /// Does `work`. What it was given stays with it when it is left behind.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, NoResult> {
        if self.lost.load(Ordering::Relaxed) >= self.max_lost {
            return Err(NoResult::TooManyLost);
        }
        let (sender, result) = oneshot::channel();
        let lost = Arc::clone(&self.lost);
        lost.fetch_add(1, Ordering::Relaxed);
        let body = move || {
            let result = work();
            lost.fetch_sub(1, Ordering::Relaxed);
            // The one who asked may have gone on without us.
            let _ = sender.send(result);
        };
        if thread::Builder::new().name(self.name.into()).spawn(body).is_err() {
            self.lost.fetch_sub(1, Ordering::Relaxed);
            return Err(NoResult::NoThread);
        }
        match timeout(self.patience, result).await {
            Ok(Ok(result)) => Ok(result),
            Ok(Err(_)) | Err(_) => Err(NoResult::Late),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn what_does_not_come_back_is_left_behind_and_counted() {
        let aside = Aside::new("test", Duration::from_millis(20), 1);
        assert_eq!(aside.run(|| 7).await, Ok(7));
        let (go, wait) = mpsc::sync_channel::<()>(1);
        assert_eq!(aside.run(move || wait.recv().is_ok()).await, Err(NoResult::Late));
        assert_eq!(aside.run(|| 7).await, Err(NoResult::TooManyLost));
        go.send(()).unwrap();
        let again = async {
            while aside.run(|| 7).await.is_err() {
                tokio::task::yield_now().await;
            }
        };
        timeout(Duration::from_secs(30), again).await.unwrap();
    }
}
