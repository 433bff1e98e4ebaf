//! How the program ends: one exit code for each thing a script may want to tell apart.

use anyhow::Context;
use std::fmt::Display;
use std::io::{Write, stderr, stdout};
use tch_diffusers::Error;

pub(crate) const EXIT_CODES: &str = "\
Exit codes:
  0    done
  1    it failed on the way (out of memory, a broken file, no room on the disk)
  2    bad input (an option or a value that does not fit)
  3    the model is missing, incomplete or of a kind that is not supported
  130  stopped by Ctrl-C; no file was written";

const DONE: u8 = 0;
const FAILED: u8 = 1;
const BAD_INPUT: u8 = 2;
const MISSING_MODEL: u8 = 3;
const INTERRUPTED: u8 = 130;

/// Ctrl-C, between two steps.
#[derive(Debug, thiserror::Error)]
#[error("stopped")]
pub(crate) struct Interrupted;

/// The model could not be loaded.
#[derive(Debug, thiserror::Error)]
#[error("the model cannot be loaded")]
pub(crate) struct ModelError;

/// Reports an error on standard error, and gives its exit code.
pub(crate) fn exit_code(done: anyhow::Result<()>) -> u8 {
    let Err(error) = done else { return DONE };
    if error.is::<Interrupted>() {
        complain("stopped, nothing was written");
        return INTERRUPTED;
    }
    complain(format!("error: {}", told(&error)));
    if error.is::<ModelError>() {
        return MISSING_MODEL;
    }
    match error.downcast_ref::<Error>().map(Error::kind) {
        Some(Error::Argument(_) | Error::Shape(_)) => BAD_INPUT,
        _ => FAILED,
    }
}

/// The error and its causes, each once: the library's errors say theirs already.
fn told(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |text, cause| match text.is_empty() {
        true => cause,
        false if text.ends_with(&cause) => text,
        false => format!("{text}: {cause}"),
    })
}

/// A line on standard output, for scripts: `println!` would panic where the output is full, or closed.
pub(crate) fn say(line: impl Display) -> anyhow::Result<()> {
    writeln!(stdout(), "{line}").context("standard output cannot be written to")
}

/// A line on standard error, for people. Where nobody can read it there is nobody to tell.
pub(crate) fn complain(line: impl Display) {
    let _ = writeln!(stderr(), "{line}");
}
