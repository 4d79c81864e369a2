//! The line for mount(8) that makes the overlay of some [`Options`], for `explain()` and its script. Pure.
//!
//! mount(8) splits its `-o` at commas, except after a backslash (which it passes on, and overlayfs takes off) and
//! between double quotes (which it passes on too). So the escapes of mount(2) survive, and a lone double quote does
//! not: a path with one goes in as a redirected descriptor, `-o lowerdir=/proc/self/fd/3 … 3<'path'`.

use std::ffi::OsString;
use std::os::fd::RawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use super::options::{MAX_VALUE, Options};
use crate::error::{Error, Result};
use crate::shell::quote;

/// A POSIX shell redirects descriptors of one digit only: `3<dir` to `9<dir`.
const SHELL_FDS: std::ops::RangeInclusive<RawFd> = 3..=9;

impl Options {
    /// The line for mount(8) that makes the same overlay, quoted for sh(1): `mount -t overlay overlay -o … merged`.
    /// Paths that mount(8) would tear apart (a double quote) or that are too long go in as redirected descriptors.
    ///
    /// Errors: [`Error::Spec`] where sh has too few descriptors for that.
    pub fn mount_line(&self, merged: &Path) -> Result<OsString> {
        let merged = merged.as_os_str().as_bytes();
        let word =
            if merged.starts_with(b"-") { [b"-- ", &quote(merged)[..]].concat() } else { quote(merged) };
        Ok(OsString::from_vec(self.mount_command(b"", &word)?))
    }

    /// The same with further options first (such as `nodev,`), and with `merged` as the word that sh(1) is to read.
    ///
    /// # Errors
    /// As [`Self::mount_line`].
    pub fn mount_command(&self, first_options: &[u8], merged: &[u8]) -> Result<Vec<u8>> {
        self.check()?;
        let first = *SHELL_FDS.start();
        let forced: Vec<bool> =
            self.layers().map(|(_, path)| path.as_os_str().as_bytes().contains(&b'"')).collect();
        let (data, opens) = self.fit_data(forced, first)?;
        if opens.last().is_some_and(|open| !SHELL_FDS.contains(&open.fd)) {
            let n = opens.len();
            return Err(Error::spec(format!("lower: {n} layers need a descriptor; sh(1) has 7 to give")));
        }
        let mut line = Vec::new();
        if data.split(|b| *b == b',').any(|option| option.len() > MAX_VALUE) {
            // util-linux 2.39 and later pass every option by fsconfig(2), which stops at 255 bytes.
            line.extend_from_slice(b"LIBMOUNT_FORCE_MOUNT2=always ");
        }
        line.extend_from_slice(b"mount -t overlay overlay -o ");
        line.extend(quote([first_options, &data].concat()));
        line.push(b' ');
        line.extend_from_slice(merged);
        for open in opens {
            line.extend(format!(" {}<", open.fd).into_bytes());
            line.extend(quote(open.path.to_bytes()));
        }
        Ok(line)
    }
}
