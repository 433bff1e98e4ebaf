//! Bringing one file into the cache.
//!
//! Until it is whole it is called `<etag>.incomplete`; a download that was cut goes on from there. What it has to be when
//! it is whole, its length and for large files its SHA-256, the Hub says beforehand.

use super::cache::{create_parent, is_name};
use super::client::wait;
use super::refusal::Refusal;
use super::repository::Repository;
use crate::error::{Error, Result};
use indicatif::ProgressBar;
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// How often in a row a download may be cut without a byte of it having come.
const TRIES: u32 = 4;

/// What the Hub says about a file beforehand.
#[derive(Debug)]
struct Description {
    etag: String,
    /// In bytes; a server that packs its answers does not say.
    size: Option<u64>,
}

/// How a part of a download ended.
enum Part {
    /// With everything there.
    Whole,
    /// Before that, for this reason.
    Cut(String),
}

impl Repository {
    /// The file in the cache, after bringing it there if it is not.
    pub(super) fn fetch(&self, file: &str) -> Result<PathBuf> {
        let pointer = self.cache.snapshot(&self.commit).join(file);
        if pointer.is_file() {
            return Ok(pointer);
        }
        let description = self.describe(file)?;
        let blob = self.cache.blob(&description.etag);
        create_parent(&blob)?;
        let _lock = self.cache.lock(&description.etag)?;
        if !blob.is_file() {
            self.download(file, &description, &blob)?;
        }
        self.cache.link(&description.etag, &self.commit, file)
    }

    fn describe(&self, file: &str) -> Result<Description> {
        let url = self.url(file);
        let answer = self.client.head(&url).map_err(|refusal| self.explain(&refusal, file))?;
        let foreign = |why: &str| self.explain(&Refusal::Foreign(format!("{url}: {why}")), file);
        if answer.header("X-Repo-Commit").is_none() {
            return Err(foreign("no X-Repo-Commit"));
        }
        let etag = answer.header("X-Linked-Etag").or(answer.header("ETag")).unwrap_or_default();
        let etag = etag.trim_start_matches("W/").trim_matches('"').to_string();
        if !is_name(&etag) {
            return Err(foreign("no ETag that a file can be called"));
        }
        let redirected = answer.header("Location").is_some();
        let size = answer.header("X-Linked-Size").or(answer.header("Content-Length").filter(|_| !redirected));
        Ok(Description { etag, size: size.and_then(|size| size.parse().ok()) })
    }

    fn download(&self, file: &str, description: &Description, blob: &Path) -> Result<()> {
        let incomplete = blob.with_file_name(format!("{}.incomplete", description.etag));
        let mut out =
            File::options().create(true).read(true).append(true).open(&incomplete).map_err(Error::io(&incomplete))?;
        let bar = self.progress_bar.start_bytes(description.size.unwrap_or(0), file.to_string());
        let mut tries = 1;
        loop {
            let had = out.metadata().map_err(Error::io(&incomplete))?.len();
            let part = self.download_part(file, description, &mut out, &incomplete, &bar)?;
            let have = out.metadata().map_err(Error::io(&incomplete))?.len();
            match part {
                Part::Whole => break,
                Part::Cut(_) if have > had => tries = 1,
                Part::Cut(_) if tries < TRIES => {
                    wait(tries);
                    tries += 1;
                }
                Part::Cut(why) => {
                    let of = description.size.map_or_else(String::new, |size| format!(" of {size}"));
                    return Err(Error::Hub(format!(
                        "{}: {file}: the connection broke after {have}{of} bytes ({why}): run it again, it goes on from there",
                        self.id
                    )));
                }
            }
        }
        bar.finish_and_clear();
        out.sync_all().map_err(Error::io(&incomplete))?;
        if let Err(error) = self.check_sum(file, description, &mut out, &incomplete) {
            drop(out);
            std::fs::remove_file(&incomplete).map_err(Error::io(&incomplete))?;
            return Err(error);
        }
        std::fs::rename(&incomplete, blob).map_err(Error::io(blob))
    }

    /// Asks for what is not there yet, and takes as much of it as comes.
    fn download_part(
        &self,
        file: &str,
        description: &Description,
        out: &mut File,
        incomplete: &Path,
        bar: &ProgressBar,
    ) -> Result<Part> {
        let mut have = out.metadata().map_err(Error::io(incomplete))?.len();
        if description.size.is_some_and(|size| have > size) {
            out.set_len(0).map_err(Error::io(incomplete))?;
            have = 0;
        }
        if description.size == Some(have) {
            return Ok(Part::Whole);
        }
        let answer = match self.client.get(&self.url(file), have) {
            Ok(answer) => answer,
            Err(Refusal::Status { status: 416, .. }) => {
                out.set_len(0).map_err(Error::io(incomplete))?;
                return Ok(Part::Cut("the server does not know the part that was asked for".into()));
            }
            Err(Refusal::Unreachable(why)) => return Ok(Part::Cut(why)),
            Err(refusal @ Refusal::Status { status, .. }) if refusal.is_passing() => {
                return Ok(Part::Cut(format!("the server answers {status}")));
            }
            Err(refusal) => return Err(self.explain(&refusal, file)),
        };
        if have > 0 && !continues(&answer, have) {
            out.set_len(0).map_err(Error::io(incomplete))?;
            have = 0;
        }
        let announced = answer.header("Content-Length").and_then(|length| length.parse::<u64>().ok());
        let wrong = |sent: u64, size: u64| {
            Error::Hub(format!(
                "{}: {file}: the file has {size} bytes, and the server sends {sent}: a proxy or mirror changes it; nothing \
                 was kept",
                self.id
            ))
        };
        if let (Some(size), Some(length)) = (description.size, announced)
            && have + length != size
        {
            out.set_len(0).map_err(Error::io(incomplete))?;
            return Err(wrong(have + length, size));
        }
        bar.set_position(have);
        let mut body = answer.into_reader();
        let mut buffer = vec![0; 1 << 17];
        loop {
            let count = match body.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => return Ok(Part::Cut(error.to_string())),
            };
            have += count as u64;
            if let Some(size) = description.size.filter(|&size| have > size) {
                out.set_len(0).map_err(Error::io(incomplete))?;
                return Err(wrong(have, size));
            }
            out.write_all(&buffer[..count]).map_err(Error::io(incomplete))?;
            bar.inc(count as u64);
        }
        match description.size {
            Some(size) if have < size => Ok(Part::Cut("it was closed early".into())),
            _ => Ok(Part::Whole),
        }
    }

    /// Holds a large file to its SHA-256, which is its ETag.
    fn check_sum(&self, file: &str, description: &Description, out: &mut File, incomplete: &Path) -> Result<()> {
        let etag = &description.etag;
        if etag.len() != 64 || !etag.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Ok(());
        }
        let mut digest = Sha256::new();
        out.seek(SeekFrom::Start(0)).and_then(|_| std::io::copy(out, &mut digest)).map_err(Error::io(incomplete))?;
        let found: String = digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        if found == etag.to_lowercase() {
            return Ok(());
        }
        Err(Error::Hub(format!(
            "{}: {file}: what came is not the file: its SHA-256 should be {etag} and is {found}; nothing was kept, run it again",
            self.id
        )))
    }
}

/// Whether an answer goes on at byte `from`, rather than beginning at the first.
fn continues(answer: &ureq::Response, from: u64) -> bool {
    let range = answer.header("Content-Range").and_then(|range| range.strip_prefix("bytes "));
    let start = range.and_then(|range| range.split('-').next()).and_then(|start| start.trim().parse().ok());
    answer.status() == 206 && start == Some(from)
}
