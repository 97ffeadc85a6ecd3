//! `tracker run`: the daemon.

pub(super) mod live;
pub(super) mod log;

use std::io::{self, IsTerminal};
use std::path::PathBuf;

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracker::Tracker;
use tracker::server::Server;

use self::log::{LogFormat, Recent};
use super::error::Failure;

/// Run the tracker in the foreground, until SIGTERM or SIGINT. Needs root.
///
/// Says what it does on standard error; RUST_LOG chooses how much.
#[derive(Debug, Args)]
pub(crate) struct Run {
    /// Read this configuration, a file of TOML; without it everything has its default.
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Look for runtimes' sockets below this directory: where the host's root directory is mounted, for a tracker that
    /// runs in a container.
    #[arg(long, value_name = "DIR")]
    host_root: Option<PathBuf>,
    /// How to log.
    #[arg(long, value_enum, default_value_t)]
    log_format: LogFormat,
    /// On a terminal, show a live list of containers instead of the log.
    #[arg(long)]
    live: bool,
}

pub(crate) fn run(run: Run, socket: Option<PathBuf>) -> Result<(), Failure> {
    let mut config = super::configuration(run.config.as_deref(), socket)?;
    if let Some(host_root) = run.host_root {
        config.find.host_root = host_root;
    }
    config.plane.enabled.get_or_insert(true);
    let live = run.live && io::stdout().is_terminal();
    let recent = live.then(Recent::default);
    log::start(run.log_format, recent.clone())?;

    // First of all: a second tracker on the same socket must not attach anything.
    let server = Server::bind(config.server.clone()).map_err(|error| Failure::Other {
        remedy: error.is_denied().then(|| "run it as root".to_owned()),
        error: error.to_string(),
    })?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let tracker = Tracker::start(config)?;
    tracing::info!(node = tracker.node(), socket = %server.path().display(), "the tracker runs");

    let served = runtime.block_on(async {
        let cancel = CancellationToken::new();
        let _stop = cancel.clone().drop_guard();
        let mut ended = [signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?];
        let [terminate, interrupt] = &mut ended;
        let serve = server.serve((*tracker).clone(), cancel.clone());
        tokio::pin!(serve);
        let show = async {
            match &recent {
                Some(recent) => live::show(&tracker, recent).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            served = &mut serve => return served,
            shown = show => shown?,
            _ = terminate.recv() => tracing::info!("SIGTERM: ending"),
            _ = interrupt.recv() => tracing::info!("SIGINT: ending"),
        }
        cancel.cancel();
        serve.await
    });
    // Outside of the runtime: it waits for threads.
    tracker.shutdown();
    // A look that has not come back by now may never do so.
    runtime.shutdown_background();
    Ok(served?)
}
