//! Requests to the hub. hf-hub's own calls have no time-outs and trust every answer, so that they are
//! made here, on the same HTTP client. The token goes to the endpoint and to no server that it leads to.

use std::io;
use std::thread::sleep;
use std::time::Duration;

use recipe::hub::HubReference;
use ureq::http::Response;
use ureq::{Agent, Body};

use super::error::HubError;
use super::settings::{DOWNLOAD_TIMEOUT, METADATA_TIMEOUT, Settings};

/// Pauses before a request is made again.
pub const PAUSES: [Duration; 3] = [
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
];

/// Longest list of files that is read: about half a million names.
const LISTING_BYTES: u64 = 64 << 20;

/// Longest chain of redirections.
const MAX_REDIRECTS: usize = 10;

/// What the hub says of a file before it sends it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metadata {
    /// Identity of its content; the SHA-256 of large files.
    pub etag: String,
    /// Bytes, where they are said.
    pub size: Option<u64>,
}

/// Asks the hub.
pub struct Client {
    agent: Agent,
    endpoint: String,
    token: Option<String>,
    metadata: Bound,
    download: Bound,
}

/// The longest silence, and the variable that sets it.
#[derive(Debug, Clone, Copy)]
struct Bound {
    silence: Duration,
    variable: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Method {
    Head,
    Get,
}

impl Client {
    /// For the hub and the token of these settings.
    pub fn new(settings: &Settings) -> Self {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .user_agent(concat!("rlhf/", env!("CARGO_PKG_VERSION")));
        Self {
            agent: config.build().new_agent(),
            endpoint: settings.endpoint.clone(),
            token: settings.token.clone(),
            metadata: Bound {
                silence: settings.metadata_timeout,
                variable: METADATA_TIMEOUT,
            },
            download: Bound {
                silence: settings.download_timeout,
                variable: DOWNLOAD_TIMEOUT,
            },
        }
    }

    /// An address on the hub.
    pub fn url(&self, path: &str) -> String {
        format!("{}/{path}", self.endpoint)
    }

    /// The body of the answer that lists a repository's files.
    ///
    /// # Errors
    /// No such repository or revision, no access, another name, no connection, a silence.
    pub fn listing(&self, subject: &HubReference, url: &str) -> Result<Vec<u8>, HubError> {
        retried(|| {
            let mut answer = self.send(Method::Get, url, None, self.metadata)?;
            if let Some(next) = location(url, &answer)? {
                return Err(renamed(subject, url, &next));
            }
            if !answer.status().is_success() {
                return Err(self.refusal(subject, url, &answer));
            }
            let body = answer.body_mut().with_config().limit(LISTING_BYTES);
            body.read_to_vec()
                .map_err(|error| self.failure(url, error, self.metadata))
        })
    }

    /// What the hub says of a file of the commit `subject`.
    ///
    /// # Errors
    /// No access, no connection, a silence, an answer that no hub gives.
    pub fn metadata(&self, subject: &HubReference, url: &str) -> Result<Metadata, HubError> {
        retried(|| {
            let mut place = url.to_owned();
            for _ in 0..MAX_REDIRECTS {
                let answer = self.send(Method::Head, &place, None, self.metadata)?;
                match location(&place, &answer)? {
                    // Where the file lies elsewhere, its address here says what it is.
                    Some(next) if header(&answer, "x-linked-etag").is_empty() => place = next,
                    None if !answer.status().is_success() => {
                        return Err(self.file_refusal(subject, url, &answer));
                    }
                    _ => return described(subject, url, &answer),
                }
            }
            Err(wrong(url, "leads from one address to the next"))
        })
    }

    /// A file of the commit `subject`, from a byte on: the answer's status is 200 (from the start
    /// nevertheless), 206 (from there), or 416 (there is no such byte).
    ///
    /// # Errors
    /// No access, no connection, a silence.
    pub fn file(
        &self,
        subject: &HubReference,
        url: &str,
        from: u64,
    ) -> Result<Response<Body>, HubError> {
        let mut place = url.to_owned();
        for _ in 0..MAX_REDIRECTS {
            let from = (from > 0).then_some(from);
            let answer = self.send(Method::Get, &place, from, self.download)?;
            match (location(&place, &answer)?, answer.status().as_u16()) {
                (Some(next), _) => place = next,
                (None, 200 | 206 | 416) => return Ok(answer),
                _ => return Err(self.file_refusal(subject, url, &answer)),
            }
        }
        Err(wrong(url, "leads from one address to the next"))
    }

    /// What it means that a file's bytes stopped coming, `found` of `expected` being here.
    pub fn interruption(&self, url: &str, error: io::Error, at: (u64, u64)) -> HubError {
        match ureq::Error::from(error) {
            ureq::Error::Timeout(_) => time_out(url, self.download, true),
            _ => HubError::Broken {
                url: url.to_owned(),
                found: at.0,
                expected: at.1,
            },
        }
    }

    fn send(
        &self,
        method: Method,
        url: &str,
        from: Option<u64>,
        bound: Bound,
    ) -> Result<Response<Body>, HubError> {
        let request = match method {
            Method::Head => self.agent.head(url),
            Method::Get => self.agent.get(url),
        };
        let mut request = request
            .config()
            .timeout_connect(Some(bound.silence))
            .timeout_recv_response(Some(bound.silence))
            .timeout_per_read(Some(bound.silence))
            .build()
            // Lengths and ranges are those of the file itself.
            .header("accept-encoding", "identity");
        if let Some(token) = self.token.as_ref().filter(|_| self.is_here(url)) {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        if let Some(from) = from {
            request = request.header("range", format!("bytes={from}-"));
        }
        request
            .call()
            .map_err(|error| self.failure(url, error, bound))
    }

    /// Whether an address is one of the endpoint's.
    fn is_here(&self, url: &str) -> bool {
        url.strip_prefix(&self.endpoint)
            .is_some_and(|rest| rest.starts_with('/'))
    }

    fn failure(&self, url: &str, error: ureq::Error, bound: Bound) -> HubError {
        match error {
            ureq::Error::Timeout(_) => time_out(url, bound, false),
            ureq::Error::BadUri(_) | ureq::Error::Http(_) if self.is_here(url) => {
                HubError::Setting {
                    name: "HF_ENDPOINT",
                    value: self.endpoint.clone(),
                    expected: "an address such as https://huggingface.co",
                }
            }
            other => HubError::Unreachable {
                url: url.to_owned(),
                source: Box::new(other),
            },
        }
    }

    /// What a status other than success means, by the codes that the hub adds to it.
    fn refusal(&self, subject: &HubReference, url: &str, answer: &Response<Body>) -> HubError {
        let (repo, endpoint) = (subject.repo().to_owned(), self.endpoint.clone());
        let token = self.token.is_some();
        match (answer.status().as_u16(), header(answer, "x-error-code")) {
            (401 | 403, "GatedRepo") => HubError::Gated {
                repo,
                endpoint,
                token,
            },
            (404, "RevisionNotFound") => HubError::Revision {
                repo,
                revision: subject.revision().to_owned(),
                endpoint,
            },
            (401, "") if token => HubError::Token { endpoint },
            (401 | 404, _) => HubError::Missing {
                repo,
                endpoint,
                token,
            },
            (status, _) => HubError::Status {
                url: url.to_owned(),
                status,
                said: said(answer),
            },
        }
    }

    /// The same for a file that the repository lists.
    fn file_refusal(&self, subject: &HubReference, url: &str, answer: &Response<Body>) -> HubError {
        match answer.status().as_u16() {
            404 => wrong(url, "is listed and is not there"),
            _ => self.refusal(subject, url, answer),
        }
    }
}

/// Makes a request again, after a pause, while it fails for reasons that pass.
fn retried<T>(request: impl Fn() -> Result<T, HubError>) -> Result<T, HubError> {
    for pause in PAUSES {
        match request() {
            Err(error) if error.is_passing() => sleep(pause),
            other => return other,
        }
    }
    request()
}

/// Where an answer leads, if it leads elsewhere.
fn location(url: &str, answer: &Response<Body>) -> Result<Option<String>, HubError> {
    if !matches!(answer.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
        return Ok(None);
    }
    let next = header(answer, "location");
    if next.starts_with("https://") || next.starts_with("http://") {
        return Ok(Some(next.to_owned()));
    }
    let (scheme, rest) = url.split_once("://").unwrap_or(("https", url));
    let host = rest.split('/').next().unwrap_or(rest);
    match next.strip_prefix('/') {
        Some(path) if !path.starts_with('/') => Ok(Some(format!("{scheme}://{host}/{path}"))),
        _ => Err(wrong(
            url,
            &format!("leads to {next:?}, which is no address"),
        )),
    }
}

/// The name of a repository that the hub redirects to.
fn renamed(subject: &HubReference, url: &str, next: &str) -> HubError {
    let name = next
        .split_once("/api/models/")
        .map(|(_, rest)| rest.split("/revision/").next().unwrap_or(rest));
    match name.map(|name| HubReference::new(name, subject.revision())) {
        Some(Ok(now)) if now.repo() != subject.repo() => HubError::Renamed {
            repo: subject.repo().to_owned(),
            now: now.repo().to_owned(),
        },
        _ => wrong(url, &format!("leads to {next}")),
    }
}

fn described(
    subject: &HubReference,
    url: &str,
    answer: &Response<Body>,
) -> Result<Metadata, HubError> {
    let first = |names: [&str; 2]| {
        let mut values = names.map(|name| header(answer, name)).into_iter();
        values.find(|value| !value.is_empty()).unwrap_or("")
    };
    let etag = first(["x-linked-etag", "etag"]);
    let etag = etag.strip_prefix("W/").unwrap_or(etag).trim_matches('"');
    // It becomes a file's name.
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    if etag.is_empty() || etag.len() > 128 || !etag.chars().all(plain) {
        let kind = header(answer, "content-type");
        return Err(wrong(
            url,
            &format!("has no ETag that a hub gives (ETag {etag:?}, type {kind:?})"),
        ));
    }
    let commit = header(answer, "x-repo-commit");
    if !commit.is_empty() && commit != subject.revision() {
        let what = format!(
            "is of commit {commit}, {} was asked for",
            subject.revision()
        );
        return Err(wrong(url, &what));
    }
    let size = match header(answer, "x-linked-size") {
        // The length of an answer that leads elsewhere is not the file's.
        "" if answer.status().is_success() => header(answer, "content-length"),
        linked => linked,
    };
    Ok(Metadata {
        etag: etag.to_owned(),
        size: size.parse().ok(),
    })
}

/// A header's text; empty where there is none.
pub fn header<'a>(answer: &'a Response<Body>, name: &str) -> &'a str {
    let value = answer.headers().get(name);
    value.and_then(|value| value.to_str().ok()).unwrap_or("")
}

/// The hub's own words, as far as they fit a line.
fn said(answer: &Response<Body>) -> String {
    let words: String = header(answer, "x-error-message")
        .chars()
        .take(200)
        .collect();
    if words.is_empty() {
        words
    } else {
        format!(": {words}")
    }
}

pub fn wrong(url: &str, what: &str) -> HubError {
    HubError::Answer {
        url: url.to_owned(),
        what: what.to_owned(),
    }
}

fn time_out(url: &str, bound: Bound, resumes: bool) -> HubError {
    HubError::TimeOut {
        url: url.to_owned(),
        seconds: bound.silence.as_secs(),
        variable: bound.variable,
        resumes,
    }
}
