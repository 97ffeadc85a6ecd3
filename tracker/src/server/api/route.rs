//! The wire types of routes.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::Refusal;
use crate::route::Route;

/// Where a packet goes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RouteAnswer {
    /// Where from, as it was asked or as the kernel chose.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub src: Option<IpAddr>,
    /// Where to: the translated destination, if one was given.
    pub dst: IpAddr,
    /// Whether the answer is from the cache.
    pub cached: bool,
    /// How long ago the kernel said so.
    pub age_ms: u64,
    /// Whether a net ns on the way changes so often that answers about it are not kept.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub muted: bool,
    /// Its way.
    #[serde(flatten)]
    pub route: Route,
}

/// One line of `GET /v1/route?watch`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum RouteLine {
    /// The answer, at first and with each change.
    Route(Box<RouteAnswer>),
    /// There is none at the moment.
    Error(Refusal),
}

impl RouteLine {
    /// Whether it says something else, and not the same from another moment.
    pub fn differs(&self, other: &RouteLine) -> bool {
        match (self, other) {
            (RouteLine::Route(one), RouteLine::Route(other)) => (one.src, &one.route) != (other.src, &other.route),
            _ => self != other,
        }
    }
}
