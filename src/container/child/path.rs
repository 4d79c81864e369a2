//! Paths as the child walks them: on the host as they are, in the new root so that no symbolic link leads out of it
//! (openat2(2)). **Process:** the child.

use std::ffi::CStr;

use super::{AT_FDCWD, Child, EEXIST, O_CLOEXEC, O_DIRECTORY, O_PATH, text};
use crate::container::step::Place;
use crate::sys::raw::{Outcome, nr};

const RESOLVE_IN_ROOT_NO_MAGIC: u64 = 0x10 | 0x02;
const RESOLVE_NO_SYMLINKS: u64 = 0x04;

/// struct open_how, openat2(2).
#[repr(C)]
pub(super) struct OpenHow {
    pub(super) flags: u64,
    pub(super) mode: u64,
    pub(super) resolve: u64,
}

/// `/proc/self/fd/N` on the stack.
pub(super) struct ProcLink(pub(super) [u8; 32]);

impl ProcLink {
    pub(super) fn new(fd: usize) -> Self {
        let mut link = [0u8; 32];
        let head = b"/proc/self/fd/";
        for (to, from) in link.iter_mut().zip(head) {
            *to = *from;
        }
        let mut digits = [0u8; 12];
        let mut count = 0;
        let mut rest = fd;
        loop {
            if let Some(slot) = digits.get_mut(count) {
                *slot = b'0' + (rest % 10) as u8;
            }
            count += 1;
            rest /= 10;
            if rest == 0 || count == digits.len() {
                break;
            }
        }
        for (to, from) in link.iter_mut().skip(head.len()).zip(digits.iter().take(count).rev()) {
            *to = *from;
        }
        Self(link)
    }
}

impl Child<'_> {
    /// Where a place is: a directory descriptor and a path below it (empty: the descriptor itself).
    pub(super) fn locate(&mut self, place: &Place) -> Result<(usize, usize), i32> {
        match place {
            Place::Host(path) => Ok((AT_FDCWD, text(path))),
            Place::Root(path) => {
                // In these every mount point is ours; a symbolic link in a writable root would be an attack.
                let ours = [&b"/proc"[..], b"/sys", b"/dev"].iter().any(|tree| {
                    path.as_bytes().strip_prefix(*tree).is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
                });
                let resolve = RESOLVE_IN_ROOT_NO_MAGIC | if ours { RESOLVE_NO_SYMLINKS } else { 0 };
                Ok((self.in_root(path.as_ptr(), O_PATH, resolve)?, text(c"")))
            }
        }
    }

    /// A file at the top of our own procfs: its name, to be used below the descriptor of that mount without following
    /// it. Most of what is masked lies there, and needs no walk.
    pub(super) fn in_proc(&self, place: &Place) -> Option<usize> {
        place.in_proc().filter(|_| self.proc >= 0).map(text)
    }

    pub(super) fn release(&mut self, dir: usize) {
        if dir != AT_FDCWD {
            self.close(dir);
        }
    }

    /// Opens below the new root; symbolic links cannot lead out of it.
    pub(super) fn in_root(&mut self, path: *const libc::c_char, flags: usize, resolve: u64) -> Outcome {
        let how = OpenHow { flags: (flags | O_CLOEXEC) as u64, mode: 0, resolve };
        let size = size_of::<OpenHow>();
        self.call(nr::OPENAT2, [self.root as usize, path as usize, &raw const how as usize, size])
    }

    /// Makes something new with `make(directory, name)`; that it exists already is fine.
    pub(super) fn make(
        &mut self,
        at: &Place,
        make: impl Fn(&mut Self, usize, usize) -> Result<(), i32>,
    ) -> Result<(), i32> {
        let made = match at {
            Place::Host(path) => make(self, AT_FDCWD, text(path)),
            Place::Root(path) => {
                // The parent is resolved in the root; the last part is made there and never followed.
                let mut buffer = [0u8; 4096];
                let bytes = path.as_bytes_with_nul();
                let Some(copy) = buffer.get_mut(..bytes.len()) else { return Err(libc::ENAMETOOLONG) };
                copy.copy_from_slice(bytes);
                let Some(slash) = copy.iter().rposition(|b| *b == b'/') else { return Err(libc::EINVAL) };
                let Some(name) = bytes.get(slash + 1..) else { return Err(libc::EINVAL) };
                if let Some(end) = copy.get_mut(slash + 1) {
                    *end = 0;
                }
                let parent =
                    self.in_root(copy.as_ptr().cast(), O_PATH | O_DIRECTORY, RESOLVE_IN_ROOT_NO_MAGIC)?;
                let made = make(self, parent, name.as_ptr() as usize);
                self.close(parent);
                made
            }
        };
        if made == Err(EEXIST) { Ok(()) } else { made }
    }

    pub(super) fn write(&mut self, fd: usize, mut bytes: &[u8]) -> Result<(), i32> {
        while !bytes.is_empty() {
            let n = self.call(nr::WRITE, [fd, bytes.as_ptr() as usize, bytes.len()])?;
            bytes = bytes.get(n..).unwrap_or(&[]);
        }
        Ok(())
    }

    pub(super) fn overwrite(&mut self, path: &CStr, bytes: &[u8]) -> Result<(), i32> {
        let fd = self.call(nr::OPENAT, [AT_FDCWD, text(path), 1 | O_CLOEXEC])?;
        let written = self.write(fd, bytes);
        self.close(fd);
        written
    }
}
