//! Reads `/proc/PID/mountinfo` (`proc_pid_mountinfo(5)`). Pure but for [`read`], which opens the caller's own.
//!
//! The kernel writes space, tab, newline, `#` and backslash in the path fields as octal escapes (`\040`), so a line
//! splits at spaces whatever the paths hold. Optional fields (propagation) end at a lone `-`. In option values it
//! escapes as well, and overlayfs adds its own layer of backslashes before `:` and `,`.

use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// One mount of the namespace, as far as the process that reads can reach it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Unique among the mounts that exist now.
    pub id: u32,
    /// The mount it is mounted on; its own id for the root of the tree.
    pub parent: u32,
    /// Major and minor number of the file system's device.
    pub device: (u32, u32),
    /// Which directory of the file system is its root: not `/` for a bind mount.
    pub root: PathBuf,
    /// Where it is mounted, seen from the reader's root.
    pub point: PathBuf,
    /// Options of the mount, such as `ro,nosuid`.
    pub options: OsString,
    /// `shared:2`, `master:1`, `propagate_from:3`, `unbindable`.
    pub propagation: Vec<String>,
    /// `ext4`, `fuse.sshfs`.
    pub fstype: String,
    /// The device or whatever the file system calls its source.
    pub source: OsString,
    /// Options of the file system, still escaped as it wrote them.
    pub super_options: Vec<u8>,
}

/// The mounts of the calling process, in the kernel's order: a later mount hides an earlier one on the same point.
pub fn read() -> Result<Vec<Mount>> {
    let path = "/proc/self/mountinfo";
    // The kernel starts anew with each read(2): one is cheaper than the eight of a buffer that grows.
    let mut text = Vec::with_capacity(16 << 10);
    let read = File::open(path).and_then(|mut file| file.read_to_end(&mut text));
    read.map_err(|e| Error::io("read the mount table", "open", &e, Some(path)))?;
    Ok(parse(&text))
}

/// All lines of a mountinfo. A line that is none is left out: newer kernels may add fields, never lines.
pub fn parse(text: &[u8]) -> Vec<Mount> {
    text.split(|b| *b == b'\n').filter_map(parse_line).collect()
}

fn parse_line(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|b| *b == b' ');
    let number = |field: &[u8]| std::str::from_utf8(field).ok()?.parse::<u32>().ok();
    let id = number(fields.next()?)?;
    let parent = number(fields.next()?)?;
    let (major, minor) = std::str::from_utf8(fields.next()?).ok()?.split_once(':')?;
    let device = (major.parse().ok()?, minor.parse().ok()?);
    let root = path(fields.next()?);
    let point = path(fields.next()?);
    let options = OsString::from_vec(fields.next()?.to_vec());
    let mut propagation = Vec::new();
    loop {
        match fields.next()? {
            b"-" => break,
            field => propagation.push(String::from_utf8_lossy(field).into_owned()),
        }
    }
    let fstype = String::from_utf8(unescape(fields.next()?)).ok()?;
    let source = OsString::from_vec(unescape(fields.next()?));
    // Missing for some file systems; nothing after it is of interest.
    let super_options = fields.next().unwrap_or_default().to_vec();
    Some(Mount { id, parent, device, root, point, options, propagation, fstype, source, super_options })
}

fn path(field: &[u8]) -> PathBuf {
    PathBuf::from(OsString::from_vec(unescape(field)))
}

/// Undoes the octal escapes of the kernel's `seq_escape`.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        if let [b'\\', a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..] = rest {
            plain.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
            rest = after;
        } else {
            plain.push(*first);
            rest = tail;
        }
    }
    plain
}

/// The mount that `path`, an absolute path without symlinks, lies on.
pub fn mount_of<'a>(mounts: &'a [Mount], path: &Path) -> Option<&'a Mount> {
    let depth = |mount: &Mount| mount.point.components().count();
    // max_by_key returns the last of equals: the one mounted on top.
    mounts.iter().filter(|mount| path.starts_with(&mount.point)).max_by_key(|mount| depth(mount))
}

/// How many overlays are known to lie under `path` (0 for a plain file system). A lower bound: inside another
/// container the layers of the root are named by paths of the host.
pub fn overlay_depth(mounts: &[Mount], path: &Path) -> usize {
    let mut depth = 0;
    let mut level = vec![path.to_owned()];
    // A mount's layers lie on older mounts, but a name may have been mounted over since: hence the bound.
    while depth <= super::options::MAX_DEPTH {
        let overlays = level.iter().filter_map(|path| mount_of(mounts, path));
        let overlays: Vec<&Mount> = overlays.filter(|mount| mount.fstype == "overlay").collect();
        if overlays.is_empty() {
            return depth;
        }
        depth += 1;
        level = overlays.iter().flat_map(|mount| layers_of(mount)).collect();
    }
    depth
}

/// The lower layers and the upper one in the options of a mounted overlay, where they are absolute paths. The
/// kernel shows each value as it was given, with commas and backslashes (among others) as octal escapes.
fn layers_of(mount: &Mount) -> Vec<PathBuf> {
    let layers = mount.super_options.split(|b| *b == b',').flat_map(|option| {
        let equals = option.iter().position(|b| *b == b'=').unwrap_or(option.len());
        let value = unescape(option.get(equals + 1..).unwrap_or_default());
        match &option[..equals] {
            b"lowerdir" => split_at_colons(&value),
            b"lowerdir+" => vec![value],
            b"upperdir" => split_at_colons(&value).into_iter().take(1).collect(),
            _ => Vec::new(),
        }
    });
    layers.map(|layer| PathBuf::from(OsString::from_vec(layer))).filter(|path| path.is_absolute()).collect()
}

/// Splits overlayfs' own way: a backslash makes the next byte plain.
fn split_at_colons(value: &[u8]) -> Vec<Vec<u8>> {
    let (mut pieces, mut piece) = (Vec::new(), Vec::new());
    let mut bytes = value.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' => piece.extend(bytes.next()),
            b':' => pieces.push(std::mem::take(&mut piece)),
            _ => piece.push(*byte),
        }
    }
    pieces.push(piece);
    pieces
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    #[test]
    fn a_line_with_everything_in_it() {
        let line = b"36 35 98:0 /mnt1 /mnt/a\\040b\\011\\134\\012\xff ro,noatime master:1 shared:2 - fuse.sshfs user@h:/ rw,a=b\n";
        let mounts = parse(line);
        assert_eq!(mounts.len(), 1);
        let mount = &mounts[0];
        assert_eq!((mount.id, mount.parent, mount.device), (36, 35, (98, 0)));
        assert_eq!(mount.root, Path::new("/mnt1"));
        assert_eq!(mount.point.as_os_str().as_bytes(), b"/mnt/a b\t\\\n\xff");
        assert_eq!(mount.propagation, ["master:1", "shared:2"]);
        assert_eq!((mount.fstype.as_str(), mount.source.to_str()), ("fuse.sshfs", Some("user@h:/")));
        assert_eq!(mount.super_options, b"rw,a=b");
    }

    #[test]
    fn rubbish_is_left_out() {
        for line in ["", "x", "1 2 3:4 / /", "1 2 34 / / rw - ext4 a rw", "1 2 3:4 / / rw shared:1 ext4 a rw"]
        {
            assert!(parse(line.as_bytes()).is_empty(), "{line}");
        }
        assert_eq!(unescape(b"\\04"), b"\\04");
        assert_eq!(unescape(b"\\777"), b"\\777");
    }

    #[test]
    fn the_deepest_and_latest_mount_holds_a_path() {
        let mounts = parse(
            b"1 0 8:1 / / rw - ext4 /dev/a rw\n2 1 0:5 / /var rw - tmpfs t rw\n3 2 0:6 / /var rw - xfs u rw\n",
        );
        assert_eq!(mount_of(&mounts, Path::new("/var/lib")).unwrap().fstype, "xfs");
        assert_eq!(mount_of(&mounts, Path::new("/variable")).unwrap().fstype, "ext4");
        assert!(mount_of(&mounts, Path::new("relative")).is_none());
    }

    #[test]
    fn overlays_below_overlays_are_counted() {
        let mounts = parse(
            b"1 0 8:1 / / rw - ext4 /dev/a rw\n\
              2 1 0:5 / /m1 rw - overlay o rw,lowerdir=/a\\134:b:/c,upperdir=/u,workdir=/w\n\
              3 1 0:6 / /m\\0402 rw - overlay o rw,lowerdir+=/m1/x,lowerdir+=/c\n\
              4 1 0:7 / /m3 rw - overlay o rw,lowerdir=/m\\1342:/m\\0402\n\
              5 1 0:8 / /self rw - overlay o rw,lowerdir=/self\n",
        );
        let depth = |path: &str| overlay_depth(&mounts, Path::new(path));
        assert_eq!([depth("/etc"), depth("/m1/x"), depth("/m 2"), depth("/m3")], [0, 1, 2, 3]);
        assert_eq!(depth("/self"), 3);
        assert_eq!(layers_of(&mounts[1]), [Path::new("/a:b"), Path::new("/c"), Path::new("/u")]);
    }
}
