//! `/etc/ld.so.cache`: the table by which glibc's ld.so finds most libraries, written by ldconfig(8).
//!
//! The format is glibc's "new" one (`glibc-ld.so.cache1.1`, the only one since 2.32), alone or behind the old one as
//! ldconfig wrote it before: a header of 48 bytes, then 24 bytes a library (flags, offsets of name and path, a
//! hardware capability), then the strings; offsets count from the magic. ld.so searches it by bisection in a
//! peculiar order (numbers inside names compare as numbers, largest first), which matters to the writer.
//!
//! Reading treats the file as hostile: an entry that points outside it is skipped. Writing serves a root file
//! system that holds a library outside the directories built into its loader: there the loader needs a cache, and
//! the host's own lists what is not there. Entries for other processors' variants (`glibc-hwcaps`) are kept apart:
//! whoever builds a root wants the plain one. Runs in the calling process.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

/// Where ld.so looks for it.
pub const PATH: &str = "/etc/ld.so.cache";
/// Larger than any real cache (a desktop has 200 KiB).
pub const MAX_SIZE: u64 = 16 << 20;

const MAGIC: &[u8] = b"glibc-ld.so.cache1.1";
const OLD_MAGIC: &[u8] = b"ld.so-1.7.0";
const HEADER: usize = 48;
const ENTRY: usize = 24;
/// `cache_file_new_flags_endian_little`.
const LITTLE_ENDIAN: u8 = 2;
/// The header's byte that says so.
const ENDIAN_BYTE: usize = 28;

/// One line of `ldconfig -p`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Library type and architecture as glibc codes them; `0x0303` is libc6 on x86-64.
    pub flags: u32,
    /// 0 for the variant that runs on every processor.
    pub hwcap: u64,
    /// Where the library is.
    pub path: PathBuf,
}

/// The table, by library name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LdCache {
    entries: HashMap<OsString, Vec<Entry>>,
}

impl LdCache {
    /// Reads the bytes of a cache; `None` where they are none, for the other byte order, or where the
    /// strings add up to more than the file could honestly hold.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let bytes = skip_old_format(bytes)?;
        if !bytes.starts_with(MAGIC) || !matches!(bytes.get(ENDIAN_BYTE)? & 3, 0 | LITTLE_ENDIAN) {
            return None;
        }
        let claimed = usize::try_from(number(bytes, MAGIC.len())?).ok()?;
        let table = bytes.get(HEADER..)?;
        let mut cache = Self::default();
        // Names and paths may share bytes, and in a real cache each path ends in its name: twice the file is plenty.
        let mut budget = bytes.len().saturating_mul(4);
        for entry in table.chunks_exact(ENTRY).take(claimed) {
            let (Some(name), Some(path)) = (string(bytes, entry, 4), string(bytes, entry, 8)) else {
                continue;
            };
            budget = budget.checked_sub(name.len() + path.len())?;
            let (Some(flags), Some(low), Some(high)) =
                (number(entry, 0), number(entry, 16), number(entry, 20))
            else {
                continue;
            };
            let hwcap = u64::from(high) << 32 | u64::from(low);
            cache.insert(name, Entry { flags, hwcap, path: PathBuf::from(path) });
        }
        Some(cache)
    }

    /// The candidates for `name`: those for every processor first, each group in file order.
    pub fn find(&self, name: &OsStr) -> impl Iterator<Item = &Entry> {
        let all = self.entries.get(name).map_or(&[][..], Vec::as_slice);
        all.iter().filter(|e| e.hwcap == 0).chain(all.iter().filter(|e| e.hwcap != 0))
    }

    /// Adds an entry unless the same path stands there under that name.
    pub fn insert(&mut self, name: OsString, entry: Entry) {
        let entries = self.entries.entry(name).or_default();
        if !entries.iter().any(|e| e.path == entry.path && e.hwcap == entry.hwcap) {
            entries.push(entry);
        }
    }

    /// How many lines `ldconfig -p` would print.
    pub fn len(&self) -> usize {
        self.entries.values().map(Vec::len).sum()
    }

    /// True without any.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Every name and entry, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (&OsStr, &Entry)> {
        self.entries.iter().flat_map(|(name, all)| all.iter().map(move |e| (name.as_os_str(), e)))
    }

    /// The file that ld.so would read this table from. Entries with a `hwcap` are left out: their meaning lies in an
    /// extension of the file that is not written.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut lines: Vec<_> = self.iter().filter(|(_, entry)| entry.hwcap == 0).collect();
        lines.sort_by(|a, b| {
            let by_name = compare(b.0.as_bytes(), a.0.as_bytes());
            by_name.then_with(|| b.1.flags.cmp(&a.1.flags)).then_with(|| a.1.path.cmp(&b.1.path))
        });
        let strings_at = HEADER + lines.len() * ENTRY;
        let (mut table, mut strings) = (Vec::new(), Vec::new());
        let mut add = |text: &[u8]| {
            let offset = (strings_at + strings.len()) as u32;
            strings.extend_from_slice(text);
            strings.push(0);
            offset
        };
        for (name, entry) in &lines {
            let (key, value) = (add(name.as_bytes()), add(entry.path.as_os_str().as_bytes()));
            for word in [entry.flags, key, value, 0, 0, 0] {
                table.extend_from_slice(&word.to_le_bytes());
            }
        }
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&(lines.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&(strings.len() as u32).to_le_bytes());
        bytes.push(LITTLE_ENDIAN);
        bytes.resize(HEADER, 0);
        bytes.append(&mut table);
        bytes.append(&mut strings);
        bytes
    }
}

/// The part that begins with the new magic.
fn skip_old_format(bytes: &[u8]) -> Option<&[u8]> {
    if !bytes.starts_with(OLD_MAGIC) {
        return Some(bytes);
    }
    let count = usize::try_from(number(bytes, 12)?).ok()?;
    let end = count.checked_mul(12)?.checked_add(16)?;
    bytes.get(end.checked_next_multiple_of(8)?..)
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// The string of `file` whose offset stands at `at` of `entry`.
fn string(file: &[u8], entry: &[u8], at: usize) -> Option<OsString> {
    // No path is longer; without the bound a file of overlapping strings would cost its size squared.
    let rest = file.get(usize::try_from(number(entry, at)?).ok()?..)?;
    let rest = &rest[..rest.len().min(4096)];
    let end = rest.iter().position(|&byte| byte == 0)?;
    Some(OsString::from_vec(rest[..end].to_vec()))
}

/// Compares two library names as ld.so does (`_dl_cache_libcmp`): runs of digits compare as numbers and come
/// after letters.
fn compare(mut left: &[u8], mut right: &[u8]) -> Ordering {
    loop {
        let (Some(&x), Some(&y)) = (left.first(), right.first()) else {
            return left.len().cmp(&right.len());
        };
        match (x.is_ascii_digit(), y.is_ascii_digit()) {
            (true, true) => {
                let (in_left, in_right) = (leading_number(left), leading_number(right));
                if in_left.0 != in_right.0 {
                    return in_left.0.cmp(&in_right.0);
                }
                (left, right) = (in_left.1, in_right.1);
            }
            (true, false) => return Ordering::Greater,
            (false, true) => return Ordering::Less,
            // As signed characters, which is what char is on x86; names are ASCII in practice.
            (false, false) if x != y => return (x as i8).cmp(&(y as i8)),
            (false, false) => (left, right) = (&left[1..], &right[1..]),
        }
    }
}

fn leading_number(text: &[u8]) -> (u32, &[u8]) {
    let end = text.iter().position(|c| !c.is_ascii_digit()).unwrap_or(text.len());
    let value = text[..end]
        .iter()
        .fold(0u32, |value, digit| value.wrapping_mul(10).wrapping_add(u32::from(digit - b'0')));
    (value, &text[end..])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chroot::testing::{Random, mutate};

    fn sample() -> LdCache {
        let mut cache = LdCache::default();
        for (name, path, hwcap) in [
            ("liba.so.9", "/lib/liba.so.9", 0),
            ("liba.so.10", "/lib/v3/liba.so.10", 1 << 62),
            ("liba.so.10", "/lib/liba.so.10", 0),
            ("libz.so", "/opt/libz.so", 0),
        ] {
            cache.insert(name.into(), Entry { flags: 0x303, hwcap, path: path.into() });
        }
        cache
    }

    #[test]
    fn written_and_read_back_without_variants() {
        let cache = LdCache::parse(&sample().to_bytes()).unwrap();
        assert_eq!(cache.len(), 3);
        let found: Vec<_> = cache.find("liba.so.10".as_ref()).map(|e| e.path.clone()).collect();
        assert_eq!(found, [PathBuf::from("/lib/liba.so.10")]);
        assert_eq!(cache.find("liba.so".as_ref()).count(), 0);
    }

    #[test]
    fn the_plain_variant_comes_first() {
        let cache = sample();
        let found: Vec<_> = cache.find("liba.so.10".as_ref()).map(|e| e.hwcap).collect();
        assert_eq!(found, [0, 1 << 62]);
    }

    #[test]
    fn order_is_the_loaders() {
        for (larger, smaller) in
            [("liba.so.10", "liba.so.9"), ("lib1", "liba"), ("libab", "liba"), ("libb", "liba")]
        {
            assert_eq!(compare(larger.as_bytes(), smaller.as_bytes()), Ordering::Greater);
            assert_eq!(compare(smaller.as_bytes(), larger.as_bytes()), Ordering::Less);
        }
        assert_eq!(compare(b"lib7", b"lib07"), Ordering::Equal);
    }

    #[test]
    fn the_old_format_in_front_is_skipped() {
        let mut bytes = OLD_MAGIC.to_vec();
        bytes.push(0);
        bytes.extend_from_slice(&1u32.to_le_bytes());
        bytes.extend_from_slice(&[0; 12]);
        bytes.resize(32, 0);
        bytes.extend_from_slice(&sample().to_bytes());
        assert_eq!(LdCache::parse(&bytes).unwrap().len(), 3);
    }

    #[test]
    fn the_hosts_cache_reads_as_ldconfig_reads_it() {
        let (Ok(bytes), Ok(output)) =
            (std::fs::read(PATH), std::process::Command::new("/sbin/ldconfig").arg("-p").output())
        else {
            return; // a musl host has neither
        };
        let text = String::from_utf8(output.stdout).unwrap();
        let line = |line: &str| {
            let (name, path) = line.trim().split_once(" => ")?;
            Some((name.split(' ').next()?.to_owned(), path.to_owned()))
        };
        let mut expected: Vec<_> = text.lines().filter_map(line).collect();
        let cache = LdCache::parse(&bytes).unwrap();
        let text = |s: &OsStr| s.to_str().unwrap().to_owned();
        let mut found: Vec<_> =
            cache.iter().map(|(name, e)| (text(name), text(e.path.as_os_str()))).collect();
        expected.sort();
        found.sort();
        assert_eq!(found, expected);
    }

    #[test]
    fn mutations_and_truncations_never_panic() {
        let mut file = sample().to_bytes();
        if let Ok(host) = std::fs::read(PATH) {
            assert!(!LdCache::parse(&host).unwrap().is_empty());
            file = host;
        }
        for end in 0..file.len().min(2000) {
            let _ = LdCache::parse(&file[..end]);
        }
        let mut random = Random(7);
        for _ in 0..300 {
            let undo = mutate(&mut file, &mut random, 4096);
            let _ = LdCache::parse(&file);
            undo.apply(&mut file);
        }
    }
}
