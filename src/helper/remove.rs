//! Removes a directory tree that hostile programs may have made: any depth, any names, directories of mode 000.
//!
//! Never deeper than one level below the top: what is found two levels down is moved up first, so that neither a
//! stack nor a path can overflow. Everything goes by descriptor and name; symbolic links are never followed. Runs in
//! the reaper, on the host (and in the container's user namespace, where some of the files' owners exist only there).

use crate::kernel;
use crate::raw::{call, nr};

const ENOENT: i32 = 2;
const O_DIRECTORY_NOFOLLOW: usize = 0o200_000 | 0o400_000;
const AT_FDCWD: usize = -100isize as usize;
const AT_REMOVEDIR: usize = 0x200;
const S_IRWXU: usize = 0o700;

/// True when `path` (which ends with a zero byte) is no longer there.
pub fn tree(path: usize) -> bool {
    let mut number = 0;
    loop {
        let top = match open(AT_FDCWD, path) {
            Ok(top) => top,
            Err(errno) => return errno == ENOENT,
        };
        let mut progress = false;
        let entries = each(top, &mut |name| {
            progress |= !removed(top, name) && empty(top, name, &mut number);
        });
        kernel::close(top as i32);
        // SAFETY: a string of the caller's.
        if entries == 0 && unsafe { call(nr::RMDIR, [path]) }.is_ok() {
            return true;
        }
        if entries == 0 || !progress && entries == each_count(path) {
            return false;
        }
    }
}

/// Removes an empty directory, and the directories that are all there is in it: a cgroup, whose files go by themselves, and
/// those that were made inside. True when `path` is no longer there.
pub fn directories(path: usize) -> bool {
    loop {
        // SAFETY: a string of the caller's.
        match unsafe { call(nr::RMDIR, [path]) } {
            Ok(_) | Err(ENOENT) => return true,
            Err(_) => {}
        }
        // Down to one that has none below it, whatever the depth.
        let Ok(mut dir) = open(AT_FDCWD, path) else { return false };
        let mut name = [0u8; 256];
        let mut found = first_directory(dir, &mut name);
        let gone = loop {
            if !found {
                break false; // the one at the top is in use
            }
            let Ok(inner) = open(dir, name.as_ptr() as usize) else { break false };
            let mut below = [0u8; 256];
            found = first_directory(inner, &mut below);
            if !found {
                kernel::close(inner as i32);
                // SAFETY: a string that ends with a zero byte.
                break unsafe { call(nr::UNLINKAT, [dir, name.as_ptr() as usize, AT_REMOVEDIR]) }.is_ok();
            }
            kernel::close(dir as i32);
            (dir, name) = (inner, below);
        };
        kernel::close(dir as i32);
        if !gone {
            return false;
        }
    }
}

/// The name of some directory in a directory.
fn first_directory(dir: usize, name: &mut [u8; 256]) -> bool {
    const DT_DIR: u8 = 4;
    let mut found = false;
    each(dir, &mut |entry| {
        // SAFETY: the byte before a name is its entry's type.
        if found || unsafe { (entry as *const u8).wrapping_sub(1).read() } != DT_DIR {
            return;
        }
        // SAFETY: names end with a zero byte, and the buffer they lie in outlives the call.
        let bytes = unsafe { kernel::bytes(entry as *const u8) };
        if let Some(slot) = name.get_mut(..bytes.len()).filter(|slot| slot.len() < 256) {
            slot.copy_from_slice(bytes);
            found = true;
        }
    });
    found
}

/// Moves what is in a directory up to `top`, so that it can be removed itself. True if anything changed.
fn empty(top: usize, name: usize, number: &mut u32) -> bool {
    // SAFETY: a string in the caller's buffer; it is a directory, since unlink(2) refused it.
    let _ = unsafe { call(nr::FCHMODAT, [top, name, S_IRWXU]) };
    let Ok(dir) = open(top, name) else { return false };
    let mut changed = false;
    each(dir, &mut |inner| {
        if removed(dir, inner) {
            changed = true;
            return;
        }
        // SAFETY: as above.
        let _ = unsafe { call(nr::FCHMODAT, [dir, inner, S_IRWXU]) };
        *number = number.wrapping_add(1);
        let unique = unique(*number);
        // SAFETY: two names that end with a zero byte.
        changed |= unsafe { call(nr::RENAMEAT, [dir, inner, top, unique.as_ptr() as usize]) }.is_ok();
    });
    kernel::close(dir as i32);
    changed | removed(top, name)
}

fn open(dir: usize, name: usize) -> Result<usize, i32> {
    // SAFETY: a string that ends with a zero byte.
    unsafe { call(nr::OPENAT, [dir, name, O_DIRECTORY_NOFOLLOW | kernel::CLOEXEC]) }
}

fn removed(dir: usize, name: usize) -> bool {
    // SAFETY: a string that ends with a zero byte.
    let file = unsafe { call(nr::UNLINKAT, [dir, name, 0]) };
    // SAFETY: likewise.
    file.is_ok() || unsafe { call(nr::UNLINKAT, [dir, name, AT_REMOVEDIR]) }.is_ok()
}

fn each_count(path: usize) -> usize {
    let Ok(top) = open(AT_FDCWD, path) else { return 0 };
    let count = each(top, &mut |_| {});
    kernel::close(top as i32);
    count
}

/// Calls `f` with each name but `.` and `..`; how many there were.
fn each(dir: usize, f: &mut dyn FnMut(usize)) -> usize {
    let mut count = 0;
    let mut buffer = [0u64; 512];
    loop {
        // SAFETY: the buffer has the length that is claimed.
        let read = unsafe { call(nr::GETDENTS64, [dir, buffer.as_mut_ptr() as usize, 4096]) };
        let Ok(len @ 1..) = read else { return count };
        let base = buffer.as_ptr() as usize;
        // SAFETY: the same memory as bytes.
        let entries = unsafe { core::slice::from_raw_parts(base as *const u8, len.min(4096)) };
        let mut at = 0;
        // struct linux_dirent64: the length at 16, the name, ending with a zero byte, at 19.
        while let Some(head) = entries.get(at..at + 21) {
            let size = usize::from(u16::from_ne_bytes([head[16], head[17]]));
            if !matches!(head[19..], [b'.', 0]) && entries.get(at + 19..at + 22) != Some(b"..\0") {
                count += 1;
                f(base + at + 19);
            }
            if size == 0 {
                return count;
            }
            at += size;
        }
    }
}

/// A name that nothing in the tree is likely to have; if something has, rename fails and the next round tries another.
fn unique(number: u32) -> [u8; 24] {
    let mut name = *b".r2d2-remove-00000000\0\0\0";
    for (i, slot) in name.iter_mut().skip(13).take(8).enumerate() {
        *slot = b"0123456789abcdef"[(number >> (28 - 4 * i) & 15) as usize];
    }
    name
}
