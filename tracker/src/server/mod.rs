//! The debug socket: HTTP/1.1 with JSON on a unix socket, so that `curl --unix-socket` works.
//!
//! [`Server::bind`] takes the socket for this tracker alone, [`Server::serve`] answers until it is cancelled. Everything
//! that peers can ask for is bounded ([`limits`]); a peer is root, the user that the tracker runs as, or, where the
//! configuration names a group, whoever the socket's mode lets in. What `tracker ps` and the others print comes from here,
//! through [`client`].

pub mod api;
pub mod client;
pub mod clock;
pub mod limits;
pub mod socket;

mod answer;
mod owned;
mod owner;
mod query;
mod registrations;
mod route;
mod routes;
mod selections;
mod watch;

#[cfg(test)]
mod component_tests;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use tokio::net::UnixListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use self::answer::Refused;
use self::clock::WallClock;
use self::limits::{Limits, Peer};
use self::registrations::Registrations;
use self::routes::Face;
use self::selections::Selections;
use self::socket::{BindError, Socket};
use crate::tracker::Handle;

/// The debug socket's configuration. In the config file under `[server]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Config {
    /// Where the socket is; `/run/tracker/tracker.sock` by default.
    pub socket: PathBuf,
    /// A group whose members may ask too; none by default.
    pub group: Option<String>,
    /// What peers may have.
    pub limits: Limits,
}

impl Default for Config {
    fn default() -> Self {
        Self { socket: client::DEFAULT_SOCKET.into(), group: None, limits: Limits::default() }
    }
}

/// A socket that nobody else serves.
#[derive(Debug)]
pub struct Server {
    socket: Socket,
    config: Config,
}

impl Server {
    /// Takes the socket. To be called before the tracker starts, so that a second one on the same socket attaches nothing.
    pub fn bind(config: Config) -> Result<Self, BindError> {
        let socket = Socket::bind(&config.socket, config.group.as_deref())?;
        Ok(Self { socket, config })
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        self.socket.path()
    }

    /// Answers until `cancel`, then removes the socket. Needs a tokio runtime with io and time.
    pub async fn serve(self, tracker: Handle, cancel: CancellationToken) -> io::Result<()> {
        let listener = UnixListener::from_std(self.socket.listener()?)?;
        let limits = self.config.limits.in_reason();
        let face = Face {
            node: tracker.node().into(),
            tracker,
            clock: WallClock::new(),
            watchers: Arc::new(Semaphore::new(limits.watchers)),
            registrations: Registrations::new("registrations"),
            selections: Selections::new(),
            limits,
            cancel: cancel.clone(),
        };
        let face = Arc::new(face);
        Selections::start(&face);
        let own_uid = nix::unistd::geteuid().as_raw();
        // Supplementary groups are not in a peer's credentials; the kernel has checked them against the socket's mode.
        let has_group = self.config.group.is_some();
        let admit = move |peer: Peer| match peer.uid {
            0 => Ok(()),
            uid if uid == own_uid || has_group => Ok(()),
            uid => Err(Refused::forbidden(format!("uid {uid} may not ask this tracker"))
                .remedy("ask as root, or name one of your groups in the tracker's configuration")),
        };
        limits::serve(listener, routes::router(Arc::clone(&face)), limits, admit, cancel).await;
        face.selections.end();
        Ok(())
    }
}
