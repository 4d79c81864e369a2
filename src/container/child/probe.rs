//! The steps that only try something out. **Process:** the child; its rules hold here too.

use super::{AT_FDCWD, Child, O_CLOEXEC, exit, text};
use crate::container::step::Probe;
use crate::sys::raw::nr;

/// What a netlink answer can hold: nlmsghdr and the errno of NLMSG_ERROR (netlink(7)).
const ANSWER: usize = 64;

impl Child<'_> {
    pub(super) fn probe(&mut self, probe: &Probe) -> Result<(), i32> {
        match probe {
            Probe::Enough => exit(0),
            Probe::Attribute(path) => {
                let value = b"1";
                let arguments = [text(path), text(c"user.r2d2"), value.as_ptr() as usize, value.len(), 0];
                self.call(nr::SETXATTR, arguments).map(drop)
            }
            Probe::Veth => self.veth(),
            Probe::Packet => {
                const AF_PACKET: usize = 17;
                const SOCK_RAW: usize = 3;
                let socket = self.call(nr::SOCKET, [AF_PACKET, SOCK_RAW | O_CLOEXEC, 0])?;
                self.close(socket);
                Ok(())
            }
            Probe::Tap => {
                const O_RDWR: usize = 2;
                const TUNSETIFF: usize = 0x4004_54ca;
                const IFF_TAP_NO_PI: u16 = 0x1002;
                let tun = self.call(nr::OPENAT, [AT_FDCWD, text(c"/dev/net/tun"), O_RDWR | O_CLOEXEC])?;
                let mut request = [0u8; 40]; // struct ifreq: no name, the kernel gives one
                if let Some(slot) = request.get_mut(16..18) {
                    slot.copy_from_slice(&IFF_TAP_NO_PI.to_ne_bytes());
                }
                let made = self.call(nr::IOCTL, [tun, TUNSETIFF, request.as_mut_ptr() as usize]);
                self.close(tun);
                made.map(drop)
            }
        }
    }

    /// `ip link add type veth`, by netlink (rtnetlink(7)). The devices go with the network namespace.
    fn veth(&mut self) -> Result<(), i32> {
        const AF_NETLINK: usize = 16;
        const SOCK_RAW: usize = 3;
        const LENGTH: u32 = 16 + 16 + 4 + 8;
        const NEWLINK: u32 = 16; // RTM_NEWLINK
        const FLAGS: u32 = 0x001 | 0x004 | 0x200 | 0x400; // REQUEST, ACK, EXCL, CREATE
        const LINKINFO: u32 = 18 << 16 | 0xC; // IFLA_LINKINFO, 12 bytes
        const INFO_KIND: u32 = 1 << 16 | 0x8; // IFLA_INFO_KIND, 8 bytes
        // nlmsghdr, ifinfomsg (all zero), and the two attributes, in the byte order of the only machines so far.
        let message: [u32; LENGTH as usize / 4] = [
            LENGTH,
            FLAGS << 16 | NEWLINK,
            1,
            0,
            0,
            0,
            0,
            0,
            LINKINFO,
            INFO_KIND,
            u32::from_le_bytes(*b"veth"),
        ];
        let socket = self.call(nr::SOCKET, [AF_NETLINK, SOCK_RAW | O_CLOEXEC, 0])?;
        let mut answer = [0u8; ANSWER];
        let made = self
            .call(nr::WRITE, [socket, message.as_ptr() as usize, LENGTH as usize])
            .and_then(|_| self.call(nr::READ, [socket, answer.as_mut_ptr() as usize, ANSWER]));
        self.close(socket);
        self.failed = nr::SENDMSG;
        made?;
        let errno = answer.get(16..20).and_then(|bytes| bytes.try_into().ok()).map_or(0, i32::from_ne_bytes);
        if errno == 0 { Ok(()) } else { Err(-errno) }
    }
}
