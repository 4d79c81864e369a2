//! Who is on the link: ARP, neighbour discovery, router advertisements.
//!
//! We answer for the gateway and the resolver and for nobody else, so that a guest's duplicate address detection
//! finds its address free, and an address without an owner stays without one.

use super::core::Core;
use super::device::Device;
use super::host::Host;
use super::wire::arp::{self, Arp};
use super::wire::ethernet::{self, Mac};
use super::wire::icmpv6::Icmpv6;
use super::wire::ip::{self, Ip};
use super::wire::ndp::{self, RouterAdvert};
use std::net::{IpAddr, Ipv6Addr};

/// All nodes on the link.
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// An ARP packet from the guest.
pub fn arp<H: Host, D: Device>(core: &mut Core<H, D>, from: Mac, packet: &[u8]) {
    let Some(arp) = Arp::parse(packet) else {
        core.stats.malformed += 1;
        return;
    };
    let sender = IpAddr::V4(arp.sender);
    if core.config.is_guest(sender) && arp.sender_mac == from {
        core.learn(sender, from);
    }
    if arp.op == arp::REQUEST && core.config.is_ours(arp.target.into()) {
        let answer = Arp {
            op: arp::REPLY,
            sender_mac: core.config.mac,
            sender: arp.target,
            target_mac: arp.sender_mac,
            target: arp.sender,
        };
        core.send_raw(from, ethernet::ARP, &answer.emit());
    }
}

/// A neighbour discovery message from the guest (RFC 4861: only with hop limit 255).
pub fn ndp<H: Host, D: Device>(core: &mut Core<H, D>, ip: &Ip, from: Mac, message: &Icmpv6<'_>) {
    if ip.ttl != 255 || message.code != 0 {
        core.stats.malformed += 1;
        return;
    }
    match message.kind {
        ndp::NEIGHBOR_SOLICIT => match ndp::solicited(message) {
            Some(target) if core.config.is_ours(target.into()) => {
                if !ip.src.is_unspecified() {
                    core.learn(ip.src, from);
                }
                // Whoever asks without an address is told by all (RFC 4861 §7.2.4).
                let single = !ip.src.is_unspecified();
                let dst = if single { ip.src } else { ALL_NODES.into() };
                let (rest, data) = ndp::advertise(target, core.config.mac, single);
                send(core, target, dst, &Icmpv6 { kind: ndp::NEIGHBOR_ADVERT, code: 0, rest, data: &data });
            }
            Some(_) => {}
            None => core.stats.malformed += 1,
        },
        ndp::ROUTER_SOLICIT => {
            if ndp::check_options(message.data).is_some() {
                if !core.config.services {
                    return;
                }
                advertise(core, ip.src, 1800);
            } else {
                core.stats.malformed += 1;
            }
        }
        _ => {}
    }
}

/// Tells `to`, or everybody if that is no address, that there is a router here for `lifetime` seconds.
pub fn advertise<H: Host, D: Device>(core: &mut Core<H, D>, to: IpAddr, lifetime: u16) {
    let Some(v6) = &core.config.v6 else { return };
    let mut prefix = v6.gateway.octets();
    prefix[8..].fill(0);
    let advert = RouterAdvert {
        mac: core.config.mac,
        mtu: core.config.mtu.into(),
        prefix: prefix.into(),
        dns: v6.dns,
        lifetime,
    };
    let (rest, data) = advert.emit();
    let dst = if to.is_unspecified() { ALL_NODES.into() } else { to };
    let source = core.config.link_local();
    send(core, source, dst, &Icmpv6 { kind: ndp::ROUTER_ADVERT, code: 0, rest, data: &data });
}

fn send<H: Host, D: Device>(core: &mut Core<H, D>, src: Ipv6Addr, dst: IpAddr, message: &Icmpv6<'_>) {
    let ip = Ip { ttl: 255, ..Ip::new(src.into(), dst, ip::ICMPV6) };
    core.send_ip(&ip, &message.emit(&ip));
}
