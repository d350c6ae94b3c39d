//! TCP_INFO: the kernel's own counters of a connection.

use std::os::fd::AsRawFd;

use nix::libc;

/// The bytes of TCP_INFO. The C library's structure ends before the last counters.
#[derive(Clone, Copy)]
pub struct TcpInfo {
    bytes: [u8; 256],
    /// The number of bytes that the kernel wrote: older kernels lack the last counters.
    length: usize,
}

impl TcpInfo {
    /// Reads TCP_INFO of `socket`.
    pub fn read(socket: &impl AsRawFd) -> Self {
        let mut info = [0; 256];
        let mut size = libc::socklen_t::try_from(info.len()).expect("a small size");
        // SAFETY: the descriptor is open while `socket` is borrowed; the kernel writes at most `size` bytes to `info`.
        let result = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::IPPROTO_TCP,
                libc::TCP_INFO,
                info.as_mut_ptr().cast(),
                &raw mut size,
            )
        };
        assert_eq!(result, 0, "TCP_INFO: {}", std::io::Error::last_os_error());
        Self {
            bytes: info,
            length: size as usize,
        }
    }

    fn u32_at(&self, offset: usize) -> u32 {
        u32::from_ne_bytes(self.bytes[offset..offset + 4].try_into().expect("four bytes"))
    }

    fn u16_at(&self, offset: usize) -> u16 {
        u16::from_ne_bytes(self.bytes[offset..offset + 2].try_into().expect("two bytes"))
    }

    fn u64_at(&self, offset: usize) -> u64 {
        u64::from_ne_bytes(self.bytes[offset..offset + 8].try_into().expect("eight bytes"))
    }

    /// `tcpi_state`, as the kernel numbers the states.
    pub fn state(&self) -> u8 {
        self.bytes[0]
    }

    pub fn options(&self) -> u8 {
        self.bytes[5]
    }

    /// `tcpi_unacked`: segments that were sent and are not acknowledged.
    pub fn unacked(&self) -> u32 {
        self.u32_at(24)
    }

    pub fn total_retrans(&self) -> u32 {
        self.u32_at(100)
    }

    /// `tcpi_bytes_received`, which counts the peer's FIN as a byte.
    pub fn bytes_received(&self) -> u64 {
        self.u64_at(128)
    }

    pub fn bytes_sent(&self) -> u64 {
        self.u64_at(200)
    }

    pub fn bytes_retrans(&self) -> u64 {
        self.u64_at(208)
    }

    /// Returns the members that records report under the same names and in the same units, except those that change
    /// with time alone.
    pub fn reported(&self) -> Vec<(&'static str, u64)> {
        let mut members: Vec<_> = [
            ("rto_us", 8),
            ("pmtu", 60),
            ("rttvar_us", 72),
            ("rcv_ooopack", 224),
            ("snd_wnd", 228),
            ("reord_seen", 220),
        ]
        .map(|(name, offset)| (name, self.u32_at(offset).into()))
        .into();
        members.extend(
            [("busy_us", 168), ("rwnd_limited_us", 176), ("sndbuf_limited_us", 184)]
                .map(|(name, offset)| (name, self.u64_at(offset))),
        );
        // The kernel writes only the members that it knows (rcv_wnd 6.2, total_rto 6.7).
        if self.length >= 236 {
            members.push(("rcv_wnd", self.u32_at(232).into()));
        }
        if self.length >= 248 {
            members.push(("total_rto", self.u16_at(240).into()));
            members.push(("total_rto_ms", self.u32_at(244).into()));
        }
        members
    }

    /// Returns `tcpi_last_data_sent` and `tcpi_last_data_recv`, ms.
    pub fn last_data_ms(&self) -> [u32; 2] {
        [self.u32_at(44), self.u32_at(52)]
    }

    /// Returns the round-trip time that the receiver estimates (`tcpi_rcv_rtt`), µs.
    pub fn rcv_rtt_us(&self) -> u32 {
        self.u32_at(92)
    }
}
