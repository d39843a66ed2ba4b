//! A small hub on the loopback, for tests: it lists the files of a repository at a revision, says of a file
//! what it is, sends large ones from another address, in ranges; and does so wrongly where a test wants it.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

use runtime::hash::hash_bytes;
use serde_json::json;
use tempfile::TempDir;

use crate::support::{Outcome, rlhf, scratch};

/// Names and contents of a commit's files.
pub type Files = BTreeMap<String, Vec<u8>>;

/// A request as it came.
#[derive(Debug, Clone)]
pub struct Seen {
    /// `METHOD PATH`.
    pub line: String,
    /// The header `Range`.
    pub range: Option<String>,
    /// The header `Authorization`.
    pub authorization: Option<String>,
}

/// An answer that will be sent.
#[derive(Debug, Clone)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    pub body: Vec<u8>,
    /// Bytes of the body after which nothing more is sent.
    pub cut: Option<usize>,
    /// How long the connection stays open then.
    pub silence: Duration,
}

impl Reply {
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: body.into(),
            cut: None,
            silence: Duration::ZERO,
        }
    }

    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.retain(|(known, _)| *known != name);
        self.headers.push((name, value.into()));
        self
    }
}

/// Changes what the server would say.
type Twist = Box<dyn FnMut(&Seen, Reply) -> Reply + Send>;

#[derive(Default)]
struct State {
    /// Commits of each repository, the oldest first.
    repos: BTreeMap<String, Vec<(String, Files)>>,
    tags: BTreeMap<String, String>,
    token: Option<String>,
    seen: Vec<Seen>,
    twist: Option<Twist>,
}

/// The hub, and the other address from which it sends large files. It listens until the tests end.
pub struct Server {
    hub: SocketAddr,
    store: SocketAddr,
    state: Arc<Mutex<State>>,
}

impl Server {
    pub fn start() -> Outcome<Self> {
        let (hub, store) = (
            TcpListener::bind("127.0.0.1:0")?,
            TcpListener::bind("127.0.0.1:0")?,
        );
        let server = Self {
            hub: hub.local_addr()?,
            store: store.local_addr()?,
            state: Arc::default(),
        };
        for listener in [hub, store] {
            let (state, store) = (Arc::clone(&server.state), server.store);
            thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let state = Arc::clone(&state);
                    // A client that goes away in the middle is no fault of the server.
                    thread::spawn(move || drop(answer(stream, &state, store)));
                }
            });
        }
        Ok(server)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .expect("no test panics while it holds this")
    }

    /// Makes a commit the newest of `main`; gives its name.
    pub fn push(&self, repo: &str, files: Files) -> String {
        let mut state = self.state();
        let commits = state.repos.entry(repo.to_owned()).or_default();
        let name = format!("{repo} {}", commits.len());
        let commit = hash_bytes(name.as_bytes())[..40].to_owned();
        commits.push((commit.clone(), files));
        commit
    }

    /// Calls a commit by another name.
    pub fn tag(&self, name: &str, commit: &str) {
        self.state().tags.insert(name.into(), commit.into());
    }

    /// Only who sends this token is answered.
    pub fn require(&self, token: &str) {
        self.state().token = Some(token.into());
    }

    /// From now on every answer goes through this.
    pub fn twist(&self, twist: impl FnMut(&Seen, Reply) -> Reply + Send + 'static) {
        self.state().twist = Some(Box::new(twist));
    }

    /// From now on answers are as they should be.
    pub fn mend(&self) {
        self.state().twist = None;
    }

    /// The requests since this was asked last.
    pub fn seen(&self) -> Vec<Seen> {
        std::mem::take(&mut self.state().seen)
    }

    /// Their lines.
    pub fn lines(&self) -> Vec<String> {
        self.seen().into_iter().map(|seen| seen.line).collect()
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.hub)
    }
}

/// A cache of a test's own, and the commands that use it.
pub struct Cache {
    pub folder: TempDir,
    endpoint: String,
}

impl Cache {
    pub fn of(server: &Server) -> Outcome<Self> {
        Ok(Self {
            folder: scratch()?,
            endpoint: server.endpoint(),
        })
    }

    /// `rlhf` with this cache and the test's hub; short time-outs.
    pub fn rlhf(&self) -> Command {
        let mut command = rlhf();
        for name in ["http_proxy", "https_proxy", "all_proxy"] {
            command.env_remove(name).env_remove(name.to_uppercase());
        }
        for name in [
            "HF_HUB_CACHE",
            "HF_TOKEN",
            "HF_TOKEN_PATH",
            "HF_HUB_OFFLINE",
            "XDG_CACHE_HOME",
        ] {
            command.env_remove(name);
        }
        command
            .env("HF_HOME", self.folder.path())
            .env("HF_ENDPOINT", &self.endpoint)
            .env("HF_HUB_DOWNLOAD_TIMEOUT", "1")
            .env("HF_HUB_ETAG_TIMEOUT", "2");
        command
    }

    /// `rlhf model pull ...`.
    pub fn pull(&self, arguments: &[&str]) -> Command {
        let mut command = self.rlhf();
        command.args(["model", "pull"]).args(arguments);
        command
    }

    /// A path below the cached repository.
    pub fn path(&self, repo: &str, below: &str) -> PathBuf {
        let folder = format!("hub/models--{}", repo.replace('/', "--"));
        self.folder.path().join(folder).join(below)
    }
}

fn answer(mut stream: TcpStream, state: &Mutex<State>, store: SocketAddr) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let header = |name: &str| {
        let lines = head.lines().filter_map(|line| line.split_once(": "));
        let mut found = lines.filter(|(known, _)| known.eq_ignore_ascii_case(name));
        found.next().map(|(_, value)| value.to_owned())
    };
    let line = head.lines().next().unwrap_or_default();
    let seen = Seen {
        line: line.trim_end_matches(" HTTP/1.1").to_owned(),
        range: header("range"),
        authorization: header("authorization"),
    };
    let reply = {
        let mut state = state.lock().expect("no test panics while it holds this");
        state.seen.push(seen.clone());
        let honest = honest(&state, &seen, store);
        match &mut state.twist {
            Some(twist) => twist(&seen, honest),
            None => honest,
        }
    };
    let reply = if reply
        .headers
        .iter()
        .any(|(name, _)| *name == "Content-Length")
    {
        reply
    } else {
        let length = reply.body.len().to_string();
        reply.with("Content-Length", length)
    };
    write!(
        stream,
        "HTTP/1.1 {} X\r\nConnection: close\r\n",
        reply.status
    )?;
    for (name, value) in &reply.headers {
        write!(stream, "{name}: {value}\r\n")?;
    }
    stream.write_all(b"\r\n")?;
    if !seen.line.starts_with("HEAD ") {
        let sent = reply.cut.unwrap_or(reply.body.len()).min(reply.body.len());
        stream.write_all(&reply.body[..sent])?;
    }
    stream.flush()?;
    thread::sleep(reply.silence);
    Ok(())
}

/// What the real hub says.
fn honest(state: &State, seen: &Seen, store: SocketAddr) -> Reply {
    let (_, path) = seen.line.split_once(' ').unwrap_or_default();
    let path = path.split('?').next().unwrap_or_default();
    if let Some(hash) = path.strip_prefix("/store/") {
        return stored(state, hash, seen.range.as_deref());
    }
    let wanted = state.token.as_ref().map(|token| format!("Bearer {token}"));
    if wanted.is_some() && wanted != seen.authorization {
        return match seen.authorization {
            Some(_) => Reply::new(401, "").with("X-Error-Message", "Invalid credentials"),
            None => Reply::new(401, "").with("X-Error-Code", "RepoNotFound"),
        };
    }
    if let Some(rest) = path.strip_prefix("/api/models/") {
        let (repo, revision) = rest.split_once("/revision/").unwrap_or_default();
        return listed(state, repo, &revision.replace("%2F", "/"));
    }
    let (repo, rest) = path[1..].split_once("/resolve/").unwrap_or_default();
    let (commit, name) = rest.split_once('/').unwrap_or_default();
    let commits = state.repos.get(repo).into_iter().flatten();
    let mut found = commits.filter(|(known, _)| known == commit);
    let Some(content) = found.find_map(|(_, files)| files.get(name)) else {
        return Reply::new(404, "").with("X-Error-Code", "EntryNotFound");
    };
    let hash = hash_bytes(content);
    let end = Path::new(name).extension().and_then(OsStr::to_str);
    if matches!(end, Some("safetensors" | "bin")) {
        return Reply::new(302, "Found")
            .with("Location", format!("http://{store}/store/{hash}"))
            .with("X-Repo-Commit", commit)
            .with("X-Linked-Size", content.len().to_string())
            .with("X-Linked-Etag", format!("\"{hash}\""));
    }
    Reply::new(200, content.clone())
        .with("X-Repo-Commit", commit)
        .with("ETag", format!("\"{}\"", &hash[..40]))
}

fn listed(state: &State, repo: &str, revision: &str) -> Reply {
    let Some(commits) = state.repos.get(repo) else {
        return Reply::new(404, "").with("X-Error-Code", "RepoNotFound");
    };
    let revision = state.tags.get(revision).map_or(revision, String::as_str);
    let found = if revision == "main" {
        commits.last()
    } else {
        commits.iter().find(|(commit, _)| commit == revision)
    };
    let Some((commit, files)) = found else {
        return Reply::new(404, "").with("X-Error-Code", "RevisionNotFound");
    };
    let sibling =
        |(name, content): (&String, &Vec<u8>)| json!({"rfilename": name, "size": content.len()});
    let siblings: Vec<_> = files.iter().map(sibling).collect();
    let body = json!({"id": repo, "sha": commit, "siblings": siblings}).to_string();
    Reply::new(200, body).with("Content-Type", "application/json")
}

/// Content by its hash, in ranges; the token is nobody's business here.
fn stored(state: &State, hash: &str, range: Option<&str>) -> Reply {
    let files = state
        .repos
        .values()
        .flatten()
        .flat_map(|(_, files)| files.values());
    let Some(content) = files
        .into_iter()
        .find(|content| hash_bytes(content) == hash)
    else {
        return Reply::new(404, "");
    };
    let from = range.and_then(|range| {
        range
            .strip_prefix("bytes=")?
            .strip_suffix('-')?
            .parse()
            .ok()
    });
    match from {
        None => Reply::new(200, content.clone()),
        Some(from) if from >= content.len() => Reply::new(416, ""),
        Some(from) => {
            let place = format!("bytes {from}-{}/{}", content.len() - 1, content.len());
            Reply::new(206, &content[from..]).with("Content-Range", place)
        }
    }
}
