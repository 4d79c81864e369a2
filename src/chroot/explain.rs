//! Why a program that is there does not start.
//!
//! execve(2) answers `ENOENT` not only when the program is missing but also when the loader that it names, or the
//! interpreter of its `#!` line, is: the classic surprise of a hand-made root file system. The kernel says no more,
//! so the files are read again here, inside the root, and the first thing that is wrong is put into words. A library
//! that is missing is not execve's failure (the loader starts, complains and exits with 127), but it is the next
//! surprise, so it is found here too.
//!
//! Runs in the calling process after the failure. Reads only, and only inside the root.

use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::sys::stat::{Mode, fstat};

use crate::chroot::elf::{Elf, NoElf, ReadAt};
use crate::chroot::resolve::{Missing, Resolver};
use crate::chroot::script::{self, Shebang};
use crate::error::Errno;
use crate::sys::path::{open_file_in_root, openat2_in_root, readlink_in_root};

/// Says why execve of `path`, an absolute path in `root`, fails or how the program will fail next. `None` where the
/// path is simply not there, or where nothing wrong is found.
pub fn explain_exec_failure(root: BorrowedFd<'_>, path: &Path) -> Option<String> {
    let mut path = path.to_owned();
    for depth in 0..=script::MAX_DEPTH {
        if let Some(reason) = explain_file(root, &path) {
            return Some(reason);
        }
        let interpreter = shebang(root, &path)?.interpreter;
        if depth == script::MAX_DEPTH {
            return Some(format!(
                "more than {depth} interpreters (#!) in a row; the last is {}",
                shown(&interpreter)
            ));
        }
        if let Some(reason) = explain_interpreter(root, &path, &interpreter) {
            return Some(reason);
        }
        path = interpreter;
    }
    None
}

fn shebang(root: BorrowedFd<'_>, path: &Path) -> Option<Shebang> {
    let mut head = [0; script::HEAD];
    let count = open_file_in_root(root, path).ok()?.read_some(0, &mut head);
    Shebang::parse(&head[..count])
}

/// What is wrong with the file itself, its loader or its libraries.
fn explain_file(root: BorrowedFd<'_>, path: &Path) -> Option<String> {
    let name = shown(path);
    let file = match open_file_in_root(root, path) {
        Ok(file) => file,
        Err(Errno::ENOENT) => {
            let target = readlink_in_root(root, path).ok()?;
            return Some(format!(
                "{name} is a symlink to {}, which does not exist inside the root",
                shown(&target)
            ));
        }
        Err(Errno::ELOOP) => return Some(format!("{name} leads through too many symlinks, or in a circle")),
        Err(Errno::EISDIR) => return Some(format!("{name} is a directory")),
        Err(Errno::EINVAL) => return Some(format!("{name} is neither a file nor a symlink to one")),
        Err(_) => return None,
    };
    if fstat(&file).is_ok_and(|data| data.st_mode & 0o111 == 0) {
        return Some(format!("{name} is there, but nobody may execute it (no x in its mode)"));
    }
    let mut head = [0; script::HEAD];
    let count = file.read_some(0, &mut head);
    if Shebang::parse(&head[..count]).is_some() {
        return None;
    }
    match Elf::read(&file) {
        Ok(elf) => explain_elf(root, path, elf),
        Err(NoElf::NotElf) if count == 0 => Some(format!("{name} is an empty file")),
        Err(NoElf::NotElf) => Some(format!("{name} is neither an ELF program nor a script with a #! line")),
        Err(NoElf::Foreign) => Some(format!("{name} is an ELF program for machines of the other byte order")),
        Err(NoElf::Malformed) => Some(format!("{name} is a damaged ELF file")),
    }
}

fn explain_elf(root: BorrowedFd<'_>, path: &Path, elf: Elf) -> Option<String> {
    let (machine, is_64) = (elf.machine, elf.is_64);
    let closure = Resolver::new(root).closure(path, path, &elf.into());
    let name = shown(path);
    let (loaders, libraries): (Vec<&Missing>, Vec<_>) =
        closure.missing.iter().partition(|m| m.is_interpreter);
    if let Some(loader) = loaders.first() {
        let loader = shown(Path::new(&loader.name));
        return Some(format!(
            "{name} is there, but the loader that it names (PT_INTERP {loader}) is not inside the root; \
             execve reports that as if the program itself were missing"
        ));
    }
    if let Some(first) = libraries.first() {
        let list: Vec<_> = libraries.iter().map(|m| shown(Path::new(&m.name))).collect();
        return Some(format!(
            "{name} is there and so is its loader, but not the libraries {} (searched: {})",
            list.join(", "),
            first.searched.join(", ")
        ));
    }
    let own = own_machine()?;
    (own != (machine, is_64) && !runs_beside(own, (machine, is_64))).then(|| {
        format!("{name} is a program for another machine (ELF machine {machine}; this one is {})", own.0)
    })
}

fn explain_interpreter(root: BorrowedFd<'_>, script: &Path, interpreter: &Path) -> Option<String> {
    let (script, name) = (shown(script), shown(interpreter));
    if interpreter.to_string_lossy().ends_with('\r') {
        return Some(format!(
            "{script} is there, but its first line ends in a carriage return (a file from Windows?), so that \
             it asks for the interpreter {name}"
        ));
    }
    match openat2_in_root(root, interpreter, OFlag::O_PATH, Mode::empty()) {
        Err(Errno::ENOENT) if readlink_in_root(root, interpreter).is_err() => Some(format!(
            "{script} is there, but the interpreter of its first line (#! {name}) is not inside the root; \
             execve reports that as if the script itself were missing"
        )),
        _ => None,
    }
}

/// Machine and class of the program that asks: what this kernel runs for certain.
fn own_machine() -> Option<(u16, bool)> {
    let own = Elf::read(&std::fs::File::open("/proc/self/exe").ok()?).ok()?;
    Some((own.machine, own.is_64))
}

/// x86-64 kernels run i386 and x32 programs, aarch64 kernels may run arm ones.
fn runs_beside(own: (u16, bool), other: (u16, bool)) -> bool {
    matches!((own.0, other.0), (62, 3 | 62) | (183, 40))
}

/// A path with its control characters made visible.
fn shown(path: &Path) -> String {
    PathBuf::from(path).display().to_string().escape_debug().to_string()
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;
    use crate::chroot::testing::{Scratch, build_elf};
    use crate::sys::path::open_root;

    #[test]
    fn each_surprise_has_its_words() {
        let scratch = Scratch::new("explain");
        let write = |name: &str, bytes: &[u8]| {
            std::fs::create_dir_all(scratch.path(name).parent().unwrap()).unwrap();
            std::fs::write(scratch.path(name), bytes).unwrap();
            std::fs::set_permissions(scratch.path(name), PermissionsExt::from_mode(0o755)).unwrap();
        };
        write("bin/prog", &build_elf(true, "/lib/no-loader.so.1", &[]));
        write("bin/lacks", &build_elf(true, "/lib/ld.so", &[(1, "libgone.so.3")]));
        write("lib/ld.so", &build_elf(true, "/lib/ld.so", &[]));
        write("bin/script", b"#!/bin/nothere -x\n");
        write("bin/dos", b"#!/bin/prog\r\n");
        write("bin/outer", b"#!/bin/script\n");
        write("bin/self", b"#!/bin/self\n");
        write("bin/text", b"echo hello\n");
        write("bin/plain", b"x");
        std::fs::set_permissions(scratch.path("bin/plain"), PermissionsExt::from_mode(0o644)).unwrap();
        symlink("/bin/dash", scratch.path("bin/sh")).unwrap();
        symlink("loop", scratch.path("bin/loop")).unwrap();
        let root = open_root(scratch.dir()).unwrap();
        for (program, words) in [
            ("/bin/prog", "the loader that it names (PT_INTERP /lib/no-loader.so.1) is not inside the root"),
            ("/bin/lacks", "not the libraries libgone.so.3"),
            ("/bin/script", "(#! /bin/nothere) is not inside the root"),
            ("/bin/outer", "/bin/script is there, but the interpreter"),
            ("/bin/dos", "carriage return"),
            ("/bin/self", "more than 5 interpreters"),
            ("/bin/text", "neither an ELF program nor a script"),
            ("/bin/plain", "nobody may execute it"),
            ("/bin/sh", "is a symlink to /bin/dash, which does not exist inside the root"),
            ("/bin/loop", "circle"),
            ("/bin", "is a directory"),
        ] {
            let reason = explain_exec_failure(root.as_fd(), Path::new(program)).unwrap_or_default();
            assert!(reason.contains(words), "{program}: {reason}");
        }
        assert_eq!(explain_exec_failure(root.as_fd(), Path::new("/bin/none")), None);
        let host = open_root(Path::new("/")).unwrap();
        assert_eq!(explain_exec_failure(host.as_fd(), Path::new("/bin/sh")), None);
    }
}
