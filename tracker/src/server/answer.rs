//! Answers: JSON when all is well, JSON with an error and a remedy when not.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::api::Refusal;
use crate::collection::door::Ended;
use crate::selector::SelectorError;

/// A request that is not fulfilled: status and reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refused {
    pub(super) status: StatusCode,
    pub(super) refusal: Refusal,
}

impl Refused {
    fn new(status: StatusCode, error: String) -> Self {
        Self { status, refusal: Refusal { error, ..Refusal::default() } }
    }

    /// 400: the request makes no sense as it is.
    pub(super) fn bad(error: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, error.into())
    }

    /// 400: a selector that does not parse.
    pub(super) fn selector(error: &SelectorError) -> Self {
        let mut refused = Self::bad(error.to_string()).remedy("for example label:app=web,state in (running,paused)");
        refused.refusal.column = Some(error.column());
        refused
    }

    /// 403: not for this peer.
    pub(super) fn forbidden(error: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, error.into())
    }

    /// 404: there is no such thing.
    pub(super) fn not_found(error: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, error.into())
    }

    /// 409: it could mean several.
    pub(super) fn conflict(error: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, error.into())
    }

    /// 408: it does not arrive.
    pub(super) fn too_slow(error: impl Into<String>) -> Self {
        Self::new(StatusCode::REQUEST_TIMEOUT, error.into())
    }

    /// 413: more than is read.
    pub(super) fn too_large(error: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, error.into())
    }

    /// 502: the kernel does not say.
    pub(super) fn unanswered(error: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_GATEWAY, error.into())
    }

    /// 503: a bound is reached.
    pub(super) fn busy(error: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, error.into()).remedy("end other clients, or try again later")
    }

    /// Adds what to do about it.
    pub(super) fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.refusal.remedy = Some(remedy.into());
        self
    }
}

impl From<Ended> for Refused {
    fn from(_: Ended) -> Self {
        Refused::new(StatusCode::SERVICE_UNAVAILABLE, "the tracker is ending".to_owned())
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        json(self.status, &self.refusal)
    }
}

/// A JSON answer: one value and a line break, so that it ends well on a terminal.
pub(super) fn json<T: Serialize>(status: StatusCode, value: &T) -> Response {
    let body = serde_json::to_vec(value).map(|mut body| {
        body.push(b'\n');
        body
    });
    match body {
        Ok(body) => {
            (status, [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], body).into_response()
        }
        // Only a map with keys that are no strings could do this, and the wire types have none.
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{{\"error\":\"{error}\"}}\n")).into_response(),
    }
}
