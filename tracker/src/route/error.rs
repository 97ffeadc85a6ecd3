//! Why there is no answer: what was tried, on what, and what to do about it.

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use super::reply::Garbled;
use super::socket::AskError;

/// Why a look-up has no answer. "No route" is an answer, not an error.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RouteError {
    /// A way into a net ns does not lead to one, or we may not go there.
    #[error("{doing} {what}: {error}")]
    Open {
        /// What was tried: `open`, `enter`, …
        doing: &'static str,
        /// Which way in.
        what: String,
        /// What the kernel said.
        error: io::Error,
    },
    /// The net ns that was meant has ended, or the way to it leads to another one by now.
    #[error("{what} is no longer the net ns that was asked about: {why}")]
    Gone {
        /// Which way in.
        what: String,
        /// What is there instead.
        why: String,
    },
    /// No container, no file and no process that we may look at is in it.
    #[error("no process and no file leads to a net ns {inode}")]
    Unknown {
        /// The inode number that was asked for.
        inode: u32,
    },
    /// The kernel refuses the question.
    #[error("ask net ns {netns} {request}: {error}")]
    Refused {
        /// The net ns.
        netns: u32,
        /// The question.
        request: String,
        /// The kernel's words.
        error: io::Error,
        /// More of them.
        words: Option<String>,
    },
    /// The kernel's reply is not understood.
    #[error("ask net ns {netns} {request}: the reply is garbled: {error}")]
    Garbled {
        /// The net ns.
        netns: u32,
        /// The question.
        request: String,
        /// What is wrong with it.
        error: Garbled,
    },
    /// The net namespaces on the way changed each time that they were asked.
    #[error("ask {what}: it changed {attempts} times meanwhile")]
    Unsettled {
        /// What was asked.
        what: String,
        /// How often it was tried.
        attempts: usize,
    },
    /// Nobody sends from an address that is not one of its own.
    #[error("{address} is no address of net ns {netns}, so nothing is sent from it there")]
    NotItsAddress {
        /// The error that was asked about.
        address: IpAddr,
        /// The net ns.
        netns: u32,
    },
    /// IPv4 and IPv6 in one question.
    #[error("from {source_address} to {destination}: these are two kinds of IP")]
    TwoFamilies {
        /// From.
        source_address: IpAddr,
        /// To.
        destination: IpAddr,
    },
    /// Something that should take microseconds did not end in time.
    #[error("{what}: not done within {} ms", time.as_millis())]
    TooSlow {
        /// What was tried.
        what: String,
        /// How long it was waited for.
        time: Duration,
    },
    /// As many first look-ups are under way as are allowed.
    #[error("{0} look-ups are under way already that need to open a net ns")]
    Busy(usize),
}

impl RouteError {
    pub(super) fn asked(netns: u32, request: impl Into<String>, error: AskError) -> Self {
        let request = request.into();
        match error {
            AskError::Refused { errno, words } => {
                RouteError::Refused { netns, request, error: io::Error::from_raw_os_error(errno), words }
            }
            AskError::Socket(error) => RouteError::Refused { netns, request, error, words: None },
            AskError::Garbled(error) => RouteError::Garbled { netns, request, error },
            AskError::Unsettled => RouteError::Unsettled {
                what: format!("net ns {netns} {request}"),
                attempts: super::socket::LIST_ATTEMPTS,
            },
        }
    }

    /// What a person can do about it.
    pub fn remedy(&self) -> Option<&'static str> {
        match self {
            RouteError::Open { error, .. } | RouteError::Refused { error, .. }
                if error.kind() == io::ErrorKind::PermissionDenied =>
            {
                Some("run the tracker as root: routes need CAP_SYS_ADMIN, CAP_NET_ADMIN and CAP_NET_BROADCAST")
            }
            RouteError::Gone { .. } => Some("ask again: by container, pid or path"),
            RouteError::Unsettled { .. } | RouteError::TooSlow { .. } | RouteError::Busy(_) => Some("ask again"),
            RouteError::NotItsAddress { .. } => {
                Some("for a packet that is forwarded, name the interface it comes in by")
            }
            _ => None,
        }
    }

    /// Whether what was asked about is not there.
    pub fn is_not_found(&self) -> bool {
        match self {
            RouteError::Gone { .. } | RouteError::Unknown { .. } => true,
            RouteError::Open { error, .. } => {
                error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
            }
            _ => false,
        }
    }

    /// Whether the question itself is at fault.
    pub fn is_question(&self) -> bool {
        match self {
            RouteError::NotItsAddress { .. } | RouteError::TwoFamilies { .. } => true,
            RouteError::Refused { error, .. } => {
                matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENODEV | libc::EOPNOTSUPP | libc::ERANGE))
            }
            _ => false,
        }
    }
}
