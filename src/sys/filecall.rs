//! The system calls on files that somebody else may have to carry out for us: a process inside a container, which
//! has power over files that are not the caller's (ids of a subuid range, modes that only root ignores).
//!
//! A [`Call`] is one system call as data: carried out here by [`Call::perform`], or written down for the other
//! process by [`Call::encode`], which sends the descriptors along and sees them at [`REMOTE_FD`] and after.
//! Only the constructors make one, so that every pointer is what its call expects.
//! Runs in the calling process.

use std::ffi::OsStr;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use nix::errno::Errno;

use super::raw;

/// The number of the first descriptor that comes with an encoded call.
pub const REMOTE_FD: u32 = 100;
/// The other process's descriptor of a trusted /proc.
const REMOTE_PROC: u64 = 5;

/// One argument.
#[derive(Debug, Clone)]
enum Arg<'a> {
    Value(u64),
    Fd(BorrowedFd<'a>),
    /// The address of these bytes.
    Bytes(Vec<u8>),
    /// Two arguments that name what a descriptor stands for: /proc/self/fd/N.
    Link(BorrowedFd<'a>),
}

/// A system call.
#[derive(Debug, Clone)]
pub struct Call<'a> {
    number: libc::c_long,
    args: Vec<Arg<'a>>,
    makes_fd: bool,
    /// Which argument is a mode that the umask cuts.
    mode: Option<usize>,
}

/// A call for the other process.
#[derive(Debug)]
pub struct Encoded<'a> {
    /// The number of the system call.
    pub number: u32,
    /// Its result is a descriptor.
    pub makes_fd: bool,
    /// Arguments; those in `pointers` are offsets into `blob`.
    pub args: [u64; 6],
    /// Bit n: argument n is an offset.
    pub pointers: u32,
    /// What the offsets point to.
    pub blob: Vec<u8>,
    /// Descriptors to send along.
    pub fds: Vec<BorrowedFd<'a>>,
}

fn string(text: &OsStr) -> nix::Result<Vec<u8>> {
    let mut bytes = text.as_bytes().to_vec();
    if bytes.contains(&0) {
        return Err(Errno::EINVAL);
    }
    bytes.push(0);
    Ok(bytes)
}

impl<'a> Call<'a> {
    fn new(number: libc::c_long, args: Vec<Arg<'a>>) -> Self {
        Self { number, args, makes_fd: false, mode: None }
    }

    /// openat2(2).
    pub fn openat2(
        dir: BorrowedFd<'a>,
        path: &OsStr,
        flags: u64,
        mode: u64,
        resolve: u64,
    ) -> nix::Result<Self> {
        let how: Vec<u8> = [flags, mode, resolve].iter().flat_map(|word| word.to_ne_bytes()).collect();
        let args = vec![Arg::Fd(dir), Arg::Bytes(string(path)?), Arg::Bytes(how), Arg::Value(24)];
        let mode = (mode != 0).then_some(2);
        Ok(Self { makes_fd: true, mode, ..Self::new(libc::SYS_openat2, args) })
    }

    /// mkdirat(2).
    pub fn mkdirat(dir: BorrowedFd<'a>, name: &OsStr, mode: u32) -> nix::Result<Self> {
        let args = vec![Arg::Fd(dir), Arg::Bytes(string(name)?), Arg::Value(mode.into())];
        Ok(Self { mode: Some(2), ..Self::new(libc::SYS_mkdirat, args) })
    }

    /// unlinkat(2); with `directory`, rmdir(2).
    pub fn unlinkat(dir: BorrowedFd<'a>, name: &OsStr, directory: bool) -> nix::Result<Self> {
        let flags = if directory { libc::AT_REMOVEDIR as u64 } else { 0 };
        let args = vec![Arg::Fd(dir), Arg::Bytes(string(name)?), Arg::Value(flags)];
        Ok(Self::new(libc::SYS_unlinkat, args))
    }

    /// symlinkat(2).
    pub fn symlinkat(target: &OsStr, dir: BorrowedFd<'a>, name: &OsStr) -> nix::Result<Self> {
        let args = vec![Arg::Bytes(string(target)?), Arg::Fd(dir), Arg::Bytes(string(name)?)];
        Ok(Self::new(libc::SYS_symlinkat, args))
    }

    /// renameat(2).
    pub fn renameat(
        dir: BorrowedFd<'a>,
        name: &OsStr,
        new_dir: BorrowedFd<'a>,
        new_name: &OsStr,
    ) -> nix::Result<Self> {
        let (name, new_name) = (Arg::Bytes(string(name)?), Arg::Bytes(string(new_name)?));
        let args = vec![Arg::Fd(dir), name, Arg::Fd(new_dir), new_name, Arg::Value(0)];
        Ok(Self::new(libc::SYS_renameat2, args))
    }

    /// linkat(2) of a file that has no name yet (`O_TMPFILE`, open(2)).
    pub fn linkat(file: BorrowedFd<'a>, dir: BorrowedFd<'a>, name: &OsStr) -> nix::Result<Self> {
        let follow = Arg::Value(libc::AT_SYMLINK_FOLLOW as u64);
        let args = vec![Arg::Link(file), Arg::Fd(dir), Arg::Bytes(string(name)?), follow];
        Ok(Self::new(libc::SYS_linkat, args))
    }

    /// chmod(2) of what a descriptor stands for, which may be `O_PATH`.
    pub fn chmod(file: BorrowedFd<'a>, mode: u32) -> Self {
        Self::new(libc::SYS_fchmodat, vec![Arg::Link(file), Arg::Value(mode.into())])
    }

    /// chown(2) of what a descriptor stands for; `u32::MAX` leaves an id as it is.
    pub fn chown(file: BorrowedFd<'a>, uid: u32, gid: u32) -> Self {
        let (uid, gid) = (Arg::Value(uid.into()), Arg::Value(gid.into()));
        let empty = Arg::Value(libc::AT_EMPTY_PATH as u64);
        Self::new(libc::SYS_fchownat, vec![Arg::Fd(file), Arg::Bytes(vec![0]), uid, gid, empty])
    }

    /// utimensat(2) of what a descriptor stands for; times in seconds and nanoseconds.
    pub fn utimens(file: BorrowedFd<'a>, atime: (i64, i64), mtime: (i64, i64)) -> Self {
        let times = [atime.0, atime.1, mtime.0, mtime.1].iter().flat_map(|word| word.to_ne_bytes()).collect();
        let empty = Arg::Value(libc::AT_EMPTY_PATH as u64);
        Self::new(libc::SYS_utimensat, vec![Arg::Fd(file), Arg::Bytes(vec![0]), Arg::Bytes(times), empty])
    }

    /// Carries it out: the descriptor that it made, if it makes one.
    pub fn perform(&self) -> nix::Result<Option<OwnedFd>> {
        let mut kept: Vec<Vec<u8>> = Vec::new();
        let mut args: Vec<usize> = Vec::with_capacity(6);
        for arg in &self.args {
            match arg {
                Arg::Value(value) => args.push(*value as usize),
                Arg::Fd(fd) => args.push(fd.as_raw_fd() as usize),
                Arg::Bytes(bytes) => args.push(bytes.as_ptr() as usize),
                Arg::Link(fd) => {
                    let path = format!("/proc/self/fd/{}\0", fd.as_raw_fd()).into_bytes();
                    args.push(libc::AT_FDCWD as usize);
                    args.push(path.as_ptr() as usize);
                    kept.push(path);
                }
            }
        }
        args.resize(6, 0);
        let args = [args[0], args[1], args[2], args[3], args[4], args[5]];
        // SAFETY: the constructors put the arguments together as each man page has them; `self` and `kept` own what
        // they point to.
        let outcome = unsafe { raw::call(self.number as usize, args) };
        drop(kept);
        let value = outcome.map_err(Errno::from_raw)?;
        Ok(self.makes_fd.then(|| super::adopt(value as i32)))
    }

    /// Writes it down. `umask` cuts the mode of what it makes, since the other process has a umask of its own.
    pub fn encode(&self, umask: u64) -> Encoded<'a> {
        let mut encoded = Encoded {
            number: self.number as u32,
            makes_fd: self.makes_fd,
            args: [0; 6],
            pointers: 0,
            blob: Vec::new(),
            fds: Vec::new(),
        };
        let mut at = 0;
        for (i, arg) in self.args.iter().enumerate() {
            let mode = self.mode == Some(i);
            match arg {
                Arg::Value(value) => encoded.args[at] = if mode { value & !umask } else { *value },
                Arg::Fd(fd) => encoded.args[at] = encoded.descriptor(*fd),
                Arg::Bytes(bytes) if mode => {
                    // The second word of struct open_how.
                    let mut bytes = bytes.clone();
                    if let Some(word) = bytes.get_mut(8..16) {
                        let value = u64::from_ne_bytes(word.try_into().unwrap_or_default()) & !umask;
                        word.copy_from_slice(&value.to_ne_bytes());
                    }
                    encoded.pointer(at, &bytes);
                }
                Arg::Bytes(bytes) => encoded.pointer(at, bytes),
                Arg::Link(fd) => {
                    let path = format!("self/fd/{}\0", encoded.descriptor(*fd));
                    encoded.args[at] = REMOTE_PROC;
                    at += 1;
                    encoded.pointer(at, path.as_bytes());
                }
            }
            at += 1;
        }
        encoded
    }
}

impl<'a> Encoded<'a> {
    fn descriptor(&mut self, fd: BorrowedFd<'a>) -> u64 {
        self.fds.push(fd);
        u64::from(REMOTE_FD) + self.fds.len() as u64 - 1
    }

    fn pointer(&mut self, at: usize, bytes: &[u8]) {
        self.args[at] = self.blob.len() as u64;
        self.pointers |= 1 << at;
        self.blob.extend_from_slice(bytes);
    }
}
