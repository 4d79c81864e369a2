//! Mounts by the calls of fsopen(2), and their attributes. **Process:** the child.

use std::ffi::{CStr, CString};

use super::path::ProcLink;
use super::{AT_FDCWD, Child, NOTE, O_CLOEXEC, O_DIRECTORY, O_PATH, text};
use crate::container::step::{Place, Setting};
use crate::sys::raw::{self, Outcome, nr};

/// struct mount_attr, mount_setattr(2).
#[repr(C)]
pub(super) struct MountAttr {
    pub(super) set: u64,
    pub(super) clear: u64,
    pub(super) propagation: u64,
    pub(super) userns: u64,
}

impl Child<'_> {
    pub(super) fn set_attributes(
        &mut self,
        fd: usize,
        path: &CStr,
        flags: usize,
        attr: &MountAttr,
    ) -> Result<(), i32> {
        let attr = core::ptr::from_ref(attr) as usize;
        self.call(nr::MOUNT_SETATTR, [fd, text(path), flags, attr, size_of::<MountAttr>()]).map(drop)
    }

    /// fsopen → fsconfig … → fsmount → move_mount (fsopen(2)). No option string, so no length limit of a page and no
    /// character that would have to be escaped.
    pub(super) fn mount(
        &mut self,
        fstype: &CString,
        source: &CString,
        settings: &[Setting],
        attributes: u64,
        at: &Place,
    ) -> Result<(), i32> {
        const SET_FLAG: usize = 0;
        const SET_STRING: usize = 1;
        const CREATE: usize = 6;
        const KEEP: usize = 64;
        const READ_ONLY: u64 = 1; // MOUNT_ATTR_RDONLY
        let has_upper = settings.iter().any(|setting| match setting {
            Setting::Text(key, _) | Setting::Directory(key, _) => key.as_c_str() == c"upperdir",
            Setting::Flag(_) => false,
        });
        let writable = has_upper && attributes & READ_ONLY == 0;
        let context = self.call(nr::FSOPEN, [text(fstype), 1])?;
        let mut open = [0usize; KEEP];
        let mut opened = 0;
        let mut outcome =
            self.call(nr::FSCONFIG, [context, SET_STRING, text(c"source"), text(source), 0]).map(drop);
        for setting in settings {
            if outcome.is_err() {
                break;
            }
            outcome = match setting {
                Setting::Flag(key) => self.call(nr::FSCONFIG, [context, SET_FLAG, text(key), 0, 0]).map(drop),
                Setting::Text(key, value) => {
                    self.call(nr::FSCONFIG, [context, SET_STRING, text(key), text(value), 0]).map(drop)
                }
                Setting::Directory(key, path) => self
                    .call(nr::OPENAT, [AT_FDCWD, text(path), O_PATH | O_DIRECTORY | O_CLOEXEC])
                    .and_then(|fd| {
                        let link = ProcLink::new(fd);
                        if let Some(slot) = open.get_mut(opened) {
                            *slot = fd;
                            opened += 1;
                        }
                        let value = link.0.as_ptr() as usize;
                        self.call(nr::FSCONFIG, [context, SET_STRING, text(key), value, 0]).map(drop)
                    }),
            };
        }
        let outcome = outcome
            .and_then(|()| self.call(nr::FSCONFIG, [context, CREATE, 0, 0, 0]))
            .and_then(|_| self.call(nr::FSMOUNT, [context, 1, attributes as usize]))
            .and_then(|mount| if writable { self.check_writable(mount) } else { Ok(mount) });
        if outcome.is_err() {
            self.read_log(context);
        }
        for fd in open.iter().take(opened) {
            self.close(*fd);
        }
        self.close(context);
        let mount = outcome?;
        self.attach(mount, at)?;
        if fstype.as_bytes() == b"proc" {
            self.proc = mount as i32; // for PID 1: /proc as it is before anything can run
        } else {
            self.close(mount);
        }
        Ok(())
    }

    /// An overlay whose work directory takes no files becomes read-only, without a word (overlayfs.rst): an error here.
    pub(super) fn check_writable(&mut self, mount: usize) -> Outcome {
        const FLAGS: usize = 10; // struct statfs, statfs(2): the word of the flags
        const ST_RDONLY: u64 = 1;
        let mut statfs = [0u64; 15];
        self.call(nr::FSTATFS, [mount, statfs.as_mut_ptr() as usize])?;
        if statfs.get(FLAGS).is_some_and(|flags| flags & ST_RDONLY != 0) {
            self.failed = nr::FSMOUNT;
            self.close(mount);
            return Err(libc::EROFS);
        }
        Ok(mount)
    }

    /// Keeps what the kernel says about a failed mount: one message a read(2), of which the first error is the cause.
    pub(super) fn read_log(&mut self, context: usize) {
        let failed = self.failed;
        let note = self.job.shared.note.get();
        // SAFETY: the child alone writes the note, and the caller reads it after the child's end.
        let _ = unsafe { raw::call(nr::READ, [context, note as usize, NOTE - 1]) };
        self.failed = failed;
    }

    /// Attaches a mount that is attached nowhere yet.
    pub(super) fn attach(&mut self, mount: usize, at: &Place) -> Result<(), i32> {
        const FROM_EMPTY: usize = 4;
        const TO_EMPTY: usize = 0x40;
        if let Some(name) = self.in_proc(at) {
            let proc = self.proc as usize;
            return self.call(nr::MOVE_MOUNT, [mount, text(c""), proc, name, FROM_EMPTY]).map(drop);
        }
        let (dir, name) = self.locate(at)?;
        let flags = FROM_EMPTY | if dir == AT_FDCWD { 0 } else { TO_EMPTY };
        let moved = self.call(nr::MOVE_MOUNT, [mount, text(c""), dir, name, flags]);
        self.release(dir);
        moved.map(drop)
    }
}
