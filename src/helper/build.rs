//! Build script of the crate: compiles the static programs that the extension carries.
//!
//! They are compiled by `$RUSTC` directly and not as a cargo package, so that one `pip install .`, one `cargo test`
//! and one sdist are enough (cargo leaves nested packages out of an sdist). The result is embedded with
//! `include_bytes!` from `OUT_DIR`. They are linked with plain `cc` even where the extension is linked by another
//! linker: some refuse static programs.
#![allow(clippy::disallowed_methods, clippy::disallowed_macros, reason = "a build script; see src/lib.rs")]

use std::env;
use std::path::PathBuf;
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=src/helper");
    println!("cargo:rerun-if-changed=src/sys/raw.rs");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("r2d2-init");
    let target = env::var("TARGET").expect("cargo sets TARGET");
    let status = Command::new(env::var_os("RUSTC").expect("cargo sets RUSTC"))
        .args(["--edition=2024", "--crate-name=r2d2_init", "--crate-type=bin", "--target", &target])
        .args([
            "-Copt-level=s",
            "-Cpanic=abort",
            "-Crelocation-model=static",
            "-Cdebuginfo=0",
            "-Cstrip=symbols",
        ])
        .args(["-Coverflow-checks=off", "-Ccodegen-units=1", "-Clto=fat", "-Clinker=cc"])
        .args(["-Clink-arg=-nostartfiles", "-Clink-arg=-nostdlib", "-Clink-arg=-static"])
        .args([
            "-Clink-arg=-Wl,--build-id=none",
            "-Clink-arg=-Wl,-z,noseparate-code",
            "-Clink-arg=-Wl,-z,norelro",
        ])
        .arg("-o")
        .arg(&out)
        .arg("src/helper/main.rs")
        .status()
        .expect("the Rust compiler runs");
    assert!(status.success(), "PID 1 (src/helper/main.rs) does not compile");
    engine(&target, out.parent().expect("a file in OUT_DIR"));
}

/// The engine of the user-mode network: static too, but with the standard library and made for speed.
fn engine(target: &str, out: &std::path::Path) {
    println!("cargo:rerun-if-changed=src/slirp");
    println!("cargo:rerun-if-changed=src/bridge");
    println!("cargo:rustc-check-cfg=cfg(r2d2_engine)");
    let status = Command::new(env::var_os("RUSTC").expect("cargo sets RUSTC"))
        .args([
            "--cfg=r2d2_engine",
            "--edition=2024",
            "--crate-name=r2d2_engine",
            "--crate-type=bin",
            "--target",
            target,
        ])
        .args(["-Copt-level=3", "-Cpanic=abort", "-Cdebuginfo=0", "-Cstrip=symbols", "-Clinker=cc"])
        .args(["-Ccodegen-units=1", "-Ctarget-feature=+crt-static", "-Coverflow-checks=off"])
        .arg("-o")
        .arg(out.join("r2d2-engine"))
        .arg("src/helper/engine/main.rs")
        .status()
        .expect("the Rust compiler runs");
    assert!(status.success(), "the engine (src/helper/engine/main.rs) does not compile");
}
