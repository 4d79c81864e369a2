//! What an ELF file asks for before its first instruction runs: the loader (`PT_INTERP`), the libraries
//! (`DT_NEEDED`) and where to look for them (`DT_RPATH`, `DT_RUNPATH`).
//!
//! Read as the kernel and ld.so read it, through the program headers alone: section headers may be stripped and
//! mean nothing at run time. Order: identification, file header, program headers, then the dynamic segment, whose
//! string table is an address that a `PT_LOAD` maps back to a file offset. Only those few bytes are read, so a
//! library of 100 MB costs no more than `true`.
//!
//! The file may be hostile (images come from anywhere): every number is taken as a claim, additions are checked,
//! counts and sizes are bounded, and what is out of bounds is `Malformed`, never a panic. ELF64 and ELF32, little
//! endian. Runs in the calling process.

use std::ffi::OsString;
use std::fs::File;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::FileExt;

/// More program headers than any real file has (the kernel itself stops at 64 KiB of them).
const MAX_PROGRAM_HEADERS: usize = 1170;
/// More dynamic entries than any real file has.
const MAX_DYNAMIC: usize = 1 << 16;
/// `PATH_MAX`, with room for a search path of a few of them.
const MAX_STRING: usize = 1 << 16;
/// All names and search paths of one file together: entries may share bytes, so the file's size bounds nothing.
const MAX_STRINGS: usize = 1 << 20;
/// The largest string table that [`Elf::strings_contain`] reads.
const MAX_STRING_TABLE: usize = 1 << 24;

const PT_LOAD: u32 = 1;
const PT_DYNAMIC: u32 = 2;
const PT_INTERP: u32 = 3;

const DT_NULL: u64 = 0;
const DT_NEEDED: u64 = 1;
const DT_STRTAB: u64 = 5;
const DT_STRSZ: u64 = 10;
const DT_SONAME: u64 = 14;
const DT_RPATH: u64 = 15;
const DT_RUNPATH: u64 = 29;
const DT_FLAGS_1: u64 = 0x6fff_fffb;
const DF_1_NODEFLIB: u64 = 0x800;

/// Something that can be read at an offset: a file, or bytes in memory.
pub trait ReadAt {
    /// Fills `buffer` from `offset`; false when the end comes first or the read fails.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> bool;

    /// Reads as much as there is, at most `buffer.len()`; the number of bytes read.
    fn read_some(&self, offset: u64, buffer: &mut [u8]) -> usize;
}

impl ReadAt for File {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> bool {
        self.read_exact_at(buffer, offset).is_ok()
    }

    fn read_some(&self, offset: u64, buffer: &mut [u8]) -> usize {
        FileExt::read_at(self, buffer, offset).unwrap_or(0)
    }
}

impl ReadAt for [u8] {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> bool {
        self.read_some(offset, buffer) == buffer.len()
    }

    fn read_some(&self, offset: u64, buffer: &mut [u8]) -> usize {
        let rest = usize::try_from(offset).ok().and_then(|start| self.get(start..)).unwrap_or_default();
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        count
    }
}

/// Why a file gives no facts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoElf {
    /// It does not begin with the four magic bytes (or is shorter).
    NotElf,
    /// It is ELF of a kind that is not read here; big endian, for one.
    Foreign,
    /// A number in it points outside the file or contradicts another.
    Malformed,
}

/// The facts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Elf {
    /// True for ELF64, false for ELF32.
    pub is_64: bool,
    /// `e_machine`: 62 is x86-64, 183 aarch64, 3 i386.
    pub machine: u16,
    /// `PT_INTERP`: the loader, as the program names it.
    pub interpreter: Option<OsString>,
    /// `DT_NEEDED` in file order.
    pub needed: Vec<OsString>,
    /// `DT_RPATH`, colons and `$ORIGIN` as they stand.
    pub rpath: Option<OsString>,
    /// `DT_RUNPATH`; where it is there, ld.so ignores `rpath`.
    pub runpath: Option<OsString>,
    /// `DT_SONAME`: the name under which a library satisfies a `DT_NEEDED`.
    pub soname: Option<OsString>,
    /// `DF_1_NODEFLIB`: the default directories are not to be searched.
    pub no_default_libraries: bool,
    /// File offset and size of the dynamic string table.
    strings: Option<(u64, u64)>,
}

impl Elf {
    /// True where the file runs without a loader and without libraries.
    pub fn is_static(&self) -> bool {
        self.interpreter.is_none() && self.needed.is_empty()
    }

    /// Whether code of the two files can live in one process.
    pub fn fits(&self, other: &Self) -> bool {
        self.is_64 == other.is_64 && self.machine == other.machine
    }

    /// Whether the dynamic string table of `file`, from which these facts were read, holds `needle` with a NUL on
    /// either side; this is where the names of symbol versions such as `GLIBC_2.34` stand.
    pub fn strings_contain<R: ReadAt + ?Sized>(&self, file: &R, needle: &str) -> bool {
        let Some((offset, size)) = self.strings else { return false };
        let mut table = vec![0; usize::try_from(size).unwrap_or(usize::MAX).min(MAX_STRING_TABLE)];
        let count = file.read_some(offset, &mut table);
        table[..count].split(|&byte| byte == 0).any(|string| string == needle.as_bytes())
    }

    /// Reads the facts.
    pub fn read<R: ReadAt + ?Sized>(file: &R) -> Result<Self, NoElf> {
        let mut ident = [0; 16];
        if !file.read_at(0, &mut ident[..4]) || ident[..4] != *b"\x7fELF" {
            return Err(NoElf::NotElf);
        }
        if !file.read_at(0, &mut ident) {
            return Err(NoElf::Malformed);
        }
        let is_64 = match (ident[4], ident[5]) {
            (1, 1) => false,
            (2, 1) => true,
            _ => return Err(NoElf::Foreign),
        };
        let header = Fields::read(file, 0, if is_64 { 64 } else { 52 })?;
        let mut elf = Self {
            is_64,
            machine: header.half(18)?,
            interpreter: None,
            needed: Vec::new(),
            rpath: None,
            runpath: None,
            soname: None,
            no_default_libraries: false,
            strings: None,
        };
        let segments = read_segments(file, &header, is_64)?;
        // The kernel takes the first.
        if let Some(segment) = segments.iter().find(|s| s.kind == PT_INTERP) {
            elf.interpreter = Some(read_interpreter(file, segment)?);
        }
        if let Some(dynamic) = segments.iter().find(|s| s.kind == PT_DYNAMIC) {
            elf.read_dynamic(file, dynamic, &segments)?;
        }
        Ok(elf)
    }

    fn read_dynamic<R: ReadAt + ?Sized>(
        &mut self,
        file: &R,
        dynamic: &Segment,
        segments: &[Segment],
    ) -> Result<(), NoElf> {
        let word = if self.is_64 { 8 } else { 4 };
        let entries = usize::try_from(dynamic.file_size).map_err(|_| NoElf::Malformed)? / (2 * word);
        if entries > MAX_DYNAMIC {
            return Err(NoElf::Malformed);
        }
        let table = Fields::read(file, dynamic.offset, entries * 2 * word)?;
        let mut offsets = Vec::new();
        let (mut string_table, mut string_size) = (None, 0);
        for entry in 0..entries {
            let tag = table.word(entry * 2 * word, self.is_64)?;
            let value = table.word(entry * 2 * word + word, self.is_64)?;
            match tag {
                DT_NULL => break,
                DT_STRTAB => string_table = Some(value),
                DT_STRSZ => string_size = value,
                DT_FLAGS_1 => self.no_default_libraries = value & DF_1_NODEFLIB != 0,
                DT_NEEDED | DT_SONAME | DT_RPATH | DT_RUNPATH => offsets.push((tag, value)),
                _ => {}
            }
        }
        let Some(address) = string_table else {
            return if offsets.is_empty() { Ok(()) } else { Err(NoElf::Malformed) };
        };
        let Some(base) = offset_of(address, segments) else {
            return if offsets.is_empty() { Ok(()) } else { Err(NoElf::Malformed) };
        };
        self.strings = Some((base, string_size));
        let mut total = 0;
        for (tag, offset) in offsets {
            if offset >= string_size {
                return Err(NoElf::Malformed);
            }
            let start = base.checked_add(offset).ok_or(NoElf::Malformed)?;
            let string = read_string(file, start, string_size - offset)?;
            total += string.len() + 1;
            if total > MAX_STRINGS {
                return Err(NoElf::Malformed);
            }
            match tag {
                DT_NEEDED => self.needed.push(string),
                DT_SONAME => self.soname = Some(string),
                DT_RPATH => self.rpath = Some(string),
                _ => self.runpath = Some(string),
            }
        }
        Ok(())
    }
}

/// One program header, widths made equal.
struct Segment {
    kind: u32,
    offset: u64,
    address: u64,
    file_size: u64,
}

fn read_segments<R: ReadAt + ?Sized>(file: &R, header: &Fields, is_64: bool) -> Result<Vec<Segment>, NoElf> {
    let (table, sizes, wanted) = if is_64 { (32, 54, 56) } else { (28, 42, 32) };
    let start = header.word(table, is_64)?;
    let (size, count) = (usize::from(header.half(sizes)?), usize::from(header.half(sizes + 2)?));
    if count == 0 {
        return Ok(Vec::new());
    }
    if size != wanted || count > MAX_PROGRAM_HEADERS {
        return Err(NoElf::Malformed);
    }
    let table = Fields::read(file, start, size * count)?;
    let segment = |at: usize| {
        let (offset, address, file_size) =
            if is_64 { (at + 8, at + 16, at + 32) } else { (at + 4, at + 8, at + 16) };
        Ok(Segment {
            kind: table.quarter(at)?,
            offset: table.word(offset, is_64)?,
            address: table.word(address, is_64)?,
            file_size: table.word(file_size, is_64)?,
        })
    };
    (0..count).map(|index| segment(index * size)).collect()
}

/// The kernel wants `PT_INTERP` to end in a NUL and stops at `PATH_MAX`; so do we.
fn read_interpreter<R: ReadAt + ?Sized>(file: &R, segment: &Segment) -> Result<OsString, NoElf> {
    if !(2..=4096).contains(&segment.file_size) {
        return Err(NoElf::Malformed);
    }
    read_string(file, segment.offset, segment.file_size)
}

/// Where in the file the byte at `address` of the running program comes from.
fn offset_of(address: u64, segments: &[Segment]) -> Option<u64> {
    segments
        .iter()
        .filter(|s| s.kind == PT_LOAD)
        .find(|s| address >= s.address && address - s.address < s.file_size)
        .and_then(|s| s.offset.checked_add(address - s.address))
}

/// The bytes up to the first NUL, which must come within `limit`.
fn read_string<R: ReadAt + ?Sized>(file: &R, start: u64, limit: u64) -> Result<OsString, NoElf> {
    let limit = usize::try_from(limit).unwrap_or(usize::MAX).min(MAX_STRING);
    let mut bytes = Vec::new();
    let mut chunk = [0; 256];
    while bytes.len() < limit {
        let offset = start.checked_add(bytes.len() as u64).ok_or(NoElf::Malformed)?;
        let wanted = chunk.len().min(limit - bytes.len());
        let count = file.read_some(offset, &mut chunk[..wanted]);
        if let Some(end) = chunk[..count].iter().position(|&byte| byte == 0) {
            bytes.extend_from_slice(&chunk[..end]);
            return Ok(OsString::from_vec(bytes));
        }
        if count == 0 {
            break;
        }
        bytes.extend_from_slice(&chunk[..count]);
    }
    Err(NoElf::Malformed)
}

/// Little-endian numbers in a block of bytes.
struct Fields(Vec<u8>);

impl Fields {
    fn read<R: ReadAt + ?Sized>(file: &R, offset: u64, size: usize) -> Result<Self, NoElf> {
        let mut bytes = vec![0; size];
        if file.read_at(offset, &mut bytes) { Ok(Self(bytes)) } else { Err(NoElf::Malformed) }
    }

    fn bytes<const N: usize>(&self, at: usize) -> Result<[u8; N], NoElf> {
        let end = at.checked_add(N).ok_or(NoElf::Malformed)?;
        self.0.get(at..end).and_then(|bytes| bytes.try_into().ok()).ok_or(NoElf::Malformed)
    }

    fn half(&self, at: usize) -> Result<u16, NoElf> {
        Ok(u16::from_le_bytes(self.bytes(at)?))
    }

    fn quarter(&self, at: usize) -> Result<u32, NoElf> {
        Ok(u32::from_le_bytes(self.bytes(at)?))
    }

    /// An address, offset or size: four bytes in ELF32, eight in ELF64.
    fn word(&self, at: usize, is_64: bool) -> Result<u64, NoElf> {
        if is_64 { Ok(u64::from_le_bytes(self.bytes(at)?)) } else { Ok(self.quarter(at)?.into()) }
    }
}

#[cfg(test)]
mod tests;
