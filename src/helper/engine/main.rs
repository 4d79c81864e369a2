//! `r2d2-engine`: the user-mode network of one namespace, as a program of its own.
//!
//! Compiled by `build.rs` as a static program with the standard library, and embedded in the extension. It shares
//! `src/slirp` (the engine itself) and `src/sys/raw.rs` (system calls) with the extension. What happens, in order:
//!
//! 1. It is started with its control socket as descriptor 0 and nothing else of its owner's but stderr.
//! 2. The first message on the control socket is the network's description, with descriptors of the namespaces to
//!    serve (`control`).
//! 3. A forked child joins those namespaces, makes and configures the interface there, hands its descriptor back
//!    (`attach`), and ends or makes sockets there as long as we live (`within`). The parent never leaves its own
//!    namespaces: its sockets are the host's.
//! 4. It gives up everything that it no longer needs: capabilities, dumpability, and all system calls but those of
//!    moving packets (`sandbox`).
//! 5. It reports success, and serves until its owner or the namespace's process is gone (`run`).
//!
//! Three other first messages make it something else: a network of containers, which makes no interface itself but is
//! given them (`switching`), the maker of one such interface (`interface`), and the keeper of a container's place in the
//! kernel's own network (`bridging`), which handles no packet at all.
//!
//! It holds the only descriptor of the interface: when it ends, by whatever cause, the interface vanishes.
#![allow(dead_code, unused_imports, reason = "the library offers more than this program uses")]

mod address;
mod attach;
#[path = "../../bridge/mod.rs"]
mod bridge;
mod bridging;
mod control;
mod guard;
mod host;
mod interface;
mod joining;
mod netlink;
mod numbers;
mod packet;
#[path = "../../sys/raw.rs"]
mod raw;
mod record;
mod rights;
mod run;
mod sandbox;
#[path = "../../slirp/mod.rs"]
mod slirp;
mod switching;
mod sys;
mod talk;
mod tap;
mod waiting;
mod within;

fn main() {
    sys::name(c"r2d2-engine");
    // The terminal's signals are the owner's: it ends us by closing the control socket.
    sys::new_session();
    let code = match run::serve() {
        Ok(()) => 0,
        Err(failure) => {
            let _ = control::send(0, &failure.message());
            1
        }
    };
    packet::remove();
    sys::exit(code);
}
