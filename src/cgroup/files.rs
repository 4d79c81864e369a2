//! Reading and writing the small files of the cgroup file system: one `open` and one `read` or `write` each,
//! never creating or truncating, `O_CLOEXEC` as the standard library does it. Runs in the calling process.

use crate::error::{Error, Result};
use std::io::Write;
use std::path::Path;

/// Writes `value` with one write(2), as the interface requires. `step` is the words of an error.
pub(super) fn write(step: &str, file: &Path, value: &str) -> Result<()> {
    let opened = std::fs::OpenOptions::new().write(true).open(file);
    let mut opened = opened.map_err(|error| Error::io(step, "open", &error, Some(file)))?;
    let written =
        opened.write(value.as_bytes()).map_err(|error| Error::io(step, "write", &error, Some(file)))?;
    if written == value.len() {
        return Ok(());
    }
    Err(Error::step(step, "write", nix::errno::Errno::EIO, Some(file)))
}

/// The whole file without its last newline.
pub(super) fn read(step: &str, file: &Path) -> Result<String> {
    let text = std::fs::read_to_string(file).map_err(|error| Error::io(step, "read", &error, Some(file)))?;
    Ok(text.trim_end_matches('\n').to_owned())
}

/// The words of a file; none if it cannot be read.
pub(super) fn words(file: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    text.split_whitespace().map(str::to_owned).collect()
}

/// The number that a file holds; `max` and whatever is not a number are none.
pub(super) fn number(file: &Path) -> Option<u64> {
    std::fs::read_to_string(file).ok()?.trim().parse().ok()
}

/// The number behind `key` in a file of `key value` lines.
pub(super) fn keyed(file: &Path, key: &str) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

/// The pids of a `cgroup.procs`; 0 stands for a process of another pid namespace and is left out.
pub(super) fn pids(directory: &Path) -> Vec<i32> {
    let text = std::fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 0).collect()
}
