//! A server on this machine that speaks the Hub's protocol, and breaks it where it is told to.

use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

/// The commit that every revision is.
pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What goes wrong with an answer.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    /// This status in its place, and the Hub's word for it.
    Status(u16, &'static str),
    /// The connection ends after so many bytes of the body.
    Cut(usize),
    /// As many bytes more or fewer are announced and sent.
    Length(i64),
    /// As many bytes, but others.
    Changed,
    /// No header of the Hub's.
    Foreign,
    /// An ETag that leads out of the cache.
    Etag(&'static str),
    /// A redirect to itself.
    Loop,
    /// The whole file, whatever part was asked for.
    NoRanges,
}

/// A [`Fault`] of so many answers to requests that contain a text, such as `GET /lfs/unet`.
#[derive(Clone, Debug)]
struct Trouble {
    request: String,
    fault: Fault,
    times: usize,
}

#[derive(Debug, Default)]
struct State {
    /// The files of `tiny/shapes`, by path.
    files: BTreeMap<String, Vec<u8>>,
    troubles: Vec<Trouble>,
    /// What has to be sent to be let in.
    token: Option<String>,
    /// Each request: method, path, and `Range` or `token` where they were sent.
    log: Vec<String>,
    /// What the listing names beside the files.
    listed: Vec<String>,
    cdn: String,
}

/// The server, and a second one at which large files lie.
#[derive(Debug)]
pub(crate) struct HubServer {
    pub(crate) url: String,
    state: Arc<Mutex<State>>,
}

impl HubServer {
    /// A server of a repository `tiny/shapes` with these files.
    pub(crate) fn new<Bytes: Into<Vec<u8>>>(files: impl IntoIterator<Item = (String, Bytes)>) -> Self {
        let files = files.into_iter().map(|(path, bytes)| (path, bytes.into())).collect();
        let state = Arc::new(Mutex::new(State { files, ..State::default() }));
        state.lock().unwrap().cdn = listen(&state);
        Self { url: listen(&state), state }
    }

    /// A server of the files in `folder` and below.
    pub(crate) fn of_folder(folder: &Path) -> Self {
        let mut files = vec![];
        collect(folder, "", &mut files);
        Self::new(files)
    }

    /// Has something go wrong with the next `times` requests that contain `request`.
    pub(crate) fn trouble(&self, request: &str, fault: Fault, times: usize) {
        self.state.lock().unwrap().troubles.push(Trouble { request: request.into(), fault, times });
    }

    /// Lets in who sends this token, and no other.
    pub(crate) fn require(&self, token: &str) {
        self.state.lock().unwrap().token = Some(token.into());
    }

    /// Names files in the listing that are not there.
    pub(crate) fn list(&self, path: &str) {
        self.state.lock().unwrap().listed.push(path.into());
    }

    /// The requests since the last time.
    pub(crate) fn take_log(&self) -> Vec<String> {
        std::mem::take(&mut self.state.lock().unwrap().log)
    }
}

fn collect(folder: &Path, prefix: &str, files: &mut Vec<(String, Vec<u8>)>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = format!("{prefix}{}", path.file_name().unwrap().to_str().unwrap());
        if path.is_dir() {
            collect(&path, &format!("{name}/"), files);
        } else {
            files.push((name, std::fs::read(&path).unwrap()));
        }
    }
}

/// Begins to serve, and gives the URL. The threads end with the tests.
fn listen(state: &Arc<Mutex<State>>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let state = state.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (stream, state) = (stream.unwrap(), state.clone());
            // A connection that breaks is the other side's affair.
            std::thread::spawn(move || while serve(&stream, &state).is_some() {});
        }
    });
    url
}

struct Request {
    method: String,
    path: String,
    range: Option<usize>,
    token: Option<String>,
}

fn read_request(stream: &TcpStream) -> Option<Request> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|&count| count > 0)?;
    let mut words = line.split_whitespace().map(String::from);
    let mut request = Request { method: words.next()?, path: words.next()?, range: None, token: None };
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|&count| count > 0)?;
        let Some((name, value)) = line.trim().split_once(": ") else { return Some(request) };
        match name.to_lowercase().as_str() {
            "range" => request.range = value.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok(),
            "authorization" => request.token = value.strip_prefix("Bearer ").map(Into::into),
            _ => (),
        }
    }
}

struct Answer {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    cut: Option<usize>,
}

fn refuse(status: u16, code: &str) -> Answer {
    let headers = vec![("X-Error-Code", code.to_string()), ("X-Error-Message", format!("as told: {code}"))];
    Answer { status, headers, body: b"<html>no</html>".to_vec(), cut: None }
}

/// Answers one request; `None` when the connection is over.
fn serve(stream: &TcpStream, state: &Mutex<State>) -> Option<()> {
    let request = read_request(stream)?;
    let answer = answer(&request, &mut state.lock().unwrap());
    let mut head = format!("HTTP/1.1 {} OK\r\nContent-Length: {}\r\n", answer.status, answer.body.len());
    for (name, value) in &answer.headers {
        head += &format!("{name}: {value}\r\n");
    }
    let mut out = stream;
    out.write_all((head + "\r\n").as_bytes()).ok()?;
    if request.method != "HEAD" {
        let sent = answer.cut.unwrap_or(answer.body.len()).min(answer.body.len());
        out.write_all(&answer.body[..sent]).ok()?;
    }
    if answer.cut.is_some() {
        stream.shutdown(Shutdown::Both).ok()?;
        return None;
    }
    Some(())
}

fn answer(request: &Request, state: &mut State) -> Answer {
    let mut line = format!("{} {}", request.method, request.path);
    if let Some(from) = request.range {
        line += &format!(" from {from}");
    }
    if request.token.is_some() {
        line += " token";
    }
    let trouble = state.troubles.iter_mut().find(|trouble| trouble.times > 0 && line.contains(&trouble.request));
    let fault = trouble.map(|trouble| {
        trouble.times -= 1;
        trouble.fault
    });
    state.log.push(line);
    let url = request.path.clone();
    match fault {
        Some(Fault::Status(status, code)) => return refuse(status, code),
        Some(Fault::Loop) => {
            return Answer { status: 302, headers: vec![("Location", url)], body: vec![], cut: None };
        }
        _ => (),
    }
    let mut answer = respond(request, state, matches!(fault, Some(Fault::NoRanges)));
    match fault {
        Some(Fault::Cut(at)) => answer.cut = Some(at),
        Some(Fault::Length(by)) => answer.body.resize((answer.body.len() as i64 + by) as usize, 0),
        Some(Fault::Changed) => answer.body.iter_mut().for_each(|byte| *byte ^= 1),
        Some(Fault::Foreign) => answer.headers.clear(),
        Some(Fault::Etag(etag)) => {
            answer.headers.retain(|(name, _)| !name.to_lowercase().contains("etag"));
            answer.headers.push(("ETag", format!("\"{etag}\"")));
        }
        _ => (),
    }
    answer
}

fn respond(request: &Request, state: &State, no_ranges: bool) -> Answer {
    if let Some(path) = request.path.strip_prefix("/lfs/") {
        return state.files.get(path).map_or_else(|| refuse(404, ""), |bytes| part(bytes, request, no_ranges, vec![]));
    }
    if state.token.is_some() && request.token != state.token {
        return refuse(401, "GatedRepo");
    }
    let revisions = ["main", "v1.0", "refs%2Fpr%2F1", COMMIT];
    if let Some(revision) = request.path.strip_prefix("/api/models/tiny/shapes/revision/") {
        if !revisions.contains(&revision) {
            return refuse(404, "RevisionNotFound");
        }
        let names = state.files.keys().chain(&state.listed);
        let siblings: Vec<_> = names.map(|name| serde_json::json!({ "rfilename": name })).collect();
        let body = serde_json::json!({ "id": "tiny/shapes", "sha": COMMIT, "siblings": siblings });
        return Answer { status: 200, headers: vec![], body: body.to_string().into_bytes(), cut: None };
    }
    // As the Hub does for a repository that was renamed.
    if let Some(rest) = request.path.strip_prefix("/api/models/old/shapes/") {
        let location = format!("/api/models/tiny/shapes/{rest}");
        return Answer { status: 307, headers: vec![("Location", location)], body: vec![], cut: None };
    }
    let rest = request.path.strip_prefix("/old/shapes/").or(request.path.strip_prefix("/tiny/shapes/"));
    let Some((revision, path)) =
        rest.and_then(|rest| rest.strip_prefix("resolve/")).and_then(|rest| rest.split_once('/'))
    else {
        return refuse(401, "RepoNotFound");
    };
    let Some(bytes) = state.files.get(path).filter(|_| revisions.contains(&revision)) else {
        return refuse(404, "EntryNotFound");
    };
    let commit = ("X-Repo-Commit", COMMIT.to_string());
    if !path.ends_with(".safetensors") {
        let etag = format!("\"{}\"", &hash(bytes)[..40]);
        return part(bytes, request, no_ranges, vec![commit, ("ETag", etag)]);
    }
    let headers = vec![
        commit,
        ("X-Linked-Etag", format!("\"{}\"", hash(bytes))),
        ("X-Linked-Size", bytes.len().to_string()),
        ("ETag", "\"of-the-redirect\"".into()),
        ("Location", format!("{}/lfs/{path}", state.cdn)),
    ];
    Answer { status: 302, headers, body: b"there".to_vec(), cut: None }
}

/// The bytes that were asked for.
fn part(bytes: &[u8], request: &Request, no_ranges: bool, headers: Vec<(&'static str, String)>) -> Answer {
    let whole = Answer { status: 200, headers, body: bytes.to_vec(), cut: None };
    match request.range.filter(|_| !no_ranges) {
        None => whole,
        Some(from) if from >= bytes.len() => refuse(416, ""),
        Some(from) => {
            let mut headers = whole.headers;
            headers.push(("Content-Range", format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len())));
            Answer { status: 206, headers, body: bytes[from..].to_vec(), cut: None }
        }
    }
}

fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
