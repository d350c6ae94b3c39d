//! TCP_INFO: the kernel's own counters of a connection.

use std::os::fd::AsRawFd;

use nix::libc;

/// The bytes of TCP_INFO. The C library's structure ends before the last counters.
#[derive(Clone, Copy)]
pub struct TcpInfo([u8; 256]);

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
        Self(info)
    }

    fn u32_at(&self, offset: usize) -> u32 {
        u32::from_ne_bytes(self.0[offset..offset + 4].try_into().expect("four bytes"))
    }

    fn u64_at(&self, offset: usize) -> u64 {
        u64::from_ne_bytes(self.0[offset..offset + 8].try_into().expect("eight bytes"))
    }

    /// `tcpi_state`, as the kernel numbers the states.
    pub fn state(&self) -> u8 {
        self.0[0]
    }

    pub fn options(&self) -> u8 {
        self.0[5]
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
}
