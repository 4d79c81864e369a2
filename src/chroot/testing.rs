//! What the unit tests of this room share: a repeatable stream of numbers, and mutations of bytes. Tests only.

use std::path::{Path, PathBuf};

/// A directory of its own for one test; gone when dropped.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("r2d2-chroot-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        // The loader canonicalises $ORIGIN, and /tmp may be a symlink.
        Self(dir.canonicalize().unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// xorshift64: the same stream on every run, so that a failure repeats.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(crate) fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit.max(1) as u64).unwrap()
    }
}

/// The bytes as they were, to mutate the next time from the same start.
pub(crate) struct Undo(Vec<(usize, u8)>);

impl Undo {
    pub(crate) fn apply(self, bytes: &mut [u8]) {
        for (at, old) in self.0.into_iter().rev() {
            bytes[at] = old;
        }
    }
}

/// Overwrites one to eight bytes, mostly among the first `head` (where headers live), with values that hurt.
pub(crate) fn mutate(bytes: &mut [u8], random: &mut Random, head: usize) -> Undo {
    const NASTY: [u8; 6] = [0, 1, 0x7f, 0x80, 0xfe, 0xff];
    let mut undo = Vec::new();
    for _ in 0..=random.below(8) {
        let range = if random.below(4) == 0 { bytes.len() } else { head.min(bytes.len()) };
        let at = random.below(range);
        undo.push((at, bytes[at]));
        bytes[at] = if random.below(2) == 0 { NASTY[random.below(6)] } else { random.next() as u8 };
    }
    Undo(undo)
}

/// A small dynamic ELF, built field by field: one `PT_LOAD` over the whole file at address 0.
/// `dynamic` holds tags whose values are strings.
pub(crate) fn build_elf(is_64: bool, interpreter: &str, dynamic: &[(u64, &str)]) -> Vec<u8> {
    let (header, entry, word) = if is_64 { (64, 56, 8) } else { (52, 32, 4) };
    let put = |bytes: &mut Vec<u8>, value: u64| bytes.extend_from_slice(&value.to_le_bytes()[..word]);
    let interpreter_at = header + 3 * entry;
    let strings_at = interpreter_at + interpreter.len() + 1;
    let mut strings = vec![0];
    let mut tags = Vec::new();
    for (tag, text) in dynamic {
        put(&mut tags, *tag);
        put(&mut tags, strings.len() as u64);
        strings.extend_from_slice(text.as_bytes());
        strings.push(0);
    }
    for (tag, value) in [(5, strings_at), (10, strings.len()), (0, 0)] {
        put(&mut tags, tag);
        put(&mut tags, value as u64);
    }
    let dynamic_at = strings_at + strings.len();
    let total = dynamic_at + tags.len();

    let mut file = vec![0x7f, b'E', b'L', b'F', if is_64 { 2 } else { 1 }, 1, 1];
    file.resize(16, 0);
    file.extend_from_slice(&[3, 0, if is_64 { 62 } else { 3 }, 0, 1, 0, 0, 0]);
    put(&mut file, 0);
    put(&mut file, header as u64);
    put(&mut file, 0);
    file.extend_from_slice(&[0; 4]);
    for half in [header, entry, 3, 0, 0, 0] {
        file.extend_from_slice(&(half as u16).to_le_bytes());
    }
    // PT_LOAD, PT_INTERP, PT_DYNAMIC.
    let segments =
        [(1u32, 0, total), (3, interpreter_at, interpreter.len() + 1), (2, dynamic_at, tags.len())];
    for (kind, at, size) in segments {
        file.extend_from_slice(&kind.to_le_bytes());
        if is_64 {
            file.extend_from_slice(&[0; 4]);
        }
        for value in [at, at, at, size, size] {
            put(&mut file, value as u64);
        }
        file.resize(file.len() + 8, 0);
    }
    assert_eq!(file.len(), interpreter_at);
    file.extend_from_slice(interpreter.as_bytes());
    file.push(0);
    file.extend_from_slice(&strings);
    file.extend_from_slice(&tags);
    file
}
