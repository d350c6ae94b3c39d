//! Sockets, and what a test knows about the connections that it makes.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd as _, AsRawFd};
use std::time::{Duration, SystemTime};

use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, Type};

use super::net;

/// The family that a scenario runs with.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum V {
    /// IPv4.
    Four,
    /// IPv6.
    Six,
}

impl V {
    /// As the records spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Four => "ipv4",
            Self::Six => "ipv6",
        }
    }

    /// The scenario's loopback address of IPv4, or the one of IPv6.
    pub fn loopback(self) -> IpAddr {
        match self {
            Self::Four => net::address(0).into(),
            Self::Six => net::loopback_v6().into(),
        }
    }

    /// A loopback address with this port.
    pub fn at(self, port: u16) -> SocketAddr {
        SocketAddr::new(self.loopback(), port)
    }

    /// A TCP socket of this family.
    pub fn socket(self) -> Socket {
        stream_socket(self.at(0), Protocol::TCP)
    }
}

/// A stream socket of the family of `addr`.
pub fn stream_socket(addr: SocketAddr, protocol: Protocol) -> Socket {
    Socket::new(Domain::for_address(addr), Type::STREAM, Some(protocol)).expect("socket()")
}

/// Two moments that something happened between.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    /// Before it.
    pub before: SystemTime,
    /// After it.
    pub after: SystemTime,
}

/// Runs `act`, and tells when.
pub fn timed<T>(act: impl FnOnce() -> T) -> (T, Span) {
    let before = SystemTime::now();
    let value = act();
    (
        value,
        Span {
            before,
            after: SystemTime::now(),
        },
    )
}

/// What the test knows of a connection: who called whom, and when.
#[derive(Clone, Copy, Debug)]
pub struct Truth {
    /// The client's address.
    pub src: SocketAddr,
    /// The server's.
    pub dst: SocketAddr,
    /// The client's connect().
    pub connect: Span,
    /// From before the connect() until after the accept().
    pub open: Span,
}

/// Both ends of a connection in this process.
pub struct Pair {
    /// The end that connected.
    pub client: TcpStream,
    /// The end that was accepted.
    pub server: TcpStream,
    /// What the records must say.
    pub truth: Truth,
}

/// A listener at a free port of the loopback.
pub fn listen(v: V) -> TcpListener {
    TcpListener::bind(v.at(0)).expect("listen on the loopback")
}

/// Connects to `listener` and accepts.
pub fn pair_with(listener: &TcpListener) -> Pair {
    let dst = listener.local_addr().expect("the listener's address");
    let (client, connect) = timed(|| TcpStream::connect(dst).expect("connect"));
    let (server, peer) = listener.accept().expect("accept");
    let src = client.local_addr().expect("the client's address");
    assert_eq!(peer, src, "accepted someone else");
    let open = Span {
        before: connect.before,
        after: SystemTime::now(),
    };
    Pair {
        client,
        server,
        truth: Truth {
            src,
            dst,
            connect,
            open,
        },
    }
}

/// A connection over the loopback.
pub fn pair(v: V) -> Pair {
    pair_with(&listen(v))
}

/// Sends `count` bytes.
pub fn give(mut to: &TcpStream, count: usize) {
    static CHUNK: [u8; 65536] = [0x5a; 65536];
    let mut left = count;
    while left > 0 {
        let part = left.min(CHUNK.len());
        to.write_all(&CHUNK[..part]).expect("write");
        left -= part;
    }
}

/// Receives exactly `count` bytes.
pub fn take(mut from: &TcpStream, count: usize) {
    let mut buffer = vec![0; 65536.min(count.max(1))];
    let mut left = count;
    while left > 0 {
        let part = left.min(buffer.len());
        let got = from.read(&mut buffer[..part]).expect("read");
        assert_ne!(got, 0, "end of stream, {left} of {count} bytes missing");
        left -= got;
    }
}

/// Reads until the end of the stream, and tells how much there was.
pub fn drain(mut from: &TcpStream) -> usize {
    let mut buffer = [0; 65536];
    let mut all = 0;
    loop {
        match from.read(&mut buffer).expect("read until the end") {
            0 => return all,
            got => all += got,
        }
    }
}

/// Sends over and back, each received before the next step, so that both ends have it acknowledged or in order.
pub fn exchange(pair: &Pair, up: usize, down: usize) {
    give(&pair.client, up);
    take(&pair.server, up);
    give(&pair.server, down);
    take(&pair.client, down);
}

/// Waits until all that was written is acknowledged: SIOCOUTQ at zero. The kernel has no event for it, so this yields.
pub fn flushed(socket: &TcpStream) {
    wait_until("everything is acknowledged", || unacknowledged(socket) == 0);
}

/// Bytes written and not yet acknowledged.
pub fn unacknowledged(socket: &TcpStream) -> usize {
    use std::os::fd::AsRawFd as _;
    nix::ioctl_read_bad!(outq, libc::TIOCOUTQ, libc::c_int);
    let mut left = 0;
    // SAFETY: the descriptor is open for as long as `socket` is borrowed, and TIOCOUTQ writes one int.
    unsafe { outq(socket.as_raw_fd(), &raw mut left) }.expect("SIOCOUTQ");
    usize::try_from(left).expect("a count")
}

/// Waits until a fact that has no event comes true: polls it, at first all the time, then once a millisecond, so that many
/// waiting tests leave the processors to what they wait for.
pub fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    const EAGER: u32 = 100;
    let start = std::time::Instant::now();
    let mut polls = 0;
    while !is_so() {
        assert!(start.elapsed() < super::patience(), "waited in vain until {what}");
        if polls < EAGER {
            std::thread::yield_now();
        } else {
            std::thread::sleep(Duration::from_millis(1));
        }
        polls += 1;
    }
}

/// Waits until every connection with this port at either end, in the calling thread's namespace, has ended at both ends.
/// close() returns before that: the last segments are still on their way where the kernel is busy.
pub fn wait_ended(port: u16) {
    wait_until("all connections have ended", || states(port).is_empty());
}

/// The states of the namespace's connections with this port at either end, as `/proc/net/tcp` numbers them. Listeners and
/// time-wait stubs are no connections.
pub fn states(port: u16) -> Vec<u8> {
    const TIME_WAIT: u8 = 6;
    const LISTEN: u8 = 10;
    let mut states = Vec::new();
    for file in ["tcp", "tcp6"] {
        let text =
            std::fs::read_to_string(format!("/proc/thread-self/net/{file}")).expect("the namespace's connections");
        for line in text.lines().skip(1) {
            // sl, local address, remote address, state.
            let fields: Vec<&str> = line.split_whitespace().take(4).collect();
            let [_, local, remote, state] = fields[..] else {
                panic!("no connection: {line}")
            };
            let is_port = |end: &str| {
                end.rsplit(':')
                    .next()
                    .and_then(|text| u16::from_str_radix(text, 16).ok())
                    == Some(port)
            };
            let state = u8::from_str_radix(state, 16).expect("a state");
            if (is_port(local) || is_port(remote)) && ![TIME_WAIT, LISTEN].contains(&state) {
                states.push(state);
            }
        }
    }
    states
}

/// Closes so that the peer gets a RST.
pub fn reset(socket: TcpStream) {
    SockRef::from(&socket)
        .set_linger(Some(Duration::ZERO))
        .expect("SO_LINGER");
    drop(socket);
}

/// connect() to AF_UNSPEC, which resets a connection and makes the socket new.
pub fn dissolve(socket: &impl AsRawFd) {
    let unspecified = libc::sockaddr {
        sa_family: libc::AF_UNSPEC as libc::sa_family_t,
        sa_data: [0; 14],
    };
    let size = libc::socklen_t::try_from(size_of_val(&unspecified)).unwrap();
    // SAFETY: the descriptor is open while `socket` is borrowed, and the address lives through the call.
    let done = unsafe { libc::connect(socket.as_raw_fd(), &raw const unspecified, size) };
    assert_eq!(done, 0, "AF_UNSPEC: {}", std::io::Error::last_os_error());
}

/// The error that the kernel has for the program: SO_ERROR, or what a read says. Waits until there is one.
pub fn error_of(socket: &TcpStream) -> Errno {
    ready(socket, PollFlags::POLLERR);
    let error = socket.take_error().expect("SO_ERROR").expect("an error on the socket");
    Errno::from_raw(error.raw_os_error().expect("an errno"))
}

/// Waits until there is an error, and leaves it there.
pub fn wait_error(socket: &TcpStream) {
    ready(socket, PollFlags::POLLERR);
}

/// Waits until one of `events` comes (errors and hang-ups always count).
fn ready(socket: &TcpStream, events: PollFlags) {
    let mut fds = [PollFd::new(socket.as_fd(), events)];
    let limit = PollTimeout::try_from(super::patience()).expect("a poll timeout");
    loop {
        match poll(&mut fds, limit) {
            Err(Errno::EINTR) => {}
            other => return assert!(other.expect("poll") > 0, "poll: nothing came"),
        }
    }
}

/// An attempt under way, and what is known of it.
pub struct Dial {
    /// The socket, non-blocking.
    pub socket: TcpStream,
    /// What connect() said.
    pub said: Errno,
    /// Its records. `open` is only the connect() here.
    pub truth: Truth,
}

/// A non-blocking connect() from a bound port, so that the port is known however it ends.
pub fn dial(from: SocketAddr, to: SocketAddr) -> Dial {
    dial_with(from, to, |_| ())
}

/// As [`dial`], with socket options set before.
pub fn dial_with(from: SocketAddr, to: SocketAddr, options: impl FnOnce(&Socket)) -> Dial {
    let socket = bound(from);
    options(&socket);
    socket.set_nonblocking(true).expect("O_NONBLOCK");
    let src = address(&socket);
    let (said, connect) = timed(|| errno_of(socket.connect(&SockAddr::from(to))));
    Dial {
        socket: socket.into(),
        said,
        truth: Truth {
            src,
            dst: to,
            connect,
            open: connect,
        },
    }
}

/// A blocking connect() from a bound port that must fail: what it said, and its truth.
pub fn dial_blocking(from: SocketAddr, to: SocketAddr, options: impl FnOnce(&Socket)) -> (Errno, Truth) {
    let socket = bound(from);
    options(&socket);
    let src = address(&socket);
    let (said, connect) = timed(|| errno_of(socket.connect(&SockAddr::from(to))));
    (
        said,
        Truth {
            src,
            dst: to,
            connect,
            open: connect,
        },
    )
}

/// A socket bound to `from`. A port of zero becomes a free one.
pub fn bound(from: SocketAddr) -> Socket {
    let socket = stream_socket(from, Protocol::TCP);
    socket.set_reuse_address(true).expect("SO_REUSEADDR");
    socket.bind(&SockAddr::from(from)).expect("bind");
    socket
}

/// Its own address.
pub fn address(socket: &Socket) -> SocketAddr {
    socket
        .local_addr()
        .expect("getsockname")
        .as_socket()
        .expect("an IP address")
}

/// The errno of a call, zero for success.
pub fn errno_of<T>(result: std::io::Result<T>) -> Errno {
    match result {
        Ok(_) => Errno::from_raw(0),
        Err(error) => Errno::from_raw(error.raw_os_error().unwrap_or_else(|| panic!("no errno: {error}"))),
    }
}

/// A port that was free a moment ago, for a program that is about to listen there.
pub fn free_port(v: V) -> u16 {
    listen(v).local_addr().expect("its address").port()
}

/// A port of all addresses that nobody listens on. The kernel gives it to no other socket until this is dropped.
///
/// Were the port only free, the kernel could give it to another socket of the test, such as the listener of
/// [`super::expect::Scene`]'s marker, to which a packet filter's rule about this port would then apply.
pub struct ClosedPort {
    /// Bound, not listening: a SYN is answered with a RST.
    holder: Socket,
}

impl ClosedPort {
    /// Takes a free one.
    pub fn new() -> Self {
        let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0));
        let holder = stream_socket(any, Protocol::TCP);
        holder.set_only_v6(false).expect("IPV6_V6ONLY");
        holder.bind(&SockAddr::from(any)).expect("bind");
        Self { holder }
    }

    /// Its number.
    pub fn number(&self) -> u16 {
        address(&self.holder).port()
    }

    /// The loopback address with this port.
    pub fn at(&self, v: V) -> SocketAddr {
        v.at(self.number())
    }
}

/// TCP_LINGER2: how long an orphan waits in FIN_WAIT2. Below zero: not at all.
pub fn set_linger2(socket: &TcpStream, seconds: i32) {
    set_tcp_option(socket, libc::TCP_LINGER2, seconds);
}

/// An integer option of IPPROTO_TCP that no crate has a name for.
pub fn set_tcp_option(socket: &impl AsRawFd, option: i32, value: i32) {
    set_option(socket, libc::IPPROTO_TCP, option, value);
}

/// Sets an integer option of any level.
pub fn set_option(socket: &impl AsRawFd, level: i32, option: i32, value: i32) {
    let size = libc::socklen_t::try_from(size_of::<i32>()).expect("four");
    // SAFETY: the descriptor is open while `socket` is borrowed, and `value` is an int that lives through the call.
    let done = unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const value).cast(), size) };
    assert_eq!(done, 0, "setsockopt {option}: {}", std::io::Error::last_os_error());
}

/// Segments sent and not yet acknowledged, by TCP_INFO.
pub fn in_flight(socket: &TcpStream) -> u32 {
    tcp_info(socket).tcpi_unacked
}

/// The kernel's own account of a connection.
pub fn tcp_info(socket: &impl AsRawFd) -> libc::tcp_info {
    // SAFETY: `tcp_info` is integers only, for which zeros are a value.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut size = libc::socklen_t::try_from(size_of_val(&info)).expect("a small size");
    // SAFETY: the descriptor is open while `socket` is borrowed; the kernel writes at most `size` bytes to `info`.
    let done = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut size,
        )
    };
    assert_eq!(done, 0, "TCP_INFO: {}", std::io::Error::last_os_error());
    info
}

/// The bytes of TCP_INFO. The C library's structure ends before the last counters.
#[derive(Clone, Copy)]
pub struct TcpInfo([u8; 256]);

impl TcpInfo {
    /// Returns what the kernel says of `socket`.
    pub fn of(socket: &impl AsRawFd) -> Self {
        let mut info = [0; 256];
        let mut size = libc::socklen_t::try_from(info.len()).expect("a small size");
        // SAFETY: the descriptor is open while `socket` is borrowed; the kernel writes at most `size` bytes to `info`.
        let done = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::IPPROTO_TCP,
                libc::TCP_INFO,
                info.as_mut_ptr().cast(),
                &raw mut size,
            )
        };
        assert_eq!(done, 0, "TCP_INFO: {}", std::io::Error::last_os_error());
        Self(info)
    }

    fn u64_at(&self, at: usize) -> u64 {
        u64::from_ne_bytes(self.0[at..at + 8].try_into().expect("eight bytes"))
    }

    /// Returns `tcpi_state`.
    pub fn state(&self) -> u8 {
        self.0[0]
    }

    /// Returns `tcpi_total_retrans`.
    pub fn total_retrans(&self) -> u32 {
        u32::from_ne_bytes(self.0[100..104].try_into().expect("four bytes"))
    }

    /// Returns `tcpi_bytes_received`, the peer's FIN included.
    pub fn bytes_received(&self) -> u64 {
        self.u64_at(128)
    }

    /// Returns `tcpi_bytes_sent`.
    pub fn bytes_sent(&self) -> u64 {
        self.u64_at(200)
    }

    /// Returns `tcpi_bytes_retrans`.
    pub fn bytes_retrans(&self) -> u64 {
        self.u64_at(208)
    }
}

/// Waits until a RST has ended this end.
pub fn wait_closed(socket: &TcpStream) {
    const CLOSE: u8 = 7;
    wait_until("the connection has ended", || tcp_info(socket).tcpi_state == CLOSE);
}

/// Waits until the peer has acknowledged the FIN of a shutdown(): FIN_WAIT2. That may take it 40 ms, in the hope of data to
/// send along.
pub fn fin_acknowledged(socket: &TcpStream) {
    const FIN_WAIT2: u8 = 5;
    wait_until("the FIN is acknowledged", || tcp_info(socket).tcpi_state == FIN_WAIT2);
}
