//! Why a command ended without doing what it was asked for, and with which exit code.

use std::io;
use std::process::ExitCode;

use tracker::StartError;
use tracker::server::client::{ClientError, is_not_found};

use super::output::escape;

/// A command's end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The tracker was asked and did not do it.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Standard output was closed or is full.
    #[error("write the output: {0}")]
    Output(#[from] io::Error),
    /// The command line asks for what does not exist.
    #[error("{error}")]
    Usage {
        /// What.
        error: String,
        /// What exists.
        remedy: String,
    },
    /// It was asked for one thing, and there is none.
    #[error("{error}")]
    NotFound {
        /// What there is none of.
        error: String,
        /// Where else to look.
        remedy: &'static str,
    },
    /// All else.
    #[error("{error}")]
    Other {
        /// What was tried and what came back.
        error: String,
        /// What to do about it.
        remedy: Option<String>,
    },
    /// Everything that there is to say has been printed.
    #[error("")]
    Said,
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        Failure::Other { remedy: Some(error.remedy().to_owned()), error: error.to_string() }
    }
}

impl Failure {
    /// An error without a remedy.
    pub(crate) fn other(error: impl std::fmt::Display) -> Self {
        Failure::Other { error: error.to_string(), remedy: None }
    }

    /// What to do about it.
    fn remedy(&self) -> Option<String> {
        match self {
            Failure::Client(error) => error.remedy(),
            Failure::Usage { remedy, .. } => Some(remedy.clone()),
            Failure::Other { remedy, .. } => remedy.clone(),
            Failure::NotFound { remedy, .. } => Some((*remedy).to_owned()),
            Failure::Output(_) | Failure::Said => None,
        }
    }

    /// Says it on standard error and tells the exit code: 1 an error, 2 a wrong command line, 3 asked for one thing and
    /// there is none.
    pub(crate) fn report(&self, to: &mut impl io::Write) -> ExitCode {
        // Whoever closed our output has read enough (`tracker ps | head -1`): there is nobody to complain to.
        if matches!(self, Failure::Output(error) if error.kind() == io::ErrorKind::BrokenPipe) {
            return ExitCode::SUCCESS;
        }
        if !matches!(self, Failure::Said) {
            // Selectors are shown in lines of their own; paths and ids in here are whatever somebody chose.
            let lines: Vec<_> = self.to_string().lines().map(|line| escape(line).into_owned()).collect();
            let _ = writeln!(to, "error: {}", lines.join("\n"));
        }
        if let Failure::Client(ClientError::Refused { refusal, .. }) = self {
            for candidate in &refusal.candidates {
                let _ = writeln!(to, "  {}", escape(candidate));
            }
        }
        if let Some(remedy) = self.remedy() {
            let _ = writeln!(to, "remedy: {remedy}");
        }
        match self {
            Failure::Usage { .. } => ExitCode::from(2),
            Failure::NotFound { .. } => ExitCode::from(3),
            Failure::Client(ClientError::Refused { status: 400, .. }) => ExitCode::from(2),
            Failure::Client(error) if is_not_found(error) => ExitCode::from(3),
            _ => ExitCode::FAILURE,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_failure_has_its_exit_code() {
        let closed = Failure::Output(io::ErrorKind::BrokenPipe.into());
        let mut said = Vec::new();
        assert_eq!(closed.report(&mut said), ExitCode::SUCCESS);
        assert!(said.is_empty());

        let usage = Failure::Usage { error: "no such column".into(), remedy: "choose another".into() };
        assert_eq!(usage.report(&mut said), ExitCode::from(2));
        assert_eq!(said, b"error: no such column\nremedy: choose another\n");

        let not_found = Failure::NotFound { error: "none".into(), remedy: "look elsewhere" };
        assert_eq!(not_found.report(&mut said), ExitCode::from(3));
        said.clear();
        assert_eq!(Failure::other("read /a\x1b[2J/config.json:\n  ^").report(&mut said), ExitCode::FAILURE);
        assert_eq!(said, b"error: read /a\\u{1b}[2J/config.json:\n  ^\n");
        assert_eq!(Failure::other("broken").report(&mut said), ExitCode::FAILURE);
    }
}
