//! Sockets of the guest's own kernel, for clients of published TCP ports.
//!
//! A socket belongs to the network namespace in which it was made, whoever uses it. The child that made the interface
//! (`attach`) stays in the guest's namespaces after that and makes sockets there, a few ahead, whenever the engine asks
//! for more; and pipes to splice by, so that the sandboxed engine needs no call for either. When it is first asked
//! ([`Maker::prepare`]), it sees to it that a connection can come from an address that is nobody's inside:
//!
//! - its sockets are `IP_TRANSPARENT`, so that they may be bound to any address, and carry [`MARK`] (`SO_MARK`);
//! - `tcp_fwmark_accept` and `fwmark_reflect` make the guest's kernel answer with the mark that it was asked with;
//! - a rule sends packets with the mark to a table whose only route takes all addresses for those of `lo`.
//!
//! So both directions of such a connection stay on the guest's `lo`, and no other packet is concerned. Whatever is
//! missing (a kernel without those settings, a read-only /proc/sys, no IPv6), the child says so, and the connection
//! goes over the interface. The engine never waits long: see [`Within::take`].
//!
//! The child is in the sandbox of the engine (`sandbox`) but for what it is there for: one capability, and the calls
//! that make pipes. It has its end of the channel, whose end is its own, a netlink socket and the settings; before it
//! ends it takes rule, route and settings back. It keeps the namespace alive, so there is none where the engine is to
//! end with the namespace and not with a process.

use crate::address::{self, INET, INET6};
use crate::guard::CAP_NET_ADMIN;
use crate::netlink::Netlink;
use crate::slirp::host::Pipe;
use crate::sys::{
    self, Fd, MSG_DONTWAIT, MSG_NOSIGNAL, SOL_IP, SOL_IPV6, SOL_SOCKET, SOL_TCP, TCP_NODELAY, nr,
};
use crate::{attach, rights, sandbox};
use std::io::ErrorKind;
use std::net::SocketAddr;

/// The mark, and the number of the table: "r2", and below it bits that Kubernetes and its network plugins leave alone.
const MARK: u32 = 0x7232_1032;
/// How many sockets come at once, and how few there are when more are asked for.
const BATCH: usize = 16;
const LOW: usize = 8;
/// How many pipes come at once, and how many there may be.
const PIPES: usize = 4;
const MOST_PIPES: usize = 16;
/// What a pipe is to hold, and what it must hold at least.
const PIPE_BYTES: usize = 1 << 20;
const LEAST_PIPE: usize = 64 << 10;
/// Milliseconds that an empty stock is worth waiting for, once: until something comes, nobody waits again.
const PATIENCE: usize = 50;
/// The most descriptors that all this has in the engine, besides sockets that are in use.
pub const DESCRIPTORS: usize = 2 * (BATCH + LOW) + 2 * MOST_PIPES;

const SO_REUSEADDR: i32 = 2;
const SO_OOBINLINE: i32 = 10;
const SO_MARK: i32 = 36;
const IP_TRANSPARENT: i32 = 19;
const IPV6_TRANSPARENT: i32 = 75;
const MSG_CMSG_CLOEXEC: i32 = 0x4000_0000;

/// What the child calls and the engine does not.
const CALLS: [usize; 4] = [nr::PIPE2, nr::FCNTL, nr::PREAD64, nr::PWRITE64];

/// What can be asked for, by the letter of the request and of its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    V4,
    V6,
    Pipe,
}

impl Kind {
    fn letter(self) -> u8 {
        match self {
            Self::V4 => b'4',
            Self::V6 => b'6',
            Self::Pipe => b'p',
        }
    }

    fn of(letter: u8) -> Option<Self> {
        [Self::V4, Self::V6, Self::Pipe].into_iter().find(|kind| kind.letter() == letter)
    }
}

/// What is in stock of one kind.
#[derive(Debug, Default)]
struct Stock {
    fds: Vec<Fd>,
    /// An answer is due.
    asked: bool,
    /// It was waited for in vain.
    late: bool,
    /// There will never be any.
    none: bool,
}

/// The engine's end.
#[derive(Debug)]
pub struct Within {
    channel: Fd,
    stocks: [Stock; 3],
    /// Pipes that exist, wherever they are.
    pipes: usize,
}

impl Within {
    /// Asks by `channel`.
    pub fn new(channel: Fd) -> Self {
        Self { channel, stocks: Default::default(), pipes: 0 }
    }

    fn stock(&mut self, kind: Kind) -> &mut Stock {
        let [v4, v6, pipes] = &mut self.stocks;
        match kind {
            Kind::V4 => v4,
            Kind::V6 => v6,
            Kind::Pipe => pipes,
        }
    }

    /// Asks for more unless that was done.
    fn ask(&mut self, kind: Kind) {
        let channel = self.channel;
        let stock = self.stock(kind);
        if !stock.asked && !stock.none {
            stock.asked = sys::send(channel, &[kind.letter()], MSG_DONTWAIT | MSG_NOSIGNAL, &[]).is_ok();
            stock.none = !stock.asked;
        }
    }

    /// Puts what has been answered into stock.
    fn drain(&mut self) {
        loop {
            let (mut text, mut control) = ([0u8; 2], [0u8; 16 + 4 * BATCH]);
            let flags = MSG_DONTWAIT | MSG_CMSG_CLOEXEC;
            let Ok((n, len, _)) = sys::recvmsg(self.channel, &mut text, &mut control, flags) else { return };
            let Some(kind) = Kind::of(text[0]).filter(|_| n > 0) else {
                // It has ended.
                self.stocks.iter_mut().for_each(|stock| (stock.none, stock.asked) = (true, false));
                return;
            };
            let stock = self.stock(kind);
            let before = stock.fds.len();
            stock.fds.extend(rights::passed(control.get(..len).unwrap_or(&[])));
            let count = stock.fds.len() - before;
            (stock.asked, stock.late) = (false, false);
            // It says how many there were: some may have been lost on the way, for want of descriptors.
            stock.none = text[1] == 0;
            if kind == Kind::Pipe {
                self.pipes += count / 2;
            }
        }
    }

    /// One from stock, and more for the next; waits a little if the stock is empty.
    fn take(&mut self, kind: Kind) -> Option<Fd> {
        if self.stock(kind).fds.is_empty() {
            self.ask(kind);
            let patience = if self.stock(kind).late { 0 } else { PATIENCE };
            while self.stock(kind).asked && sys::readable_within(self.channel, patience) {
                self.drain();
            }
            self.stock(kind).late = self.stock(kind).asked;
        }
        let fd = self.stock(kind).fds.pop();
        if self.stock(kind).fds.len() < LOW {
            self.ask(kind);
        }
        fd
    }

    /// There will soon be connections to addresses of this family.
    pub fn expect(&mut self, v6: bool) {
        self.ask(if v6 { Kind::V6 } else { Kind::V4 });
        self.ask(Kind::Pipe);
    }

    /// Starts connecting; true if the connection already stands.
    pub fn connect(&mut self, from: &SocketAddr, to: &SocketAddr) -> Result<(Fd, bool), ErrorKind> {
        let kind = if to.is_ipv6() { Kind::V6 } else { Kind::V4 };
        let sock = self.take(kind).ok_or(ErrorKind::Unsupported)?;
        let outcome = match sys::bind(sock, address::encode(from).as_slice()) {
            Ok(_) => sys::connect(sock, address::encode(to).as_slice()),
            // Whatever it is, it is not the server that refuses.
            Err(_) => Err(sys::EINVAL),
        };
        let outcome = match outcome {
            Ok(_) => Ok(true),
            // It is the same kernel, which has answered by now: epoll will tell, in the next breath.
            Err(sys::EINPROGRESS) => Ok(false),
            Err(errno) => Err(errno),
        };
        outcome.map(|done| (sock, done)).map_err(|errno| {
            sys::close(sock);
            std::io::Error::from_raw_os_error(errno).kind()
        })
    }

    /// An empty pipe, if there is one to be had at once.
    pub fn pipe(&mut self) -> Option<Pipe> {
        let stock = self.stock(Kind::Pipe);
        if stock.fds.len() < 2 && stock.asked {
            self.drain();
        }
        let (most, known) = (MOST_PIPES, self.pipes);
        let stock = self.stock(Kind::Pipe);
        if stock.fds.len() < 2 {
            if known + PIPES <= most {
                self.ask(Kind::Pipe);
            }
            return None;
        }
        let (write, read) = (stock.fds.pop()?, stock.fds.pop()?);
        Some(Pipe { read, write })
    }

    /// Takes a pipe back.
    pub fn put_back(&mut self, pipe: Pipe, empty: bool) {
        if empty {
            self.stock(Kind::Pipe).fds.extend([pipe.read, pipe.write]);
        } else {
            sys::close(pipe.read);
            sys::close(pipe.write);
            self.pipes = self.pipes.saturating_sub(1);
        }
    }
}

/// The child, seen from the engine.
#[derive(Debug, Clone, Copy)]
pub struct Child {
    /// Its process.
    pub pid: i32,
    /// Our end of the channel.
    pub channel: Fd,
}

impl Child {
    /// Lets it end, and waits for that; but not for one that somebody has stopped.
    pub fn end(self) {
        sys::shutdown(self.channel);
        while sys::readable_within(self.channel, 200) {
            let mut place = [0; 8];
            if matches!(sys::recv(self.channel, &mut place, MSG_DONTWAIT), Ok(0) | Err(_)) {
                sys::wait(self.pid);
                return;
            }
        }
    }
}

/// What connections from any address need, below /proc/sys/net: of both families, or of one.
const SETTINGS: [&str; 5] = [
    "ipv4/tcp_fwmark_accept",
    "ipv6/fwmark_reflect",
    "ipv4/fwmark_reflect",
    // Reverse path filtering, where there is any: judged by the mark, and `lo` may hear of itself.
    "ipv4/conf/lo/src_valid_mark",
    "ipv4/conf/lo/accept_local",
];
/// Which of them a family needs.
const NEEDED: [&[usize]; 2] = [&[0, 2, 3, 4], &[0, 1]];

/// A setting of the namespace: opened before the sandbox closed, and what it was if it was changed.
struct Setting {
    fd: Fd,
    before: Option<Vec<u8>>,
}

impl Setting {
    /// Turns it on.
    fn on(&mut self) -> Result<(), i32> {
        let mut place = [0u8; 16];
        let n = sys::read_start(self.fd, &mut place)?;
        let before = place.get(..n).unwrap_or(&[]);
        if before.first() != Some(&b'1') {
            sys::write_start(self.fd, b"1")?;
            self.before.get_or_insert(before.to_vec());
        }
        Ok(())
    }
}

/// What the child has.
struct Maker {
    netlink: Netlink,
    lo: u32,
    /// As in [`SETTINGS`], those that exist and are ours to change.
    settings: [Option<Setting>; 5],
    /// By family: whether connections can be made, once that is known.
    ready: [Option<bool>; 2],
}

/// In the child, in the guest's namespaces: makes what is asked for until the engine has gone.
pub fn serve(channel: Fd) {
    sys::close_range(0, channel as u32 - 1);
    sys::close_range(channel as u32 + 1, u32::MAX);
    sys::name(c"r2d2-within");
    let Ok(mut maker) = Maker::new() else { return };
    if sandbox::enter_allowing(CAP_NET_ADMIN, &CALLS).is_err() {
        return;
    }
    let mut letter = [0u8; 1];
    loop {
        match sys::recv(channel, &mut letter, 0) {
            Ok(1) => {}
            Err(sys::EINTR) => continue,
            _ => break,
        }
        let Some(kind) = Kind::of(letter[0]) else { break };
        let fds = match kind {
            Kind::V4 => maker.sockets(false),
            Kind::V6 => maker.sockets(true),
            Kind::Pipe => pipes(),
        };
        let sent = sys::sendmsg(channel, &[letter[0], fds.len() as u8], &rights::pass(&fds), MSG_NOSIGNAL);
        for fd in fds {
            sys::close(fd);
        }
        if sent.is_err() {
            break;
        }
    }
    maker.undo();
    sys::close(channel);
}

fn pipes() -> Vec<Fd> {
    let mut fds = Vec::new();
    for _ in 0..PIPES {
        if let Ok((read, write)) = sys::pipe() {
            // Beyond what a user may have in pipes they become tiny ones, which cost more than they bring.
            if sys::pipe_size(write, PIPE_BYTES).or_else(|_| sys::pipe_size(write, LEAST_PIPE)).is_ok() {
                fds.extend([read, write]);
            } else {
                sys::close(read);
                sys::close(write);
            }
        }
    }
    fds
}

/// A socket for connections from any address.
fn socket(v6: bool) -> Result<Fd, i32> {
    let sock = sys::socket(if v6 { INET6 } else { INET }, 1, 0)?;
    let transparent = if v6 { (SOL_IPV6, IPV6_TRANSPARENT) } else { (SOL_IP, IP_TRANSPARENT) };
    let set = |(level, option), value| sys::set_option(sock, level, option, value);
    set(transparent, 1)
        .and_then(|_| set((SOL_SOCKET, SO_MARK), MARK as i32))
        .and_then(|_| set((SOL_SOCKET, SO_REUSEADDR), 1))
        .inspect_err(|_| sys::close(sock))?;
    let _ = set((SOL_TCP, TCP_NODELAY), 1);
    // As over the interface: urgent data of the guest goes in line.
    let _ = set((SOL_SOCKET, SO_OOBINLINE), 1);
    Ok(sock)
}

impl Maker {
    fn sockets(&mut self, v6: bool) -> Vec<Fd> {
        let place = usize::from(v6);
        let known = self.ready.get(place).copied().flatten();
        let ready = known.unwrap_or_else(|| self.prepare(v6).is_ok());
        if let Some(known) = self.ready.get_mut(place) {
            *known = Some(ready);
        }
        if ready { (0..BATCH).map_while(|_| socket(v6).ok()).collect() } else { Vec::new() }
    }

    /// Opens what cannot be opened later.
    fn new() -> Result<Self, i32> {
        let netlink = Netlink::open()?;
        let lo = netlink.index("lo")?;
        let settings = SETTINGS
            .map(|name| attach::setting(name, sys::Access::Both).ok().map(|fd| Setting { fd, before: None }));
        Ok(Self { netlink, lo, settings, ready: [None; 2] })
    }

    /// Makes connections from any address of a family possible.
    fn prepare(&mut self, v6: bool) -> Result<(), i32> {
        for place in NEEDED.get(usize::from(v6)).copied().unwrap_or_default() {
            let setting = self.settings.get_mut(*place).and_then(Option::as_mut);
            setting.ok_or(sys::ENOENT)?.on()?;
        }
        let (netlink, family) = (&self.netlink, family(v6));
        // EEXIST: another engine serves this namespace by another interface, and will end with its rule.
        netlink.mark_rule(family, MARK, true)?;
        netlink.everything_local(family, self.lo, MARK, true).inspect_err(|_| {
            let _ = netlink.mark_rule(family, MARK, false);
        })
    }

    fn undo(&self) {
        for v6 in [false, true] {
            if self.ready.get(usize::from(v6)) == Some(&Some(true)) {
                let _ = self.netlink.mark_rule(family(v6), MARK, false);
                let _ = self.netlink.everything_local(family(v6), self.lo, MARK, false);
            }
        }
        for setting in self.settings.iter().flatten() {
            if let Some(before) = &setting.before {
                let _ = sys::write_start(setting.fd, before);
            }
        }
    }
}

fn family(v6: bool) -> u8 {
    (if v6 { INET6 } else { INET }) as u8
}
