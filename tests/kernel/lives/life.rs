//! One life: its sockets, and the calls that it makes on them.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::time::{Duration, SystemTime};

use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::call::{Action, Call, Handover, SocketId};
use super::state;
use super::world::{Side, Verdict, World};
use crate::support::actor::Actor;
use crate::support::sock::{self, Span, errno_of, timed, wait_until};
use crate::support::tcp_info::TcpInfo;
use crate::support::test_timeout;

/// The number of fixed ports of each life.
pub const PORTS_PER_LIFE: u16 = 8;
const FIRST_PORT: u16 = 2048;
/// The number of lives with different ports.
const PORT_BLOCKS: u64 = 4500;

/// Returns the first port of a life.
pub fn first_port(life: u64) -> u16 {
    FIRST_PORT + (life % PORT_BLOCKS) as u16 * PORTS_PER_LIFE
}

/// A socket of a life.
pub struct SocketState {
    /// `None` after the close().
    socket: Option<Socket>,
    pub side: Side,
    /// The local address, if it is known.
    pub local: Option<SocketAddr>,
    /// The number of bytes that the program has written to the current connection.
    pub written: u64,
    /// SO_LINGER is set to zero seconds.
    linger_zero: bool,
    /// The helper has a descriptor of the socket too.
    is_shared: bool,
    /// What the packet filter does with the packets that the socket sends.
    pub verdict: Verdict,
    /// Whether TCP_DEFER_ACCEPT is set.
    pub deferred: bool,
    /// TCP_LINGER2 is negative: the kernel resets the connection instead of waiting in FIN_WAIT2.
    pub no_fin_wait2: bool,
}

/// A life in progress, and the log of its calls.
pub struct Life<'a> {
    pub number: u64,
    pub world: &'a World,
    /// A process that can own sockets of this life.
    pub helper: &'a Actor,
    /// Whether the packets are IPv6.
    pub is_ipv6: bool,
    /// Whether IPv6 sockets use IPv4-mapped addresses.
    pub is_mapped: bool,
    pub sockets: Vec<SocketState>,
    pub calls: Vec<Call>,
}

/// Returns the address with an IPv4 address in place of an IPv4-mapped one.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

impl<'a> Life<'a> {
    pub fn new(number: u64, world: &'a World, helper: &'a Actor, is_ipv6: bool, is_mapped: bool) -> Self {
        Self {
            number,
            world,
            helper,
            is_ipv6,
            is_mapped,
            sockets: Vec::new(),
            calls: Vec::new(),
        }
    }

    /// Returns the address of a side with one of this life's ports.
    pub fn address(&self, side: Side, port: u16) -> SocketAddr {
        assert!(port < PORTS_PER_LIFE, "a life has {PORTS_PER_LIFE} ports");
        SocketAddr::new(self.world.ip(side, self.is_ipv6), first_port(self.number) + port)
    }

    /// Returns the address as this life's sockets take it: IPv4-mapped, if they are IPv6 sockets for IPv4 packets.
    fn socket_address(&self, address: SocketAddr) -> SockAddr {
        let address = match address.ip() {
            IpAddr::V4(ip) if self.is_mapped => SocketAddr::new(ip.to_ipv6_mapped().into(), address.port()),
            _ => address,
        };
        address.into()
    }

    /// Makes a call, and logs it with the states of the socket before and after.
    fn run_call(
        &mut self,
        socket: SocketId,
        action: Action,
        text: String,
        call: impl FnOnce(&Socket) -> Result<u64, Errno>,
    ) -> Result<u64, Errno> {
        let open = self.open_socket(socket);
        let state_read_at = SystemTime::now();
        let state_before = Some(TcpInfo::read(open).state());
        let (result, time) = timed(|| call(open));
        let state_after = Some(TcpInfo::read(open).state());
        self.calls.push(Call {
            time,
            socket,
            action,
            text,
            result,
            pid: std::process::id(),
            state_before,
            state_read_at,
            state_after,
        });
        result
    }

    fn add_socket(&mut self, socket: Socket, side: Side, verdict: Verdict) -> SocketId {
        self.sockets.push(SocketState {
            socket: Some(socket),
            side,
            local: None,
            written: 0,
            linger_zero: false,
            is_shared: false,
            verdict,
            deferred: false,
            no_fin_wait2: false,
        });
        self.sockets.len() - 1
    }

    /// Creates a socket in the namespace of a side.
    pub fn socket(&mut self, side: Side) -> SocketId {
        let domain = if self.is_ipv6 || self.is_mapped {
            Domain::IPV6
        } else {
            Domain::IPV4
        };
        let socket = self
            .world
            .run_in(side, || Socket::new(domain, Type::STREAM, Some(Protocol::TCP)));
        let socket = socket.expect("socket()");
        socket.set_reuse_address(true).expect("SO_REUSEADDR");
        let id = self.add_socket(socket, side, Verdict::Pass);
        self.run_call(id, Action::Other, format!("socket() {side:?}"), |_| Ok(0))
            .expect("no call");
        id
    }

    fn update_local_address(&mut self, socket: SocketId) {
        let local = self.open_socket(socket).local_addr().expect("getsockname").as_socket();
        let local = canonical(local.expect("an IP address"));
        self.sockets[socket].local = (local.port() != 0).then_some(local);
    }

    fn open_socket(&self, socket: SocketId) -> &Socket {
        self.sockets[socket].socket.as_ref().expect("an open socket")
    }

    /// Whether the program has not closed the socket.
    pub fn is_open(&self, socket: SocketId) -> bool {
        self.sockets[socket].socket.is_some()
    }

    pub fn bind(&mut self, socket: SocketId, to: SocketAddr) {
        let address = self.socket_address(to);
        let result = self.run_call(socket, Action::Other, format!("bind({to})"), |socket| {
            result_of(socket.bind(&address))
        });
        assert_eq!(result, Ok(0), "bind to {to}");
        self.sockets[socket].local = Some(to);
    }

    pub fn listen(&mut self, socket: SocketId) {
        let result = self.run_call(socket, Action::Listen, "listen(16)".to_owned(), |socket| {
            result_of(socket.listen(16))
        });
        assert_eq!(result, Ok(0), "listen");
    }

    /// Gives the helper a descriptor of the socket, and lets the helper call listen().
    pub fn listen_in_other_process(&mut self, socket: SocketId) {
        let (helper, name) = (self.helper, self.shared_socket_name());
        let copy = OwnedFd::from(self.open_socket(socket).try_clone().expect("dup"));
        helper.run_with_fd(&format!("receive_fd {name}"), &copy);
        drop(copy);
        let result = self.run_call(socket, Action::Listen, "SCM_RIGHTS, listen(128)".to_owned(), |_| {
            helper.run(&format!("listen_bound {name}"));
            Ok(0)
        });
        assert_eq!(result, Ok(0), "listen");
        self.calls.last_mut().expect("a call").pid = helper.pid();
        self.sockets[socket].is_shared = true;
    }

    /// Returns the helper's name for the socket that both processes have.
    fn shared_socket_name(&self) -> String {
        format!("shared{}", self.number)
    }

    pub fn connect(&mut self, socket: SocketId, to: SocketAddr, blocking: bool) -> Result<u64, Errno> {
        let address = self.socket_address(to);
        self.sockets[socket].written = 0;
        self.open_socket(socket).set_nonblocking(!blocking).expect("O_NONBLOCK");
        let text = format!("connect({to}){}", if blocking { "" } else { " non-blocking" });
        let result = self.run_call(socket, Action::Connect(to), text, |socket| {
            result_of(socket.connect(&address))
        });
        self.open_socket(socket).set_nonblocking(true).expect("O_NONBLOCK");
        self.update_local_address(socket);
        result
    }

    /// Calls sendto() with MSG_FASTOPEN, which connects and sends data.
    pub fn fast_open(&mut self, socket: SocketId, to: SocketAddr, count: usize) -> Result<u64, Errno> {
        let address = self.socket_address(to);
        self.open_socket(socket).set_nonblocking(true).expect("O_NONBLOCK");
        let text = format!("sendto({to}, {count} bytes, MSG_FASTOPEN)");
        let result = self.run_call(socket, Action::FastOpen(to), text, |socket| {
            count_of(socket.send_to_with_flags(&vec![1; count], &address, libc::MSG_FASTOPEN | libc::MSG_NOSIGNAL))
        });
        self.sockets[socket].written = result.unwrap_or(0);
        self.update_local_address(socket);
        result
    }

    /// Sends as many of `count` bytes as the send buffer takes.
    pub fn write(&mut self, socket: SocketId, count: usize) -> Result<u64, Errno> {
        self.write_with(socket, count, 0)
    }

    /// Sends as many of `count` bytes as the send buffer takes, with flags.
    pub fn write_with(&mut self, socket: SocketId, count: usize, flags: i32) -> Result<u64, Errno> {
        let text = format!("send({count} bytes{})", if flags == 0 { "" } else { ", MSG_OOB" });
        let result = self.run_call(socket, Action::Write, text, |socket| {
            count_of(socket.send_with_flags(&vec![2; count], flags | libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT))
        });
        self.sockets[socket].written += result.unwrap_or(0);
        self.update_local_address(socket);
        result
    }

    /// Reads at most `count` of the received bytes, without waiting.
    pub fn read(&mut self, socket: SocketId, count: usize) -> Result<u64, Errno> {
        self.run_call(socket, Action::Read, format!("recv({count} bytes)"), |socket| {
            let mut buffer = vec![std::mem::MaybeUninit::uninit(); count];
            count_of(socket.recv_with_flags(&mut buffer, libc::MSG_DONTWAIT))
        })
    }

    pub fn shutdown(&mut self, socket: SocketId, read: bool, write: bool) {
        let how = match (read, write) {
            (true, true) => std::net::Shutdown::Both,
            (true, false) => std::net::Shutdown::Read,
            _ => std::net::Shutdown::Write,
        };
        let action = Action::Shutdown { read, write };
        _ = self.run_call(socket, action, format!("shutdown({how:?})"), |socket| {
            result_of(socket.shutdown(how))
        });
    }

    /// Sets an integer option.
    pub fn option(&mut self, socket: SocketId, name: &str, level: i32, option: i32, value: i32) {
        let text = format!("setsockopt({name}, {value})");
        let result = self.run_call(socket, Action::Other, text, |socket| {
            let size = libc::socklen_t::try_from(size_of::<i32>()).expect("4 bytes");
            let value = &raw const value;
            // SAFETY: the descriptor is open while `socket` is borrowed, and `value` points to an int that outlives the
            // call.
            let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, value.cast(), size) };
            Errno::result(result).map(|_| 0)
        });
        assert_eq!(result, Ok(0), "setsockopt {name}");
    }

    /// Sets an integer option of the TCP level.
    pub fn tcp_option(&mut self, socket: SocketId, name: &str, option: i32, value: i32) {
        self.option(socket, name, libc::IPPROTO_TCP, option, value);
    }

    /// Sets what the receiver's packet filter does with all packets that the socket sends from now on.
    pub fn set_verdict(&mut self, socket: SocketId, verdict: Verdict) {
        let value = i32::from(verdict as u8) << 2;
        if self.is_ipv6 {
            self.option(socket, "IPV6_TCLASS", libc::IPPROTO_IPV6, libc::IPV6_TCLASS, value);
        } else {
            self.option(socket, "IP_TOS", libc::IPPROTO_IP, libc::IP_TOS, value);
        }
        self.sockets[socket].verdict = verdict;
    }

    /// Sets SO_LINGER to zero seconds, so that close() sends a RST.
    pub fn set_linger_zero(&mut self, socket: SocketId) {
        let text = "setsockopt(SO_LINGER, 0 s)".to_owned();
        let result = self.run_call(socket, Action::Other, text, |socket| {
            result_of(socket.set_linger(Some(Duration::ZERO)))
        });
        assert_eq!(result, Ok(0), "SO_LINGER");
        self.sockets[socket].linger_zero = true;
    }

    fn unread(&self, socket: SocketId) -> u64 {
        nix::ioctl_read_bad!(inq, libc::FIONREAD, libc::c_int);
        let mut unread = 0;
        // SAFETY: the descriptor is open, and FIONREAD writes one int. It fails for a listener, which receives no
        // bytes.
        let result = unsafe { inq(self.open_socket(socket).as_raw_fd(), &raw mut unread) };
        result.map_or(0, |_| u64::try_from(unread).expect("a count"))
    }

    /// Whether there are received bytes that the program has not read.
    pub fn has_unread(&self, socket: SocketId) -> bool {
        self.unread(socket) > 0
    }

    /// Closes the socket in this process.
    pub fn close(&mut self, socket: SocketId) {
        let (open, mut call) = self.start_close(socket, "close()");
        ((), call.time) = timed(|| drop(open));
        self.calls.push(call);
    }

    /// Passes the socket to another process, which closes it.
    pub fn close_in_other_process(&mut self, socket: SocketId, handover: Handover) {
        let (open, mut call) = self.start_close(socket, handover.text());
        let (helper, name) = (self.helper, format!("life{}", self.number));
        call.state_before = None;
        helper.run_with_fd(&format!("receive_fd {name}"), &OwnedFd::from(open));
        call.pid = match handover {
            Handover::ExitForkedChild => helper.run(&format!("fork {name}")).parse().expect("a pid"),
            Handover::CloseInHelper | Handover::Exec => helper.pid(),
        };
        ((), call.time) = timed(|| match handover {
            Handover::CloseInHelper => drop(helper.run(&format!("close {name}"))),
            Handover::ExitForkedChild => drop(helper.run("reap")),
            Handover::Exec => {
                helper.start_command("exec");
                helper.run("hello");
            }
        });
        self.calls.push(call);
    }

    /// Takes the socket out of the life. Returns the socket and its close() call, whose time the caller sets.
    fn start_close(&mut self, socket: SocketId, text: &str) -> (Socket, Call) {
        if std::mem::take(&mut self.sockets[socket].is_shared) {
            self.helper.run(&format!("close {}", self.shared_socket_name()));
        }
        let state_read_at = SystemTime::now();
        let state_before = TcpInfo::read(self.open_socket(socket)).state();
        let unread = self.unread(socket);
        let closed = &mut self.sockets[socket];
        let call = Call {
            time: Span {
                before: state_read_at,
                after: state_read_at,
            },
            socket,
            action: Action::Close {
                linger_zero: closed.linger_zero,
                unread,
            },
            text: format!("{text} with {unread} bytes unread"),
            result: Ok(0),
            pid: std::process::id(),
            state_before: Some(state_before),
            state_read_at,
            state_after: None,
        };
        (closed.socket.take().expect("an open socket"), call)
    }

    /// Calls connect() with AF_UNSPEC.
    pub fn disconnect(&mut self, socket: SocketId) {
        let text = "connect(AF_UNSPEC)".to_owned();
        let result = self.run_call(socket, Action::Disconnect, text, |socket| {
            sock::disconnect(socket);
            Ok(0)
        });
        assert_eq!(result, Ok(0), "AF_UNSPEC");
    }

    /// Accepts a connection. Waits until there is one.
    pub fn accept(&mut self, listener: SocketId) -> SocketId {
        self.open_socket(listener).set_nonblocking(false).expect("O_NONBLOCK");
        let listening = &self.sockets[listener];
        let (side, verdict, no_fin_wait2) = (listening.side, listening.verdict, listening.no_fin_wait2);
        let (accepted, time) = timed(|| self.open_socket(listener).accept());
        let (socket, peer) = accepted.expect("accept");
        let peer = canonical(peer.as_socket().expect("an IP address"));
        let state = TcpInfo::read(&socket).state();
        let id = self.add_socket(socket, side, verdict);
        self.sockets[id].no_fin_wait2 = no_fin_wait2;
        self.update_local_address(id);
        self.calls.push(Call {
            time,
            socket: id,
            action: Action::Accept { listener, peer },
            text: format!("accept() from socket {listener}, of {peer}"),
            result: Ok(0),
            pid: std::process::id(),
            state_before: None,
            state_read_at: time.before,
            state_after: Some(state),
        });
        id
    }

    /// Waits until the socket has an error, and reads it with SO_ERROR.
    pub fn wait_error(&mut self, socket: SocketId) -> Option<Errno> {
        let timeout = PollTimeout::try_from(test_timeout()).expect("a poll timeout");
        let error = PollFd::new(self.open_socket(socket).as_fd(), PollFlags::POLLERR);
        let count = poll(&mut [error], timeout).expect("poll");
        assert!(count > 0, "the socket got no error");
        let text = "getsockopt(SO_ERROR)".to_owned();
        let result = self.run_call(socket, Action::Error, text, |socket| {
            match socket.take_error().expect("SO_ERROR") {
                Some(error) => Err(Errno::from_raw(error.raw_os_error().expect("an errno"))),
                None => Ok(0),
            }
        });
        result.err()
    }

    /// Waits until the socket is in one of these states.
    pub fn wait_state(&self, socket: SocketId, states: &[u8]) {
        wait_until(&format!("socket {socket} is in a state of {states:?}"), || {
            states.contains(&self.state(socket))
        });
    }

    /// Returns the TCP state of a socket.
    pub fn state(&self, socket: SocketId) -> u8 {
        TcpInfo::read(self.open_socket(socket)).state()
    }

    /// Waits until `to` has received all bytes that `from` has written to this connection, or until `to` is closed.
    pub fn wait_delivered(&self, from: SocketId, to: SocketId) {
        let written = self.sockets[from].written;
        wait_until(&format!("socket {to} has received all bytes from {from}"), || {
            let info = TcpInfo::read(self.open_socket(to));
            info.bytes_received() >= written || info.state() == state::CLOSE
        });
    }

    /// Waits until all bytes that the socket has sent are acknowledged, or until it is closed.
    pub fn wait_acknowledged(&self, socket: SocketId) {
        wait_until(&format!("all bytes of socket {socket} are acknowledged"), || {
            sock::unacknowledged_bytes(self.open_socket(socket)) == 0 || self.state(socket) == state::CLOSE
        });
    }

    /// Waits until the socket has retransmitted more than `before` segments.
    pub fn wait_retransmit(&self, socket: SocketId, before: u32) {
        wait_until(&format!("socket {socket} has retransmitted a segment"), || {
            self.retransmits(socket) > before
        });
    }

    /// Returns the number of segments that the socket has retransmitted.
    pub fn retransmits(&self, socket: SocketId) -> u32 {
        TcpInfo::read(self.open_socket(socket)).total_retrans()
    }

    /// Sleeps, and logs the pause.
    pub fn sleep(&mut self, socket: SocketId, time: Duration) {
        _ = self.run_call(socket, Action::Other, format!("sleep for {time:?}"), |_| {
            std::thread::sleep(time);
            Ok(0)
        });
    }

    /// Closes the sockets that a failed life has left open.
    pub fn close_all(&mut self) {
        for socket in &mut self.sockets {
            socket.socket = None;
        }
    }

    /// Returns the calls so far, one on each line.
    pub fn call_log(&self) -> String {
        let lines: Vec<String> = self.calls.iter().map(|call| format!("\n    {call}")).collect();
        format!("life {}{}", self.number, lines.concat())
    }
}

fn result_of<T>(result: std::io::Result<T>) -> Result<u64, Errno> {
    match errno_of(result) {
        Errno::UnknownErrno => Ok(0),
        errno => Err(errno),
    }
}

fn count_of(result: std::io::Result<usize>) -> Result<u64, Errno> {
    result
        .map(|count| count as u64)
        .map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or_default()))
}
