//! RFC 9457 Problem Details: what the API says when it does not do what was asked.

use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, Response, StatusCode, header};
use serde_json::json;

use crate::admin::OpError;

/// Every kind of problem, with its status.
pub(super) const KINDS: &[(u16, &str)] = &[
    (400, "bad-request"),
    (401, "not-signed-in"),
    (401, "sign-in-failed"),
    (403, "forbidden"),
    (403, "csrf"),
    (404, "unknown-path"),
    (404, "not-found"),
    (404, "no-such-user"),
    (405, "wrong-method"),
    (408, "too-slow"),
    (409, "exists"),
    (409, "not-possible"),
    (413, "too-large"),
    (415, "media-type"),
    (422, "bad-address"),
    (422, "unknown-domain"),
    (422, "bad-password"),
    (422, "configuration"),
    (429, "too-many-requests"),
    (500, "internal"),
    (503, "closing"),
];

/// Why a request was not done. `detail` is for the person who asked.
#[derive(Debug)]
pub(super) struct Problem {
    pub(super) status: StatusCode,
    /// The end of the problem's type: `urn:trunkline:problem:<kind>`.
    pub(super) kind: &'static str,
    title: &'static str,
    pub(super) detail: String,
    header: Option<(HeaderName, HeaderValue)>,
}

impl Problem {
    fn new(
        status: StatusCode,
        kind: &'static str,
        title: &'static str,
        detail: impl Into<String>,
    ) -> Problem {
        Problem { status, kind, title, detail: detail.into(), header: None }
    }

    pub(super) fn bad_request(detail: impl Into<String>) -> Problem {
        Problem::new(StatusCode::BAD_REQUEST, "bad-request", "The request was not understood", detail)
    }

    pub(super) fn unknown_path(path: &str) -> Problem {
        let path: String = path.chars().take(200).collect();
        let detail = format!("there is nothing at {path}");
        Problem::new(StatusCode::NOT_FOUND, "unknown-path", "There is no such path", detail)
    }

    pub(super) fn wrong_method(allowed: &'static str) -> Problem {
        let detail = format!("this operation is asked for with {allowed}");
        let mut problem =
            Problem::new(StatusCode::METHOD_NOT_ALLOWED, "wrong-method", "The method is another", detail);
        problem.header = Some((header::ALLOW, HeaderValue::from_static(allowed)));
        problem
    }

    pub(super) fn media_type() -> Problem {
        Problem::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "media-type",
            "The body is of another type",
            "send application/json",
        )
    }

    pub(super) fn too_large(most: usize) -> Problem {
        let detail = format!("a body has at most {most} bytes");
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", "The body is too large", detail)
    }

    /// Nobody is signed in, or the token is not good.
    pub(super) fn unauthorized(detail: &str) -> Problem {
        let mut problem = Problem::new(StatusCode::UNAUTHORIZED, "not-signed-in", "Sign in first", detail);
        problem.header =
            Some((header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"trunkline\"")));
        problem
    }

    /// A sign-in that did not succeed. Whether the account exists is not told.
    pub(super) fn sign_in(detail: &str) -> Problem {
        Problem::new(StatusCode::UNAUTHORIZED, "sign-in-failed", "The sign-in failed", detail)
    }

    /// A browser's request that may have been made by another site's page.
    pub(super) fn csrf(detail: &str) -> Problem {
        Problem::new(StatusCode::FORBIDDEN, "csrf", "Not asked for by the console's own page", detail)
    }

    /// The request did not come to an end.
    pub(super) fn too_slow() -> Problem {
        let detail = "the body did not come to its end in time";
        Problem::new(StatusCode::REQUEST_TIMEOUT, "too-slow", "The request took too long", detail)
    }

    pub(super) fn forbidden(detail: impl Into<String>) -> Problem {
        Problem::new(StatusCode::FORBIDDEN, "forbidden", "This is not permitted", detail)
    }

    /// `seconds` from now it may be tried again.
    pub(super) fn too_many(seconds: u64) -> Problem {
        let detail = format!("too many requests: try again in {seconds} s");
        let mut problem =
            Problem::new(StatusCode::TOO_MANY_REQUESTS, "too-many-requests", "Too many requests", detail);
        problem.header = Some((header::RETRY_AFTER, HeaderValue::from(seconds)));
        problem
    }

    pub(super) fn ours(detail: impl Into<String>) -> Problem {
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "The server failed", detail)
    }

    pub(super) fn into_response(self) -> Response<Body> {
        let body = json!({
            "type": format!("urn:trunkline:problem:{}", self.kind),
            "title": self.title,
            "status": self.status.as_u16(),
            "detail": self.detail,
        });
        let mut response = Response::new(Body::from(body.to_string()));
        *response.status_mut() = self.status;
        let media_type = HeaderValue::from_static("application/problem+json");
        response.headers_mut().insert(header::CONTENT_TYPE, media_type);
        if let Some((name, value)) = self.header {
            response.headers_mut().insert(name, value);
        }
        response
    }
}

impl From<OpError> for Problem {
    fn from(error: OpError) -> Problem {
        let detail = error.to_string();
        let (status, kind, title) = match &error {
            OpError::BadAddress(_) => (StatusCode::UNPROCESSABLE_ENTITY, "bad-address", "Not an address"),
            OpError::UnknownDomain(_) => {
                (StatusCode::UNPROCESSABLE_ENTITY, "unknown-domain", "Not a domain of this server")
            }
            OpError::BadPassword(_) => {
                (StatusCode::UNPROCESSABLE_ENTITY, "bad-password", "Not to be used as a password")
            }
            OpError::Config(_) => {
                (StatusCode::UNPROCESSABLE_ENTITY, "configuration", "The configuration has errors")
            }
            OpError::Exists(_) => (StatusCode::CONFLICT, "exists", "There is one already"),
            OpError::NotPossible(_) => (StatusCode::CONFLICT, "not-possible", "Not possible now"),
            OpError::NoSuchUser(_) => (StatusCode::NOT_FOUND, "no-such-user", "There is no such account"),
            OpError::NotFound(_) => (StatusCode::NOT_FOUND, "not-found", "There is no such thing"),
            OpError::Forbidden(_) => return Problem::forbidden(detail),
            OpError::BadRequest(_) => return Problem::bad_request(detail),
            OpError::NotRunning | OpError::Closing => {
                (StatusCode::SERVICE_UNAVAILABLE, "closing", "The server is shutting down")
            }
            OpError::Store(_) => {
                // The text is for the log; who asked can do nothing with it.
                tracing::error!(%error, "an operation failed");
                return Problem::ours("the database failed; the server's log says why");
            }
        };
        Problem::new(status, kind, title, detail)
    }
}
