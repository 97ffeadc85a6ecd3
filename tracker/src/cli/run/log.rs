//! Where the daemon's log goes: standard error, or its last lines above the live list.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use clap::ValueEnum;
use jiff::Timestamp;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;

use crate::cli::error::Failure;

/// `--log-format`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// Lines for people.
    #[default]
    Text,
    /// One JSON object in each line.
    Json,
}

/// Sends what is logged to `recent`, if there is a live list, else to standard error.
pub(crate) fn start(format: LogFormat, recent: Option<Recent>) -> Result<(), Failure> {
    let filter = EnvFilter::builder().with_default_directive(tracing::Level::INFO.into()).from_env();
    let filter = filter.map_err(|error| Failure::Usage {
        error: format!("RUST_LOG: {error}"),
        remedy: "for example RUST_LOG=info,tracker::barrier=debug".to_owned(),
    })?;
    // Where a line cannot be written (the disk is full, who read the log has gone), telling so on standard error would
    // fail, too, and by a panic: the tracker works on without a log.
    let builder = tracing_subscriber::fmt().with_env_filter(filter).log_internal_errors(false);
    let started = match (recent, format) {
        (Some(recent), _) => {
            builder.with_ansi(false).with_target(false).with_timer(TimeOfDay).with_writer(recent).try_init()
        }
        (None, LogFormat::Json) => builder.json().with_writer(io::stderr).try_init(),
        (None, LogFormat::Text) => {
            builder.with_ansi(io::IsTerminal::is_terminal(&io::stderr())).with_writer(io::stderr).try_init()
        }
    };
    started.map_err(Failure::other)
}

/// When a line above the live list was written: short, for there are few columns, and what matters is the message.
struct TimeOfDay;

impl FormatTime for TimeOfDay {
    fn format_time(&self, to: &mut Writer<'_>) -> fmt::Result {
        write!(to, "{}", Timestamp::now().strftime("%H:%M:%S"))
    }
}

/// The last lines of the log.
#[derive(Clone, Debug, Default)]
pub(crate) struct Recent {
    // Protects the lines; held for the time of a copy.
    lines: Arc<Mutex<VecDeque<String>>>,
}

/// Lines that are kept; older ones are dropped.
const KEPT: usize = 5;

impl Recent {
    pub(super) fn lines(&self) -> Vec<String> {
        self.lines
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .map(|line| line.trim_end_matches('\n').to_owned())
            .collect()
    }
}

impl Write for Recent {
    /// Takes whole lines, and parts of a line one after the other.
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        for part in String::from_utf8_lossy(text).split_inclusive('\n') {
            match lines.back_mut().filter(|last| !last.ends_with('\n')) {
                Some(last) => last.push_str(part),
                None => lines.push_back(part.to_owned()),
            }
        }
        let surplus = lines.len().saturating_sub(KEPT);
        lines.drain(..surplus);
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'w> MakeWriter<'w> for Recent {
    type Writer = Recent;

    fn make_writer(&'w self) -> Recent {
        self.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_lines_are_kept() {
        let mut recent = Recent::default();
        for number in 0..100 {
            writeln!(recent, "line {number}").unwrap();
        }
        assert_eq!(recent.lines().len(), KEPT);
        assert_eq!(recent.lines().last().map(String::as_str), Some("line 99"));
    }
}
