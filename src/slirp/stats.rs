//! Counters. They only ever rise and wrap never in practice; a bad packet is counted and dropped, not logged.

/// What one flow has carried.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Payload bytes of the guest that were taken from it.
    pub sent: u64,
    /// Payload bytes that were sent to the guest; what was sent again counts once.
    pub received: u64,
    /// Segments that were sent to the guest again.
    pub resent: u32,
}

/// What an engine has seen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Frames from the guest.
    pub frames_in: u64,
    /// Bytes of them.
    pub bytes_in: u64,
    /// Frames to the guest.
    pub frames_out: u64,
    /// Bytes of them.
    pub bytes_out: u64,
    /// Frames that no parser understood, or whose checksum was wrong.
    pub malformed: u64,
    /// Frames from addresses that are not the guest's.
    pub martian: u64,
    /// Fragments that could not be put together: overlapping, too many, too late.
    pub fragments: u64,
    /// Protocols that are not carried.
    pub unsupported: u64,
    /// Packets refused by policy.
    pub refused: u64,
    /// Frames lost because the device was full.
    pub device_full: u64,
    /// Guest data dropped because the bounds of memory were reached.
    pub memory_full: u64,
    /// TCP flows opened by the guest.
    pub tcp_out: u64,
    /// TCP flows opened from the host.
    pub tcp_in: u64,
    /// Those of them that are passed on from kernel to kernel and not over the interface.
    pub tcp_spliced: u64,
    /// Those that should have been, but could not.
    pub tcp_unspliced: u64,
    /// UDP and echo flows.
    pub datagram_flows: u64,
    /// Segments that arrived behind a hole.
    pub out_of_order: u64,
    /// Segments sent again.
    pub retransmits: u64,
    /// Retransmission timers that ran out.
    pub timeouts: u64,
    /// Challenge acknowledgements (RFC 5961).
    pub challenges: u64,
    /// Flows shed to make room.
    pub shed: u64,
    /// Echo requests that could not leave: the host's `ping_group_range` does not hold our group.
    pub ping_forbidden: u64,
    /// DNS queries that moved on to another resolver.
    pub dns_failover: u64,
}

impl Stats {
    /// One counter a line: name and value.
    pub fn lines(&self) -> String {
        let all = [
            ("frames_in", self.frames_in),
            ("bytes_in", self.bytes_in),
            ("frames_out", self.frames_out),
            ("bytes_out", self.bytes_out),
            ("malformed", self.malformed),
            ("martian", self.martian),
            ("fragments", self.fragments),
            ("unsupported", self.unsupported),
            ("refused", self.refused),
            ("device_full", self.device_full),
            ("memory_full", self.memory_full),
            ("tcp_out", self.tcp_out),
            ("tcp_in", self.tcp_in),
            ("tcp_spliced", self.tcp_spliced),
            ("tcp_unspliced", self.tcp_unspliced),
            ("datagram_flows", self.datagram_flows),
            ("out_of_order", self.out_of_order),
            ("retransmits", self.retransmits),
            ("timeouts", self.timeouts),
            ("challenges", self.challenges),
            ("shed", self.shed),
            ("ping_forbidden", self.ping_forbidden),
            ("dns_failover", self.dns_failover),
        ];
        all.iter().map(|(name, value)| format!("{name} {value}\n")).collect()
    }
}
