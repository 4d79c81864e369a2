//! Against the programs of the host; the pytest suite compares with ldd(1) and with compiled search paths.

use super::*;
use crate::chroot::testing::{Scratch, build_elf};
use crate::sys::path::open_root;

fn closure_of(program: &str) -> Option<Closure> {
    let root = open_root(Path::new("/")).unwrap();
    let mut resolver = Resolver::new(root.as_fd());
    let elf = resolver.read(Path::new(program)).ok()?.ok()?;
    Some(resolver.closure(Path::new(program), Path::new(program), &elf))
}

#[test]
fn the_shell_of_the_host_is_complete() {
    let closure = closure_of("/bin/sh").expect("a host has /bin/sh");
    assert!(closure.missing.is_empty(), "{:?}", closure.missing);
    for object in &closure.objects {
        assert!(object.path.exists() && object.path == object.there || object.found == Found::Program);
    }
    if !closure.objects[0].elf.is_static() {
        assert_eq!(closure.objects[1].found, Found::Interpreter);
    }
}

#[test]
fn this_test_finds_its_own_libraries() {
    let own = std::env::current_exe().unwrap();
    let closure = closure_of(own.to_str().unwrap()).unwrap();
    assert!(closure.missing.is_empty(), "{:?}", closure.missing);
    assert!(closure.objects.len() >= 3);
}

const NEEDED: u64 = 1;
const SONAME: u64 = 14;
const RPATH: u64 = 15;
const RUNPATH: u64 = 29;

/// A root of made-up files; what `/bin/p` loads, as `path` or `!name` where it is missing.
fn loads(name: &str, files: &[(&str, &[(u64, &str)])]) -> Vec<String> {
    let scratch = Scratch::new(name);
    for (path, dynamic) in files {
        let interpreter = if path.contains("musl") { "/lib/ld-musl-x86_64.so.1" } else { "/lib/ld.so" };
        write(&scratch, path, &build_elf(true, interpreter, dynamic));
    }
    write(&scratch, "/lib/ld.so", &build_elf(true, "/lib/ld.so", &[]));
    write(&scratch, "/lib/ld-musl-x86_64.so.1", &build_elf(true, "/lib/ld.so", &[]));
    // The wrong class lies in a directory that is searched early.
    write(&scratch, "/lib64/libwrong.so", &build_elf(false, "/lib/ld.so", &[]));
    let root = open_root(scratch.dir()).unwrap();
    let mut resolver = Resolver::new(root.as_fd());
    let program = Path::new(files[0].0);
    let elf = resolver.read(program).unwrap().unwrap();
    let closure = resolver.closure(program, program, &elf);
    let found = closure.objects[2..].iter().map(|o| o.path.display().to_string());
    found.chain(closure.missing.iter().map(|m| format!("!{}", m.name.display()))).collect()
}

fn write(scratch: &Scratch, path: &str, bytes: &[u8]) {
    let path = scratch.path(&path[1..]);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn rpath_is_inherited_and_runpath_is_not() {
    let tree = |tag| {
        let name = if tag == RPATH { "rpath" } else { "runpath" };
        loads(
            name,
            &[
                ("/bin/p", &[(NEEDED, "liba.so"), (tag, "$ORIGIN/../opt")]),
                ("/opt/liba.so", &[(NEEDED, "libb.so")]),
                ("/opt/libb.so", &[]),
            ],
        )
    };
    assert_eq!(tree(RPATH), ["/bin/../opt/liba.so", "/bin/../opt/libb.so"]);
    assert_eq!(tree(RUNPATH), ["/bin/../opt/liba.so", "!libb.so"]);
}

#[test]
fn an_object_with_a_runpath_does_not_inherit() {
    let files: &[(&str, &[(u64, &str)])] = &[
        ("/bin/p", &[(NEEDED, "liba.so"), (RPATH, "/opt")]),
        ("/opt/liba.so", &[(NEEDED, "libb.so"), (RUNPATH, "/nowhere"), (RPATH, "/opt")]),
        ("/opt/libb.so", &[]),
    ];
    assert_eq!(loads("mixed", files), ["/opt/liba.so", "!libb.so"]);
}

#[test]
fn musl_inherits_both() {
    let files: &[(&str, &[(u64, &str)])] = &[
        ("/bin/musl", &[(NEEDED, "liba.so"), (NEEDED, "libc.so"), (RUNPATH, "/opt")]),
        ("/opt/liba.so", &[(NEEDED, "libb.so")]),
        ("/opt/libb.so", &[]),
    ];
    assert_eq!(loads("musl", files), ["/opt/liba.so", "/opt/libb.so"]);
}

#[test]
fn a_loaded_soname_answers_and_the_wrong_class_does_not() {
    let files: &[(&str, &[(u64, &str)])] = &[
        ("/bin/p", &[(NEEDED, "/opt/liba.so"), (NEEDED, "libz.so.1"), (NEEDED, "libwrong.so")]),
        ("/opt/liba.so", &[(SONAME, "libz.so.1")]),
        ("/lib/libz.so.1", &[]),
        ("/usr/lib/libwrong.so", &[]),
    ];
    assert_eq!(loads("soname", files), ["/opt/liba.so", "/usr/lib/libwrong.so"]);
}

#[test]
fn a_circle_ends() {
    let files: &[(&str, &[(u64, &str)])] = &[
        ("/bin/p", &[(NEEDED, "liba.so")]),
        ("/lib/liba.so", &[(NEEDED, "libb.so")]),
        ("/lib/libb.so", &[(NEEDED, "liba.so"), (NEEDED, "libb.so")]),
    ];
    assert_eq!(loads("circle", files), ["/lib/liba.so", "/lib/libb.so"]);
}

#[test]
fn a_hostile_search_path_ends() {
    let path = "/a:".repeat(20_000);
    let names: Vec<String> = (0..200).map(|n| format!("l{n}")).collect();
    let mut dynamic: Vec<(u64, &str)> = names.iter().map(|name| (NEEDED, name.as_str())).collect();
    dynamic.push((RPATH, &path));
    let begin = std::time::Instant::now();
    assert_eq!(loads("endless", &[("/bin/p", &dynamic)]).len(), 200);
    assert!(begin.elapsed().as_secs() < 20, "{:?}", begin.elapsed());
}
