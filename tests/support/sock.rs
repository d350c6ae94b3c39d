//! TCP sockets, and what a test knows about the connections that it makes.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd as _, AsRawFd};
use std::time::{Duration, Instant, SystemTime};

use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, Type};

use super::net;
use super::tcp_info::TcpInfo;

/// The IP version that a scenario runs with.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum IpVersion {
    V4,
    V6,
}

impl IpVersion {
    /// Returns the version as records spell it in `family`.
    pub fn name(self) -> &'static str {
        match self {
            Self::V4 => "ipv4",
            Self::V6 => "ipv6",
        }
    }

    /// Returns the scenario's loopback address.
    pub fn loopback(self) -> IpAddr {
        match self {
            Self::V4 => net::loopback_v4(0).into(),
            Self::V6 => net::loopback_v6().into(),
        }
    }

    /// Returns the scenario's loopback address with this port.
    pub fn at(self, port: u16) -> SocketAddr {
        SocketAddr::new(self.loopback(), port)
    }

    /// Creates a TCP socket.
    pub fn socket(self) -> Socket {
        stream_socket(self.at(0), Protocol::TCP)
    }
}

/// Creates a stream socket for the IP version of `addr`.
pub fn stream_socket(addr: SocketAddr, protocol: Protocol) -> Socket {
    Socket::new(Domain::for_address(addr), Type::STREAM, Some(protocol)).expect("socket()")
}

/// The times just before and just after an event.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    pub before: SystemTime,
    pub after: SystemTime,
}

impl Span {
    /// Extends the span to the present.
    pub fn until_now(self) -> Self {
        Self {
            after: SystemTime::now(),
            ..self
        }
    }
}

/// Runs `action`, and returns its result and when it ran.
pub fn timed<T>(action: impl FnOnce() -> T) -> (T, Span) {
    let before = SystemTime::now();
    let result = action();
    let after = SystemTime::now();
    (result, Span { before, after })
}

/// What the test itself knows about a connection.
#[derive(Clone, Copy, Debug)]
pub struct Truth {
    /// The address of the client.
    pub src: SocketAddr,
    /// The address of the server.
    pub dst: SocketAddr,
    /// The time of the client's connect().
    pub connect: Span,
    /// The time from before the connect() until after the accept(). Equal to `connect` if nobody accepts.
    pub open: Span,
}

impl Truth {
    /// A connection, or an attempt, that nobody accepts.
    pub fn not_accepted(src: SocketAddr, dst: SocketAddr, connect: Span) -> Self {
        Self {
            src,
            dst,
            connect,
            open: connect,
        }
    }

    /// A connection whose server has just accepted it.
    pub fn accepted_now(src: SocketAddr, dst: SocketAddr, connect: Span) -> Self {
        Self {
            src,
            dst,
            connect,
            open: connect.until_now(),
        }
    }
}

/// Both ends of a connection in this process.
pub struct Pair {
    pub client: TcpStream,
    pub server: TcpStream,
    pub truth: Truth,
}

impl Pair {
    /// Closes the client, then the server once it has read the end of the stream. Neither may have unread data.
    pub fn close_client_first(self) -> Truth {
        drop(self.client);
        assert_eq!(drain(&self.server), 0);
        self.truth
    }

    /// Closes the server, then the client once it has read the end of the stream. Neither may have unread data.
    pub fn close_server_first(self) -> Truth {
        drop(self.server);
        assert_eq!(drain(&self.client), 0);
        self.truth
    }
}

/// Listens on a free port of the loopback.
pub fn listen(version: IpVersion) -> TcpListener {
    TcpListener::bind(version.at(0)).expect("listen on the loopback")
}

/// Connects to `listener` and accepts.
pub fn pair_with(listener: &TcpListener) -> Pair {
    let dst = listener.local_addr().expect("the listener's address");
    let (client, connect) = timed(|| TcpStream::connect(dst).expect("connect"));
    accept(listener, client, connect)
}

/// Accepts the connection that `client` has just made.
pub fn accept(listener: &TcpListener, client: TcpStream, connect: Span) -> Pair {
    let (server, peer) = listener.accept().expect("accept");
    let src = client.local_addr().expect("the client's address");
    assert_eq!(peer, src, "accepted another client");
    let dst = listener.local_addr().expect("the listener's address");
    Pair {
        client,
        server,
        truth: Truth::accepted_now(src, dst, connect),
    }
}

/// Makes a connection over the loopback.
pub fn pair(version: IpVersion) -> Pair {
    pair_with(&listen(version))
}

/// Sends this number of bytes.
pub fn send(mut to: &TcpStream, count: usize) {
    static CHUNK: [u8; 65536] = [0x5a; 65536];
    let mut left = count;
    while left > 0 {
        let part = left.min(CHUNK.len());
        to.write_all(&CHUNK[..part]).expect("write");
        left -= part;
    }
}

/// Bytes that fit into one segment on every network of the tests.
pub const SEGMENT: usize = 1_400;

/// Makes the send buffer the limit of a sender that calls [`send_segments`]: it holds four segments. The kernel counts
/// the time with a full buffer only from a transmission on for which the process already waits. So the rate holds the
/// last segments back for some milliseconds; it is too high to limit anything else.
pub fn set_small_send_buffer(socket: &TcpStream) {
    const BYTES_PER_SECOND: i32 = 500_000;
    let options = SockRef::from(socket);
    options.set_send_buffer_size(4 << 10).expect("SO_SNDBUF");
    options.set_tcp_nodelay(true).expect("TCP_NODELAY");
    // BBR, the default of some machines, has a rate of its own.
    options.set_tcp_congestion(b"reno").expect("TCP_CONGESTION");
    set_option(socket, libc::SOL_SOCKET, libc::SO_MAX_PACING_RATE, BYTES_PER_SECOND);
}

/// Writes `count` times [`SEGMENT`] bytes, each in a segment of its own. Otherwise the kernel adds the bytes of a write to
/// a segment that it holds back, up to 64 KiB, however small the send buffer is.
pub fn send_segments(to: &TcpStream, count: usize) {
    for _ in 0..count {
        let sent = SockRef::from(to)
            .send_with_flags(&[7; SEGMENT], libc::MSG_EOR)
            .expect("send");
        assert_eq!(sent, SEGMENT, "a part of a segment");
    }
}

/// Receives exactly `count` bytes.
pub fn recv(mut from: &TcpStream, count: usize) {
    let mut buffer = vec![0; 65536.min(count.max(1))];
    let mut left = count;
    while left > 0 {
        let part = left.min(buffer.len());
        let got = from.read(&mut buffer[..part]).expect("read");
        assert_ne!(got, 0, "end of stream, {left} of {count} bytes missing");
        left -= got;
    }
}

/// Reads until the end of the stream, and returns the number of bytes read.
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

/// Sends `up` bytes to the server and `down` bytes back. Each end reads what it gets before the next step.
pub fn exchange(pair: &Pair, up: usize, down: usize) {
    send(&pair.client, up);
    recv(&pair.server, up);
    send(&pair.server, down);
    recv(&pair.client, down);
}

/// Makes a connection on which 1000 bytes went up and 300 down, all of it acknowledged.
pub fn exchanged_pair(version: IpVersion) -> Pair {
    let pair = pair(version);
    exchange(&pair, 1000, 300);
    wait_acknowledged(&pair.server);
    pair
}

/// Waits until the peer has acknowledged all written bytes.
pub fn wait_acknowledged(socket: &TcpStream) {
    wait_until("everything is acknowledged", || unacknowledged_bytes(socket) == 0);
}

/// Returns the number of bytes that were written and are not acknowledged (SIOCOUTQ).
pub fn unacknowledged_bytes(socket: &impl AsRawFd) -> libc::c_int {
    nix::ioctl_read_bad!(outq, libc::TIOCOUTQ, libc::c_int);
    let mut bytes = 0;
    // SAFETY: the descriptor is open for as long as `socket` is borrowed, and TIOCOUTQ writes one int.
    unsafe { outq(socket.as_raw_fd(), &raw mut bytes) }.expect("SIOCOUTQ");
    bytes
}

/// Waits for a condition that has no event. Polls continuously at first, then once a millisecond, so that many waiting
/// tests leave the processors to what they wait for.
pub fn wait_until(condition: &str, mut is_met: impl FnMut() -> bool) {
    const EAGER_POLLS: u32 = 100;
    let start = Instant::now();
    let mut polls = 0;
    while !is_met() {
        assert!(
            start.elapsed() < super::test_timeout(),
            "timeout: waited until {condition}"
        );
        if polls < EAGER_POLLS {
            std::thread::yield_now();
        } else {
            std::thread::sleep(Duration::from_millis(1));
        }
        polls += 1;
    }
}

/// Waits until both ends of every connection to this server, in the calling thread's namespace, have ended. close()
/// returns before that: on a busy machine the last segments are still on their way.
pub fn wait_all_closed(server: SocketAddr) {
    wait_until("all connections have ended", || connection_states(server).is_empty());
}

/// Returns the states of the namespace's connections to this server, of both ends, numbered as in `/proc/net/tcp`.
/// Listeners and time-wait sockets are not connections.
pub fn connection_states(server: SocketAddr) -> Vec<u8> {
    const TIME_WAIT: u8 = 6;
    const LISTEN: u8 = 10;
    let (file, ip) = match server.ip() {
        IpAddr::V4(ip) => ("tcp", hex_words(&ip.octets())),
        IpAddr::V6(ip) => ("tcp6", hex_words(&ip.octets())),
    };
    // Another connection may have the same port at its client's end.
    let server = format!("{ip}:{:04X}", server.port());
    let text = std::fs::read_to_string(format!("/proc/thread-self/net/{file}")).expect("the namespace's connections");
    let states = text.lines().skip(1).filter_map(|line| {
        // sl, local address, remote address, state.
        let fields: Vec<&str> = line.split_whitespace().take(4).collect();
        let [_, local, remote, state] = fields[..] else {
            panic!("not a socket: {line}")
        };
        let state = u8::from_str_radix(state, 16).expect("a state");
        ([local, remote].contains(&&*server) && ![TIME_WAIT, LISTEN].contains(&state)).then_some(state)
    });
    states.collect()
}

/// Formats an address as the kernel does in `/proc/net/tcp`: in words of four bytes, each in the machine's byte order.
fn hex_words(octets: &[u8]) -> String {
    let words = octets
        .chunks(4)
        .map(|word| u32::from_ne_bytes(word.try_into().expect("four bytes")));
    words.map(|word| format!("{word:08X}")).collect()
}

/// Closes with a RST (SO_LINGER of zero).
pub fn reset(socket: TcpStream) {
    SockRef::from(&socket)
        .set_linger(Some(Duration::ZERO))
        .expect("SO_LINGER");
    drop(socket);
}

/// Disconnects: connect() to AF_UNSPEC resets a connection, and makes the socket usable again.
pub fn disconnect(socket: &impl AsRawFd) {
    let unspecified = libc::sockaddr {
        sa_family: libc::AF_UNSPEC as libc::sa_family_t,
        sa_data: [0; 14],
    };
    let size = libc::socklen_t::try_from(size_of_val(&unspecified)).expect("a small size");
    // SAFETY: the descriptor is open while `socket` is borrowed, and the address lives through the call.
    let result = unsafe { libc::connect(socket.as_raw_fd(), &raw const unspecified, size) };
    assert_eq!(result, 0, "AF_UNSPEC: {}", std::io::Error::last_os_error());
}

/// Waits for an error on the socket, and takes it (SO_ERROR).
pub fn take_error(socket: &TcpStream) -> Errno {
    wait_pending_error(socket);
    let error = socket.take_error().expect("SO_ERROR").expect("an error on the socket");
    Errno::from_raw(error.raw_os_error().expect("an errno"))
}

/// Waits for an error on the socket, and leaves it there.
pub fn wait_pending_error(socket: &TcpStream) {
    let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLERR)];
    let limit = PollTimeout::try_from(super::test_timeout()).expect("a poll timeout");
    loop {
        match poll(&mut fds, limit) {
            Err(Errno::EINTR) => {}
            other => return assert!(other.expect("poll") > 0, "timeout: no error on the socket"),
        }
    }
}

/// A non-blocking connection attempt.
pub struct Attempt {
    pub socket: TcpStream,
    /// The error that connect() returned.
    pub errno: Errno,
    pub truth: Truth,
}

/// Starts a non-blocking connect(). The socket is bound before, so that its port is known even if the attempt fails.
pub fn connect_nonblocking(from: SocketAddr, to: SocketAddr) -> Attempt {
    connect_nonblocking_with(from, to, |_| ())
}

/// Starts a non-blocking connect() with socket options.
pub fn connect_nonblocking_with(from: SocketAddr, to: SocketAddr, set_options: impl FnOnce(&Socket)) -> Attempt {
    let socket = bound_socket(from);
    set_options(&socket);
    socket.set_nonblocking(true).expect("O_NONBLOCK");
    let src = local_address(&socket);
    let (errno, connect) = connect_errno(&socket, to);
    Attempt {
        socket: socket.into(),
        errno,
        truth: Truth::not_accepted(src, to, connect),
    }
}

/// Makes a blocking connect() that must fail. Returns the error.
pub fn connect_blocking(from: SocketAddr, to: SocketAddr, set_options: impl FnOnce(&Socket)) -> (Errno, Truth) {
    let socket = bound_socket(from);
    set_options(&socket);
    let src = local_address(&socket);
    let (errno, connect) = connect_errno(&socket, to);
    (errno, Truth::not_accepted(src, to, connect))
}

/// Calls connect(), and returns its error (zero for success) and its time.
pub fn connect_errno(socket: &Socket, to: SocketAddr) -> (Errno, Span) {
    timed(|| errno_of(socket.connect(&SockAddr::from(to))))
}

/// Calls connect(), which must succeed, and returns its time.
pub fn connect(socket: &Socket, to: SocketAddr) -> Span {
    let (errno, connect) = connect_errno(socket, to);
    assert_eq!(errno, Errno::from_raw(0), "connect to {to}");
    connect
}

/// Creates a socket that is bound to `from`. The kernel replaces a port of zero by a free one.
pub fn bound_socket(from: SocketAddr) -> Socket {
    let socket = stream_socket(from, Protocol::TCP);
    socket.set_reuse_address(true).expect("SO_REUSEADDR");
    socket.bind(&SockAddr::from(from)).expect("bind");
    socket
}

/// Returns the socket's local address.
pub fn local_address(socket: &Socket) -> SocketAddr {
    let address = socket.local_addr().expect("getsockname");
    address.as_socket().expect("an IP address")
}

/// Returns the errno of a call, zero for success.
pub fn errno_of<T>(result: std::io::Result<T>) -> Errno {
    match result {
        Ok(_) => Errno::from_raw(0),
        Err(error) => Errno::from_raw(error.raw_os_error().unwrap_or_else(|| panic!("no errno: {error}"))),
    }
}

/// Returns a port that is free now, for a program that is about to listen on it.
pub fn free_port(version: IpVersion) -> u16 {
    listen(version).local_addr().expect("the listener's address").port()
}

/// A port that nobody listens on, at any address. The kernel assigns it to no other socket until this is dropped: a
/// packet filter's rule for the port cannot affect another connection of the test.
pub struct ClosedPort {
    /// Bound, but not listening: the kernel answers a SYN with a RST.
    holder: Socket,
}

impl ClosedPort {
    pub fn new() -> Self {
        let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0));
        let holder = stream_socket(any, Protocol::TCP);
        holder.set_only_v6(false).expect("IPV6_V6ONLY");
        holder.bind(&SockAddr::from(any)).expect("bind");
        Self { holder }
    }

    /// A closed port whose SYNs the packet filter drops. Replaces the namespace's packet filter.
    pub fn blackhole() -> Self {
        let port = Self::new();
        net::set_packet_filter(&[&format!("tcp dport {} drop", port.number())]);
        port
    }

    pub fn number(&self) -> u16 {
        local_address(&self.holder).port()
    }

    /// Returns the loopback address with this port.
    pub fn at(&self, version: IpVersion) -> SocketAddr {
        version.at(self.number())
    }
}

/// Sets an integer option of IPPROTO_TCP.
pub fn set_tcp_option(socket: &impl AsRawFd, option: i32, value: i32) {
    set_option(socket, libc::IPPROTO_TCP, option, value);
}

/// Sets an integer option of any level.
pub fn set_option(socket: &impl AsRawFd, level: i32, option: i32, value: i32) {
    let size = libc::socklen_t::try_from(size_of::<i32>()).expect("four");
    // SAFETY: the descriptor is open while `socket` is borrowed, and `value` is an int that lives through the call.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const value).cast(), size) };
    assert_eq!(result, 0, "setsockopt {option}: {}", std::io::Error::last_os_error());
}

/// Waits until this end has no connection any more, for example since a RST arrived.
pub fn wait_closed(socket: &TcpStream) {
    const CLOSE: u8 = 7;
    wait_until("the connection has ended", || TcpInfo::read(socket).state() == CLOSE);
}

/// Waits until the peer has acknowledged the FIN of a shutdown(): FIN_WAIT2. The acknowledgement may be delayed by 40
/// ms.
pub fn wait_fin_acknowledged(socket: &TcpStream) {
    const FIN_WAIT2: u8 = 5;
    wait_until("the FIN is acknowledged", || TcpInfo::read(socket).state() == FIN_WAIT2);
}
