//! Bytes in, facts out; the pytest suite compares the same facts with pyelftools on every program of the host.

use super::*;
use crate::chroot::testing::{Random, build_elf, mutate};

fn sample(is_64: bool) -> Vec<u8> {
    let dynamic = [
        (DT_NEEDED, "liba.so.1"),
        (DT_NEEDED, "libc.so.6"),
        (DT_SONAME, "me.so"),
        (DT_RPATH, "$ORIGIN/../lib:/opt"),
        (DT_RUNPATH, "/run"),
    ];
    build_elf(is_64, "/lib/ld.so", &dynamic)
}

#[test]
fn facts_of_both_classes() {
    for is_64 in [true, false] {
        let file = sample(is_64);
        let elf = Elf::read(file.as_slice()).unwrap();
        assert_eq!((elf.is_64, elf.machine), (is_64, if is_64 { 62 } else { 3 }));
        assert_eq!(elf.interpreter.as_deref(), Some("/lib/ld.so".as_ref()));
        assert_eq!(elf.needed, ["liba.so.1", "libc.so.6"]);
        assert_eq!(elf.soname.as_deref(), Some("me.so".as_ref()));
        assert_eq!(elf.rpath.as_deref(), Some("$ORIGIN/../lib:/opt".as_ref()));
        assert_eq!(elf.runpath.as_deref(), Some("/run".as_ref()));
        assert!(!elf.is_static() && elf.fits(&elf));
        assert!(elf.strings_contain(file.as_slice(), "libc.so.6"));
        assert!(!elf.strings_contain(file.as_slice(), "libc.so"));
    }
}

#[test]
fn what_is_not_elf_is_told_apart() {
    for bytes in [b"".as_slice(), b"\x7fEL", b"#!/bin/sh\n"] {
        assert_eq!(Elf::read(bytes), Err(NoElf::NotElf));
    }
    assert_eq!(Elf::read(b"\x7fELF\x02\x01".as_slice()), Err(NoElf::Malformed));
    let mut big_endian = sample(true);
    big_endian[5] = 2;
    assert_eq!(Elf::read(big_endian.as_slice()), Err(NoElf::Foreign));
}

#[test]
fn every_truncation_is_malformed() {
    let file = sample(true);
    for end in 4..file.len() {
        assert_eq!(Elf::read(&file[..end]), Err(NoElf::Malformed), "cut at {end}");
    }
}

#[test]
fn strings_that_share_bytes_cannot_fill_the_memory() {
    let long = "x".repeat(60_000);
    let mut dynamic = vec![(DT_NEEDED, long.as_str())];
    dynamic.extend([(DT_NEEDED, ""); 40]);
    let mut file = build_elf(true, "/lib/ld.so", &dynamic);
    assert_eq!(Elf::read(file.as_slice()).unwrap().needed.len(), 41);
    // The tags come last in the file: let every one of them point at the long name.
    let tags = file.len() - (41 + 3) * 16;
    for index in 0..41 {
        let at = tags + index * 16 + 8;
        file[at..at + 8].copy_from_slice(&1u64.to_le_bytes());
    }
    assert_eq!(Elf::read(file.as_slice()), Err(NoElf::Malformed));
}

#[test]
fn mutations_never_panic() {
    let mut random = Random(0x5eed);
    let mut seeds = vec![sample(true), sample(false)];
    // Real files too: the head of this test's own program, whose tables lie in the first megabyte.
    let own = std::fs::read(std::env::current_exe().unwrap()).unwrap();
    seeds.push(own[..own.len().min(1 << 20)].to_vec());
    seeds.extend(["/bin/sh", "/lib64/ld-linux-x86-64.so.2"].iter().filter_map(|p| std::fs::read(p).ok()));
    for seed in &seeds {
        let mut file = seed.clone();
        for _ in 0..20_000 {
            let undo = mutate(&mut file, &mut random, 1024);
            if let Ok(elf) = Elf::read(file.as_slice()) {
                assert!(elf.needed.len() <= MAX_DYNAMIC);
            }
            undo.apply(&mut file);
        }
        assert!(&file == seed);
    }
}
