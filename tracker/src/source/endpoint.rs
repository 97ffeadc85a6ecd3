//! Sockets on which runtimes answer: which there are at present, and one follower for each.
//!
//! Who looks for sockets (the configuration, a finder) says which there are by a `watch` channel; a source follows each
//! of them for as long as it is among them.

use std::collections::HashMap;
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::container::Domain;

/// A socket on which a runtime may answer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// Where it is opened.
    pub path: PathBuf,
    /// Whom its answers may speak for.
    pub domain: Domain,
    /// Whether somebody has to know when nobody answers there: it was configured, or found with a listener. Another is
    /// not mentioned before it was seen.
    pub is_expected: bool,
}

impl Endpoint {
    /// The host's own, as a configuration names them: sockets that are expected, and those that are used when they
    /// appear. One that is in both lists is expected.
    pub fn configured(expected: &[PathBuf], if_present: &[PathBuf]) -> Vec<Endpoint> {
        let endpoint = |path: &PathBuf, is_expected| Endpoint { path: path.clone(), domain: Domain::Host, is_expected };
        let optional = if_present.iter().filter(|path| !expected.contains(path));
        expected.iter().map(|path| endpoint(path, true)).chain(optional.map(|path| endpoint(path, false))).collect()
    }
}

/// The sockets of one kind of runtime, as they are known at present.
pub type Endpoints = watch::Receiver<Arc<[Endpoint]>>;

/// Runs a follower for each endpoint for as long as it is among `endpoints`, until `cancel`.
///
/// All of them run in the caller's task: they wait for sockets most of the time, and facts about which of them is live
/// then have an order. A follower's own token is cancelled when its endpoint is no longer there, and it is awaited.
pub async fn follow_all<F>(
    mut endpoints: Endpoints,
    cancel: &CancellationToken,
    follow: impl Fn(Endpoint, CancellationToken) -> F,
) where
    F: Future<Output = ()>,
{
    let mut followed: HashMap<Endpoint, CancellationToken> = HashMap::new();
    let mut followers = FuturesUnordered::new();
    let mut may_change = true;
    loop {
        let wanted = Arc::clone(&endpoints.borrow_and_update());
        followed.retain(|endpoint, token| {
            let stays = wanted.contains(endpoint);
            if !stays {
                token.cancel();
            }
            stays
        });
        for endpoint in wanted.iter() {
            if !followed.contains_key(endpoint) {
                let token = cancel.child_token();
                followers.push(follow(endpoint.clone(), token.clone()));
                followed.insert(endpoint.clone(), token);
            }
        }
        loop {
            tokio::select! {
                biased;
                () = cancel.cancelled() => {
                    while followers.next().await.is_some() {}
                    return;
                }
                changed = endpoints.changed(), if may_change => {
                    // Without anybody who looks for more, what is known stays.
                    may_change = changed.is_ok();
                    if may_change {
                        break;
                    }
                }
                Some(()) = followers.next(), if !followers.is_empty() => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn what_is_expected_is_not_optional() {
        let (a, b) = (PathBuf::from("/a"), PathBuf::from("/b"));
        let all = Endpoint::configured(std::slice::from_ref(&a), &[a.clone(), b.clone()]);
        let all: Vec<_> = all.into_iter().map(|endpoint| (endpoint.path, endpoint.is_expected)).collect();
        assert_eq!(all, [(a, true), (b, false)]);
    }

    #[tokio::test]
    async fn followers_come_and_go_with_their_endpoints() {
        let endpoints = |paths: &[&str]| -> Arc<[Endpoint]> {
            Endpoint::configured(&paths.iter().map(PathBuf::from).collect::<Vec<_>>(), &[]).into()
        };
        let (tell, told) = watch::channel(endpoints(&["/a", "/b"]));
        let (cancel, log) = (CancellationToken::new(), Mutex::new(Vec::new()));
        let (steps, mut next) = tokio::sync::mpsc::channel(8);
        let follow = |endpoint: Endpoint, token: CancellationToken| {
            let (log, steps) = (&log, steps.clone());
            async move {
                let path = endpoint.path.display().to_string();
                log.lock().unwrap().push(format!("+{path}"));
                steps.send(()).await.unwrap();
                token.cancelled().await;
                log.lock().unwrap().push(format!("-{path}"));
                steps.send(()).await.unwrap();
            }
        };
        let drive = async {
            for _ in 0..2 {
                next.recv().await.unwrap();
            }
            tell.send(endpoints(&["/b", "/c"])).unwrap();
            for _ in 0..2 {
                next.recv().await.unwrap();
            }
            drop(tell);
            cancel.cancel();
        };
        tokio::join!(follow_all(told, &cancel, follow), drive);
        let log = log.into_inner().unwrap();
        let sorted = |part: &[String]| {
            let mut part = part.to_vec();
            part.sort();
            part
        };
        assert_eq!(sorted(&log[..2]), ["+/a", "+/b"]);
        assert_eq!(sorted(&log[2..4]), ["+/c", "-/a"]);
        assert_eq!(sorted(&log[4..]), ["-/b", "-/c"]);
    }
}
