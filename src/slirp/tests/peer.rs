//! The engine against another TCP: smoltcp plays the guest, over a cable that loses, doubles, reorders, delays and
//! damages frames. What arrives must be what was sent, in both directions at once, for many seeds.

use crate::slirp::config::Config;
use crate::slirp::device::{Capabilities, Device, Fault, Faults, Memory, pair};
use crate::slirp::engine::Engine;
use crate::slirp::host::Sock;
use crate::slirp::host::simulated::Simulated;
use crate::slirp::time::{MS, SEC, Time};
use crate::slirp::wire::vnet::{self, VnetHeader};
use smoltcp::iface::{Interface, SocketSet};
use smoltcp::phy;
use smoltcp::socket::tcp;
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpAddress, IpCidr, Ipv4Address};

/// The guest's end of the cable as smoltcp wants it: plain frames, cut and summed by smoltcp itself.
struct Cable(Memory);
struct Rx(Vec<u8>);
struct Tx<'a>(&'a mut Memory);

impl phy::RxToken for Rx {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0[vnet::LEN..])
    }
}

impl phy::TxToken for Tx<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; vnet::LEN + len];
        frame[..vnet::LEN].copy_from_slice(&VnetHeader::default().emit());
        let result = f(&mut frame[vnet::LEN..]);
        let _ = self.0.send(&frame);
        result
    }
}

impl phy::Device for Cable {
    type RxToken<'a> = Rx;
    type TxToken<'a> = Tx<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Rx, Tx<'_>)> {
        let frame = self.0.pop()?;
        Some((Rx(frame), Tx(&mut self.0)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Tx<'_>> {
        Some(Tx(&mut self.0))
    }

    fn capabilities(&self) -> phy::DeviceCapabilities {
        let mut caps = phy::DeviceCapabilities::default();
        caps.medium = phy::Medium::Ethernet;
        caps.max_transmission_unit = 1514;
        caps
    }
}

fn pattern(len: usize, salt: u32) -> Vec<u8> {
    (0..len as u32).map(|i| (i.wrapping_mul(2_654_435_761).wrapping_add(salt) >> 11) as u8).collect()
}

/// Sends `len` bytes both ways and closes both; gives the time it took.
fn exchange(faults: Faults, seed: u64, len: usize) -> Time {
    let (near, guest) = pair(Capabilities::default(), 4096);
    let mut engine =
        Engine::new(Config::default(), Simulated::default(), Fault::new(near, faults, faults, seed), 0);
    let mut cable = Cable(guest);
    let mac = EthernetAddress([2, 0, 0, 0, 0, 1]);
    let mut iface = Interface::new(
        smoltcp::iface::Config::new(HardwareAddress::Ethernet(mac)),
        &mut cable,
        Instant::from_micros(0),
    );
    iface.update_ip_addrs(|a| a.push(IpCidr::new(IpAddress::v4(10, 0, 2, 100), 24)).unwrap());
    iface.routes_mut().add_default_ipv4_route(Ipv4Address::new(10, 0, 2, 2)).unwrap();
    let buffer = || tcp::SocketBuffer::new(vec![0; 256 << 10]);
    let mut sockets = SocketSet::new(Vec::new());
    let handle = sockets.add(tcp::Socket::new(buffer(), buffer()));
    sockets
        .get_mut::<tcp::Socket<'_>>(handle)
        .connect(iface.context(), (IpAddress::v4(192, 0, 2, 1), 80), 40000)
        .unwrap();

    let (up, down) = (pattern(len, 1), pattern(len, 2));
    let (mut said, mut heard) = (0, Vec::new());
    let (mut fed, mut now) = (false, 0);
    loop {
        let at = Instant::from_micros(now as i64);
        iface.poll(at, &mut cable, &mut sockets);
        let socket = sockets.get_mut::<tcp::Socket<'_>>(handle);
        if socket.can_send() && said < up.len() {
            said += socket.send_slice(&up[said..]).unwrap();
            if said == up.len() {
                socket.close();
            }
        }
        while socket.can_recv() {
            socket.recv(|data| (data.len(), heard.extend_from_slice(data))).unwrap();
        }
        iface.poll(at, &mut cable, &mut sockets);

        engine.advance(now);
        let _ = engine.receive();
        while let Some((token, ready)) = engine.core.host.event() {
            engine.host_event(token, ready);
        }
        if let (false, Some(socket)) = (fed, engine.core.host.sockets.first()) {
            assert_eq!(socket.closed, None);
            fed = true;
            engine.core.host.feed(0 as Sock, &down);
            engine.core.host.end(0);
        }
        let done = engine.core.host.sockets.first().is_some_and(|s| s.closed.is_some());
        if done && heard.len() == len {
            break;
        }
        assert!(now < 600 * SEC, "seed {seed}: heard {} of {len}, {:?}", heard.len(), engine.stats());
        now += MS;
    }
    let socket = &engine.core.host.sockets[0];
    assert_eq!(socket.closed, Some(false), "seed {seed}");
    assert!(socket.sent == up && heard == down, "seed {seed}: what arrives is what was sent");
    assert_eq!(engine.core.buffered, 0, "seed {seed}");
    now
}

#[test]
fn perfect_cable() {
    assert!(exchange(Faults::default(), 1, 2 << 20) < 2 * SEC);
}

#[test]
fn long_path() {
    let faults = Faults { delay: 25 * MS, ..Faults::default() };
    assert!(exchange(faults, 1, 2 << 20) < 10 * SEC);
}

#[test]
fn loss_of_one_in_a_hundred() {
    for seed in 0..10 {
        exchange(Faults { loss: 100, delay: MS, ..Faults::default() }, seed, 500_000);
    }
}

#[test]
fn everything_at_once() {
    for seed in 100..110 {
        let faults = Faults { loss: 300, duplicate: 200, corrupt: 200, delay: 2 * MS, jitter: 10 * MS };
        exchange(faults, seed, 200_000);
    }
}
