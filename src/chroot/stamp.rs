//! The identity of a file at one moment, by which a store of images sees that a source has changed. Runs in the
//! calling process.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// What stat(2) said about a file: enough to see that it was replaced or rewritten.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Stamp {
    /// `st_dev`, `st_ino`, `st_size`.
    pub file: [u64; 3],
    /// `st_mtime` in nanoseconds.
    pub modified: i128,
}

impl Stamp {
    /// Of `path`, symlinks followed; `None` where nothing is.
    pub fn of(path: &Path) -> Option<Self> {
        std::fs::metadata(path).ok().map(|data| Self::from(&data))
    }

    /// One word or four, for the index of the store; `-` where nothing is.
    pub(super) fn encode(stamp: Option<Self>) -> String {
        match stamp {
            Some(Self { file: [device, inode, size], modified }) => {
                format!("{device} {inode} {size} {modified}")
            }
            None => "-".to_owned(),
        }
    }
}

impl From<&std::fs::Metadata> for Stamp {
    fn from(data: &std::fs::Metadata) -> Self {
        let modified = i128::from(data.mtime()) * 1_000_000_000 + i128::from(data.mtime_nsec());
        Self { file: [data.dev(), data.ino(), data.size()], modified }
    }
}
