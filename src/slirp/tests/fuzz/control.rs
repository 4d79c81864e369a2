//! The owner's side of the real program: descriptions and requests, right, damaged, too long, with descriptors that
//! do not belong. Whatever comes: one answer to each, and no descriptor is kept by a request that was refused.

use super::{Random, run};
use crate::slirp::attach;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, recv, send, sendmsg, socketpair,
};
use nix::unistd::geteuid;
use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ExitStatus};

/// The longest message (`src/helper/engine/control.rs`).
const MAX: usize = 64 << 10;
/// What a network of one namespace is asked, and what a network of containers is.
const REQUESTS: &[&[&str]] = &[
    &[
        "forward tcp 10.0.2.100:80 web",
        "forward udp [fd00::100]:53",
        "unforward 0 tcp 10.0.2.100:80 web",
        "events",
        "capture 262144 tcp port=80-80 and",
        "capture 0",
        "uncapture 0",
        "stats",
        "flows",
        "resolvers 192.0.2.1:53 [2001:db8::1]:53",
    ],
    &[
        "port db tap 1 1 1\n02:00:00:00:00:09 10.0.2.9 fd00::9",
        "port web packet 0 0 0\n02:00:00:00:00:08",
        "unport db",
        "up",
        "names\ndb 10.0.2.9\n@10.0.2.9 web 10.0.2.8",
        "link between db web 50000 0 0 0 0 0 0 1000",
        "link out db 1 1 1 1 1 1 1 1",
        "cut on\ndb web",
        "cut off\nweb db",
        "heal",
        "passed out db",
        "passed between db web",
        "capture 65535 1000000 tcp port=80-80 and\nsent\nreceived\nnode db",
        "captured 0",
        "uncapture 0",
        "forward tcp 10.0.2.9:80",
        "unforward 0",
        "stats",
        "gateway",
        "flows",
        "resolvers 192.0.2.1:53",
    ],
];
/// Lines of a description.
const LINES: &[&str] = &[
    "ifname tap0",
    "configure true",
    "routes false",
    "forward true",
    "via 10.1.0.0 16 10.0.2.9",
    "closed false",
    "services true",
    "device any",
    "outbound 127.0.0.1",
    "faults 100 50000",
    "mtu 1500",
    "mac 02:00:00:00:00:02",
    "guest-mac 02:00:00:00:00:01",
    "v4 24 10.0.2.100 10.0.2.2 10.0.2.3 10.0.2.15",
    "v6 fd00::100 fd00::2 fd00::3",
    "v6 off",
    "loopback 22 80-90",
    "resolver 192.0.2.1:53",
    "search example.org",
    "name db 10.0.2.9 fd00::9",
    "deny-name ads.example",
    "allow 192.0.2.0/24 80-90",
    "deny *",
];
/// Words that are wrong in most places.
const WORDS: &[&str] = &[
    "",
    "-1",
    "0",
    "255",
    "65536",
    "4294967296",
    "18446744073709551615",
    "99999999999999999999999",
    "nan",
    "*",
    "@",
    ":",
    "/",
    "-",
    "0-0",
    "90-80",
    "::",
    "0.0.0.0/0",
    "::/129",
    "é\u{1f600}",
    "\t",
    "\0",
    "\n",
    "and",
    "not",
    "or",
];

/// The program, and the owner's end of its control socket.
struct Engine {
    child: Child,
    control: OwnedFd,
}

impl Drop for Engine {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One descriptor to pass on, and the end by which we see whether somebody holds it.
struct Passed {
    theirs: OwnedFd,
    ours: OwnedFd,
}

fn pair(kind: SockType) -> (OwnedFd, OwnedFd) {
    socketpair(AddressFamily::Unix, kind, None, SockFlag::SOCK_CLOEXEC).unwrap()
}

fn passed(random: &mut Random) -> Vec<Passed> {
    let many = if random.once_in(40) { 50 } else { random.below(4) };
    let kinds = [SockType::SeqPacket, SockType::Stream];
    let make = |_| {
        let (theirs, ours) = pair(random.pick(&kinds));
        Passed { theirs, ours }
    };
    (0..many).map(make).collect()
}

fn readable(fd: &OwnedFd, wait: PollTimeout) -> bool {
    poll(&mut [PollFd::new(fd.as_fd(), PollFlags::POLLIN)], wait).unwrap() > 0
}

impl Engine {
    fn start() -> Self {
        let (control, theirs) = pair(SockType::SeqPacket);
        let child = attach::spawn(theirs).unwrap();
        Self { child, control }
    }

    /// The answer to a message; there must be one.
    fn ask(&mut self, text: &[u8], fds: &[Passed]) -> String {
        let raw: Vec<i32> = fds.iter().map(|each| each.theirs.as_raw_fd()).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let rights = if raw.is_empty() { &[][..] } else { &rights[..] };
        let parts = [IoSlice::new(text)];
        let shown = String::from_utf8_lossy(&text[..text.len().min(200)]).into_owned();
        let sent = sendmsg::<()>(self.control.as_raw_fd(), &parts, rights, MsgFlags::MSG_NOSIGNAL, None);
        assert!(sent == Ok(text.len()), "{shown:?}: {sent:?}, {:?}", self.end());
        assert!(readable(&self.control, PollTimeout::from(20_000u16)), "no answer to {shown:?}");
        let mut reply = vec![0; MAX];
        let n = recv(self.control.as_raw_fd(), &mut reply, MsgFlags::empty()).unwrap_or(0);
        reply.truncate(n);
        let reply = String::from_utf8_lossy(&reply).into_owned();
        let known = reply.starts_with("ok") || attach::failure(&reply).is_some();
        assert!(known, "{shown:?} beside {}: {reply:?}, {:?}", raw.len(), self.end());
        reply
    }

    /// How it ends when its owner is gone.
    fn end(&mut self) -> ExitStatus {
        let (gone, _) = pair(SockType::SeqPacket);
        drop(std::mem::replace(&mut self.control, gone));
        self.child.wait().unwrap()
    }
}

/// Text with some of its words, lines or bytes wrong.
fn damaged(random: &mut Random, text: &str) -> Vec<u8> {
    let mut lines: Vec<Vec<String>> =
        text.lines().map(|line| line.split(' ').map(str::to_owned).collect()).collect();
    for _ in 0..random.below(4) {
        let at = random.below(lines.len());
        let line = &mut lines[at];
        let word = random.below(line.len());
        match random.below(5) {
            0 if line.len() > 1 => drop(line.remove(word)),
            1 => line[word] = random.odd().to_string(),
            2 => line.insert(word, random.pick(WORDS).to_owned()),
            3 => line[word] = random.pick(WORDS).repeat(1 + random.below(3)),
            _ => {
                let again = line.clone();
                lines.push(again);
            }
        }
    }
    let lines: Vec<String> = lines.iter().map(|line| line.join(" ")).collect();
    let mut bytes = lines.join("\n").into_bytes();
    if random.once_in(5) {
        random.damage(&mut bytes);
    }
    if random.once_in(60) {
        let unit = if random.once_in(2) { bytes.clone() } else { b" and not or 1".to_vec() };
        let len = random.pick(&[MAX - 1, MAX, MAX + 1, 2 * MAX]);
        while bytes.len() < len {
            bytes.extend_from_slice(&unit);
            bytes.push(b'\n');
        }
        bytes.truncate(len);
    }
    // An empty message is an end of the connection.
    if bytes.is_empty() {
        bytes.push(b' ');
    }
    bytes
}

fn described(random: &mut Random) {
    let mut text = random.pick(&["link plain", "link tap", "switch 7", "interface", "device tap"]).to_owned();
    for _ in 0..random.below(12) {
        text.push('\n');
        text.push_str(random.pick(LINES));
    }
    let text = damaged(random, &text);
    let mut engine = Engine::start();
    let fds = passed(random);
    if engine.ask(&text, &fds).starts_with("ok") {
        // It serves, whatever the network is that it was told of. What a network of containers is given here is
        // what it ends with.
        let first = String::from_utf8_lossy(&text).split_whitespace().next().map(str::to_owned);
        assert_ne!(first.as_deref(), Some("interface"), "there is no namespace to make one in");
        let links = if first.as_deref() == Some("switch") { &[][..] } else { &fds };
        for frame in super::frame::corpus() {
            for fd in links {
                let _ = send(fd.ours.as_raw_fd(), &frame, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL);
            }
        }
        engine.ask(b"stats", &[]);
    }
    let status = engine.end();
    assert_eq!(status.signal(), None, "it ends by itself: {:?}", String::from_utf8_lossy(&text));
}

fn asked(random: &mut Random) {
    let kind = random.below(2);
    let mut engine = Engine::start();
    let (link, _guest) = pair(SockType::SeqPacket);
    let link = Passed { ours: link.try_clone().unwrap(), theirs: link };
    let first = [&b"link plain"[..], b"switch 7"][kind];
    let links: &[Passed] = if kind == 0 { std::slice::from_ref(&link) } else { &[] };
    assert!(engine.ask(first, links).starts_with("ok"));
    for _ in 0..60 {
        let text = random.pick(REQUESTS[kind]);
        let text = damaged(random, text);
        let mut fds = passed(random);
        let reply = engine.ask(&text, &fds);
        let verb = String::from_utf8_lossy(&text).split_whitespace().next().unwrap_or("").to_owned();
        let may = match verb.as_str() {
            _ if !reply.starts_with("ok") => 0,
            "forward" | "events" | "capture" => 1,
            "port" => 2,
            _ => 0,
        };
        let ends: Vec<OwnedFd> = fds.drain(..).map(|each| each.ours).collect();
        let kept = ends.iter().filter(|end| !readable(end, PollTimeout::ZERO)).count();
        assert!(kept <= may, "{kept} kept by {:?}: {reply:?}", String::from_utf8_lossy(&text));
    }
    // Positive control: what was damaged harms nothing that is right.
    assert!(engine.ask(b"stats", &[]).starts_with("ok\n"));
    assert_eq!(engine.end().code(), Some(0));
}

fn history(seed: u64) {
    let mut random = Random(seed);
    if random.once_in(2) { described(&mut random) } else { asked(&mut random) }
}

/// Must run where an interface would harm nobody: nothing here names a namespace to make one in, but an engine that
/// took no notice of that would make it in its own.
#[test]
fn control() {
    let alone = || {
        let kept = unshare(CloneFlags::CLONE_NEWNET);
        assert!(kept.is_ok() || !geteuid().is_root(), "root without a namespace of its own");
        run(|seed| {
            history(seed);
            let names = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
            let made = names.lines().any(|line| line.trim_start().starts_with("tap0:"));
            assert!(!made, "an interface in the namespace of who asked");
        });
    };
    // A thread for itself, for the namespace is the thread's.
    if let Err(cause) = std::thread::spawn(alone).join() {
        std::panic::resume_unwind(cause);
    }
}
