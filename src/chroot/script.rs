//! The first line of a script, as the kernel reads it (`fs/binfmt_script.c`, execve(2) "Interpreter scripts").
//!
//! `#!`, blanks, the interpreter's path, blanks, and whatever follows as ONE argument, all within the first 256
//! bytes. env(1) is special by custom: its argument names the program that is really wanted. Pure functions.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

/// `BINPRM_BUF_SIZE`: the kernel looks at no more.
pub const HEAD: usize = 256;

/// The kernel follows this many interpreters that are scripts themselves, then says `ELOOP`.
pub const MAX_DEPTH: usize = 5;

/// A `#!` line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shebang {
    /// The program that execve starts instead; relative ones depend on the working directory.
    pub interpreter: PathBuf,
    /// The rest of the line.
    pub argument: Option<OsString>,
}

impl Shebang {
    /// Reads the first bytes of a file; `None` where they begin otherwise, or name nothing.
    pub fn parse(head: &[u8]) -> Option<Self> {
        let line = head.get(..head.len().min(HEAD))?.strip_prefix(b"#!")?;
        let line = line.split(|&c| c == b'\n' || c == 0).next()?;
        let line = trim(line);
        let end = line.iter().position(|&c| is_blank(c)).unwrap_or(line.len());
        let (interpreter, argument) = (&line[..end], trim(&line[end..]));
        let interpreter = PathBuf::from(OsString::from_vec(interpreter.to_vec()));
        let argument = (!argument.is_empty()).then(|| OsStr::from_bytes(argument).to_owned());
        (!interpreter.as_os_str().is_empty()).then_some(Self { interpreter, argument })
    }

    /// The program that `#!/usr/bin/env X` is after, with env's own `-S` (or `-vS`), options and assignments skipped.
    pub fn env_program(&self) -> Option<OsString> {
        if self.interpreter.file_name() != Some(OsStr::new("env")) {
            return None;
        }
        let argument = self.argument.as_ref()?.as_bytes();
        if !argument.starts_with(b"-") {
            // Without -S the kernel passes one argument, blanks and all, and that is what env looks for.
            return Some(OsStr::from_bytes(argument).to_owned());
        }
        let is_name = |word: &&[u8]| !(word.is_empty() || word.starts_with(b"-") || word.contains(&b'='));
        let mut words = argument.strip_prefix(b"-S").unwrap_or(argument).split(|&c| is_blank(c));
        words.find(is_name).map(|word| OsStr::from_bytes(word).to_owned())
    }
}

fn is_blank(c: u8) -> bool {
    c == b' ' || c == b'\t'
}

fn trim(mut text: &[u8]) -> &[u8] {
    while let [first, rest @ ..] = text {
        if !is_blank(*first) {
            break;
        }
        text = rest;
    }
    while let [rest @ .., last] = text {
        if !is_blank(*last) {
            break;
        }
        text = rest;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_as_the_kernel_reads_them() {
        let parse = |text: &str| {
            Shebang::parse(text.as_bytes()).map(|s| (s.interpreter, s.argument.unwrap_or_default()))
        };
        assert_eq!(parse("#!/bin/sh\necho"), Some(("/bin/sh".into(), "".into())));
        assert_eq!(parse("#! \t/bin/sh -e  -u \n"), Some(("/bin/sh".into(), "-e  -u".into())));
        assert_eq!(parse("#!/bin/sh\r\n"), Some(("/bin/sh\r".into(), "".into())));
        for nothing in ["", "#", "#!", "#!\n/bin/sh", "/bin/sh"] {
            assert_eq!(parse(nothing), None, "{nothing:?}");
        }
    }

    #[test]
    fn env_is_seen_through() {
        let program = |text: &str| Shebang::parse(text.as_bytes()).unwrap().env_program();
        assert_eq!(program("#!/usr/bin/env python3\n"), Some("python3".into()));
        assert_eq!(program("#!/usr/bin/env -S A=b python3 -u\n"), Some("python3".into()));
        assert_eq!(program("#!/usr/bin/env -Spython3 -u\n"), Some("python3".into()));
        assert_eq!(program("#!/usr/bin/env -vS -i perl\n"), Some("perl".into()));
        assert_eq!(program("#!/usr/bin/env\n"), None);
        assert_eq!(program("#!/bin/sh -x\n"), None);
    }
}
