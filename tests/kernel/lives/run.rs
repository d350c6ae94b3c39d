//! One life: the calls that it makes, each with its result and its time.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::time::{Duration, SystemTime};

use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::world::{Side, Verdict, World};
use crate::support::actor::Actor;
use crate::support::expect::format_time;
use crate::support::sock::{Span, errno_of, timed, wait_until};
use crate::support::tcp_info::TcpInfo;
use crate::support::test_timeout;

/// Ports of one life.
pub const PORTS: u16 = 8;
const FIRST_PORT: u16 = 2048;
/// Lives after which the ports begin anew.
const BLOCKS: u64 = 4500;

/// The first port of a life.
pub fn first_port(life: u64) -> u16 {
    FIRST_PORT + (life % BLOCKS) as u16 * PORTS
}

/// Number of a socket within its life.
pub type Id = usize;

/// The kinds of calls that the model knows.
#[derive(Clone, Copy, Debug)]
pub enum Act {
    /// Changes nothing that the model knows of.
    Other,
    /// listen().
    Listen,
    /// connect(), to this address. It may not send a SYN yet.
    Connect(SocketAddr),
    /// sendto() with MSG_FASTOPEN. What it returns are bytes.
    FastOpen(SocketAddr),
    /// What it returns are bytes.
    Write,
    /// What it returns are bytes.
    Read,
    /// shutdown() of reading, of writing.
    Shutdown {
        /// SHUT_RD.
        read: bool,
        /// SHUT_WR.
        write: bool,
    },
    /// The last close() of a socket.
    Close {
        /// SO_LINGER of zero seconds.
        at_once: bool,
        /// Bytes that had come and were not read.
        unread: u64,
    },
    /// connect() to AF_UNSPEC.
    Dissolve,
    /// accept(): the listener.
    Accept {
        /// The listener.
        listener: Id,
        /// Who had connected.
        peer: SocketAddr,
    },
    /// SO_ERROR was read.
    Error,
}

/// One call.
#[derive(Clone, Debug)]
pub struct Call {
    /// When.
    pub time: Span,
    /// On which socket.
    pub socket: Id,
    /// What it is to the model.
    pub act: Act,
    /// The call as the report prints it.
    pub text: String,
    /// What it returned.
    pub result: Result<u64, Errno>,
    /// Which process made it.
    pub pid: u32,
    /// The state of the socket before it, by TCP_INFO.
    pub before: Option<u8>,
    /// When that was.
    pub asked: SystemTime,
    /// The state of the socket after it, by TCP_INFO.
    pub after: Option<u8>,
}

impl fmt::Display for Call {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            out,
            "{} socket {}: {} = ",
            format_time(self.time.before),
            self.socket,
            self.text
        )?;
        match &self.result {
            Ok(value) => write!(out, "{value}")?,
            Err(errno) => write!(out, "{errno:?}")?,
        }
        if self.pid != std::process::id() {
            write!(out, " in process {}", self.pid)?;
        }
        let state = |state: Option<u8>| state.map_or("-".to_owned(), |state| state.to_string());
        write!(out, " (state {} to {})", state(self.before), state(self.after))
    }
}

/// What a life knows of one of its sockets.
pub struct Sock {
    socket: Option<Socket>,
    /// Its namespace.
    pub side: Side,
    /// Its address, where it is known.
    pub local: Option<SocketAddr>,
    /// Bytes written in its present connection.
    pub written: u64,
    at_once: bool,
    /// The helper holds it too.
    shared: bool,
    /// What the firewall does with what it sends.
    pub verdict: Verdict,
    /// TCP_DEFER_ACCEPT of a listener.
    pub deferred: bool,
    /// TCP_LINGER2 below zero.
    pub no_fin_wait2: bool,
}

/// A life under way, and its log.
pub struct Life<'a> {
    /// Which.
    pub number: u64,
    /// Where.
    pub world: &'a World,
    /// Another process.
    pub helper: &'a Actor,
    /// IPv6 on the wire.
    pub of_ipv6: bool,
    /// IPv4 on the wire, IPv6 sockets.
    pub mapped: bool,
    /// Its sockets.
    pub socks: Vec<Sock>,
    /// Its calls.
    pub calls: Vec<Call>,
}

/// How another process comes to hold a socket, and lets go of it.
#[derive(Clone, Copy)]
pub enum Elsewhere {
    /// By SCM_RIGHTS; it calls close().
    Passed,
    /// By SCM_RIGHTS and fork(); the child exits.
    Forked,
    /// By SCM_RIGHTS; it executes a program.
    Executed,
}

impl Elsewhere {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Passed, Self::Forked, Self::Executed];

    fn text(self) -> &'static str {
        match self {
            Self::Passed => "SCM_RIGHTS, close()",
            Self::Forked => "SCM_RIGHTS, fork(), close(), exit() of the child",
            Self::Executed => "SCM_RIGHTS, execve()",
        }
    }
}

/// The states of TCP that lives wait for.
pub mod state {
    /// TCP_ESTABLISHED.
    pub const ESTABLISHED: u8 = 1;
    /// TCP_SYN_SENT.
    pub const SYN_SENT: u8 = 2;
    /// TCP_SYN_RECV.
    pub const SYN_RECV: u8 = 3;
    /// TCP_FIN_WAIT1.
    pub const FIN_WAIT1: u8 = 4;
    /// TCP_FIN_WAIT2.
    pub const FIN_WAIT2: u8 = 5;
    /// TCP_CLOSE.
    pub const CLOSE: u8 = 7;
    /// TCP_CLOSE_WAIT.
    pub const CLOSE_WAIT: u8 = 8;
    /// TCP_LAST_ACK.
    pub const LAST_ACK: u8 = 9;
    /// TCP_CLOSING.
    pub const CLOSING: u8 = 11;
}

fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

impl<'a> Life<'a> {
    /// A life that has not begun.
    pub fn new(number: u64, world: &'a World, helper: &'a Actor, of_ipv6: bool, mapped: bool) -> Self {
        Self {
            number,
            world,
            helper,
            of_ipv6,
            mapped,
            socks: Vec::new(),
            calls: Vec::new(),
        }
    }

    /// The address of a side with one of this life's ports.
    pub fn at(&self, side: Side, port: u16) -> SocketAddr {
        assert!(port < PORTS, "a life has eight ports");
        SocketAddr::new(self.world.ip(side, self.of_ipv6), first_port(self.number) + port)
    }

    fn spelled(&self, address: SocketAddr) -> SocketAddr {
        match address.ip() {
            IpAddr::V4(ip) if self.mapped => SocketAddr::new(ip.to_ipv6_mapped().into(), address.port()),
            _ => address,
        }
    }

    fn log(
        &mut self,
        socket: Id,
        act: Act,
        text: String,
        call: impl FnOnce(&Socket) -> Result<u64, Errno>,
    ) -> Result<u64, Errno> {
        let of = self.socks[socket].socket.as_ref().expect("an open socket");
        let asked = SystemTime::now();
        let before = Some(TcpInfo::read(of).state());
        let (result, time) = timed(|| call(of));
        let after = Some(TcpInfo::read(of).state());
        self.calls.push(Call {
            time,
            socket,
            act,
            text,
            result,
            pid: std::process::id(),
            before,
            asked,
            after,
        });
        result
    }

    fn add(&mut self, socket: Socket, side: Side, local: Option<SocketAddr>, verdict: Verdict) -> Id {
        self.socks.push(Sock {
            socket: Some(socket),
            side,
            local,
            written: 0,
            at_once: false,
            shared: false,
            verdict,
            deferred: false,
            no_fin_wait2: false,
        });
        self.socks.len() - 1
    }

    /// socket(), in the namespace of that side.
    pub fn socket(&mut self, side: Side) -> Id {
        let domain = if self.of_ipv6 || self.mapped {
            Domain::IPV6
        } else {
            Domain::IPV4
        };
        let socket = self
            .world
            .within(side, || Socket::new(domain, Type::STREAM, Some(Protocol::TCP)));
        let socket = socket.expect("socket()");
        socket.set_reuse_address(true).expect("SO_REUSEADDR");
        let id = self.add(socket, side, None, Verdict::Pass);
        self.log(id, Act::Other, format!("socket() {side:?}"), |_| Ok(0))
            .expect("logged");
        id
    }

    fn learn_local(&mut self, socket: Id) {
        let own = self.open(socket).local_addr().expect("getsockname").as_socket();
        let own = plain(own.expect("an IP address"));
        self.socks[socket].local = (own.port() != 0).then_some(own);
    }

    fn open(&self, socket: Id) -> &Socket {
        self.socks[socket].socket.as_ref().expect("an open socket")
    }

    /// Whether the program has not closed it.
    pub fn is_open(&self, socket: Id) -> bool {
        self.socks[socket].socket.is_some()
    }

    /// bind().
    pub fn bind(&mut self, socket: Id, to: SocketAddr) {
        let spelled = SockAddr::from(self.spelled(to));
        let result = self.log(socket, Act::Other, format!("bind({to})"), |of| call(of.bind(&spelled)));
        assert_eq!(result, Ok(0), "bind to {to}");
        self.socks[socket].local = Some(to);
    }

    /// listen().
    pub fn listen(&mut self, socket: Id) {
        let result = self.log(socket, Act::Listen, "listen(16)".to_owned(), |of| call(of.listen(16)));
        assert_eq!(result, Ok(0), "listen");
    }

    /// Another process gets the descriptor too, and calls listen().
    pub fn listen_elsewhere(&mut self, socket: Id) {
        let (helper, name) = (self.helper, self.shared_name());
        let copy = OwnedFd::from(self.open(socket).try_clone().expect("dup"));
        helper.run_with_fd(&format!("receive_fd {name}"), &copy);
        drop(copy);
        let result = self.log(socket, Act::Listen, "SCM_RIGHTS, listen(128)".to_owned(), |_| {
            helper.run(&format!("listen_bound {name}"));
            Ok(0)
        });
        assert_eq!(result, Ok(0), "listen");
        self.calls.last_mut().expect("a call").pid = helper.pid();
        self.socks[socket].shared = true;
    }

    fn shared_name(&self) -> String {
        format!("shared{}", self.number)
    }

    /// connect(), blocking or not.
    pub fn connect(&mut self, socket: Id, to: SocketAddr, blocking: bool) -> Result<u64, Errno> {
        let spelled = SockAddr::from(self.spelled(to));
        self.socks[socket].written = 0;
        self.open(socket).set_nonblocking(!blocking).expect("O_NONBLOCK");
        let text = format!("connect({to}){}", if blocking { "" } else { " non-blocking" });
        let result = self.log(socket, Act::Connect(to), text, |of| call(of.connect(&spelled)));
        self.open(socket).set_nonblocking(true).expect("O_NONBLOCK");
        self.learn_local(socket);
        result
    }

    /// sendto() with MSG_FASTOPEN.
    pub fn fast_open(&mut self, socket: Id, to: SocketAddr, count: usize) -> Result<u64, Errno> {
        let spelled = SockAddr::from(self.spelled(to));
        self.open(socket).set_nonblocking(true).expect("O_NONBLOCK");
        let text = format!("sendto({to}, {count} bytes, MSG_FASTOPEN)");
        let result = self.log(socket, Act::FastOpen(to), text, |of| {
            bytes(of.send_to_with_flags(&vec![1; count], &spelled, libc::MSG_FASTOPEN | libc::MSG_NOSIGNAL))
        });
        self.socks[socket].written = result.unwrap_or(0);
        self.learn_local(socket);
        result
    }

    /// send(), of what there is room for.
    pub fn write(&mut self, socket: Id, count: usize) -> Result<u64, Errno> {
        self.write_with(socket, count, 0)
    }

    /// send() with flags.
    pub fn write_with(&mut self, socket: Id, count: usize, flags: i32) -> Result<u64, Errno> {
        let text = format!("send({count} bytes{})", if flags == 0 { "" } else { ", MSG_OOB" });
        let result = self.log(socket, Act::Write, text, |of| {
            bytes(of.send_with_flags(&vec![2; count], flags | libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT))
        });
        self.socks[socket].written += result.unwrap_or(0);
        self.learn_local(socket);
        result
    }

    /// recv(), of what has come, up to `count`.
    pub fn read(&mut self, socket: Id, count: usize) -> Result<u64, Errno> {
        self.log(socket, Act::Read, format!("recv({count} bytes)"), |of| {
            let mut buffer = vec![std::mem::MaybeUninit::uninit(); count];
            bytes(of.recv_with_flags(&mut buffer, libc::MSG_DONTWAIT))
        })
    }

    /// shutdown().
    pub fn shutdown(&mut self, socket: Id, read: bool, write: bool) {
        let how = match (read, write) {
            (true, true) => std::net::Shutdown::Both,
            (true, false) => std::net::Shutdown::Read,
            _ => std::net::Shutdown::Write,
        };
        _ = self.log(
            socket,
            Act::Shutdown { read, write },
            format!("shutdown({how:?})"),
            |of| call(of.shutdown(how)),
        );
    }

    /// An integer option.
    pub fn option(&mut self, socket: Id, name: &str, level: i32, option: i32, value: i32) {
        let result = self.log(socket, Act::Other, format!("setsockopt({name}, {value})"), |of| {
            let size = libc::socklen_t::try_from(size_of::<i32>()).expect("four");
            // SAFETY: the descriptor is open while `of` is borrowed, and `value` is an int that lives through the call.
            let done = unsafe { libc::setsockopt(of.as_raw_fd(), level, option, (&raw const value).cast(), size) };
            Errno::result(done).map(|_| 0)
        });
        assert_eq!(result, Ok(0), "setsockopt {name}");
    }

    /// An integer option of TCP.
    pub fn tcp_option(&mut self, socket: Id, name: &str, option: i32, value: i32) {
        self.option(socket, name, libc::IPPROTO_TCP, option, value);
    }

    /// What the receiver's firewall does with all that this socket sends from now on.
    pub fn verdict(&mut self, socket: Id, verdict: Verdict) {
        let value = i32::from(verdict as u8) << 2;
        if self.of_ipv6 {
            self.option(socket, "IPV6_TCLASS", libc::IPPROTO_IPV6, libc::IPV6_TCLASS, value);
        } else {
            self.option(socket, "IP_TOS", libc::IPPROTO_IP, libc::IP_TOS, value);
        }
        self.socks[socket].verdict = verdict;
    }

    /// close() will send a RST.
    pub fn linger(&mut self, socket: Id) {
        let result = self.log(socket, Act::Other, "setsockopt(SO_LINGER, 0 s)".to_owned(), |of| {
            call(of.set_linger(Some(Duration::ZERO)))
        });
        assert_eq!(result, Ok(0), "SO_LINGER");
        self.socks[socket].at_once = true;
    }

    fn unread(&self, socket: Id) -> u64 {
        nix::ioctl_read_bad!(inq, libc::FIONREAD, libc::c_int);
        let mut unread = 0;
        // SAFETY: the descriptor is open, and FIONREAD writes one int. It fails for a listener, which has nothing.
        let done = unsafe { inq(self.open(socket).as_raw_fd(), &raw mut unread) };
        done.map_or(0, |_| u64::try_from(unread).expect("a count"))
    }

    /// Whether close() would find bytes that nobody has read.
    pub fn has_unread(&self, socket: Id) -> bool {
        self.unread(socket) > 0
    }

    /// close() by this process.
    pub fn close(&mut self, socket: Id) {
        let (open, mut call) = self.last_close(socket, "close()");
        ((), call.time) = timed(|| drop(open));
        self.calls.push(call);
    }

    /// The descriptor goes to another process, which is the last to hold it.
    pub fn close_elsewhere(&mut self, socket: Id, how: Elsewhere) {
        let (open, mut call) = self.last_close(socket, how.text());
        let (helper, name) = (self.helper, format!("life{}", self.number));
        // It may change until then.
        call.before = None;
        helper.run_with_fd(&format!("receive_fd {name}"), &OwnedFd::from(open));
        call.pid = match how {
            Elsewhere::Forked => helper.run(&format!("fork {name}")).parse().expect("a pid"),
            Elsewhere::Passed | Elsewhere::Executed => helper.pid(),
        };
        ((), call.time) = timed(|| match how {
            Elsewhere::Passed => drop(helper.run(&format!("close {name}"))),
            Elsewhere::Forked => drop(helper.run("reap")),
            Elsewhere::Executed => {
                helper.start_command("exec");
                helper.run("hello");
            }
        });
        self.calls.push(call);
    }

    /// The socket, and its last call, whose time is not known yet.
    fn last_close(&mut self, socket: Id, text: &str) -> (Socket, Call) {
        if std::mem::take(&mut self.socks[socket].shared) {
            self.helper.run(&format!("close {}", self.shared_name()));
        }
        let asked = SystemTime::now();
        let before = TcpInfo::read(self.open(socket)).state();
        let unread = self.unread(socket);
        let sock = &mut self.socks[socket];
        let call = Call {
            time: Span {
                before: asked,
                after: asked,
            },
            socket,
            act: Act::Close {
                at_once: sock.at_once,
                unread,
            },
            text: format!("{text} with {unread} bytes unread"),
            result: Ok(0),
            pid: std::process::id(),
            before: Some(before),
            asked,
            after: None,
        };
        (sock.socket.take().expect("an open socket"), call)
    }

    /// connect() to AF_UNSPEC.
    pub fn dissolve(&mut self, socket: Id) {
        let result = self.log(socket, Act::Dissolve, "connect(AF_UNSPEC)".to_owned(), |of| {
            crate::support::sock::disconnect(of);
            Ok(0)
        });
        assert_eq!(result, Ok(0), "AF_UNSPEC");
    }

    /// accept(), once there is something to accept.
    pub fn accept(&mut self, listener: Id) -> Id {
        self.open(listener).set_nonblocking(false).expect("O_NONBLOCK");
        let sock = &self.socks[listener];
        let (side, verdict, no_fin_wait2) = (sock.side, sock.verdict, sock.no_fin_wait2);
        let (accepted, time) = timed(|| self.open(listener).accept());
        let (socket, peer) = accepted.expect("accept");
        let peer = plain(peer.as_socket().expect("an IP address"));
        let state = TcpInfo::read(&socket).state();
        let id = self.add(socket, side, None, verdict);
        self.socks[id].no_fin_wait2 = no_fin_wait2;
        self.learn_local(id);
        self.calls.push(Call {
            time,
            socket: id,
            act: Act::Accept { listener, peer },
            text: format!("accept() from socket {listener}, of {peer}"),
            result: Ok(0),
            pid: std::process::id(),
            before: None,
            asked: time.before,
            after: Some(state),
        });
        id
    }

    /// Waits for an error or a hang-up, and reads SO_ERROR.
    pub fn error(&mut self, socket: Id) -> Option<Errno> {
        let limit = PollTimeout::try_from(test_timeout()).expect("a poll timeout");
        let count = poll(&mut [PollFd::new(self.open(socket).as_fd(), PollFlags::POLLERR)], limit).expect("poll");
        assert!(count > 0, "no error came");
        let result = self.log(socket, Act::Error, "getsockopt(SO_ERROR)".to_owned(), |of| {
            match of.take_error().expect("SO_ERROR") {
                Some(error) => Err(Errno::from_raw(error.raw_os_error().expect("an errno"))),
                None => Ok(0),
            }
        });
        result.err()
    }

    /// Waits until the socket is in one of these states.
    pub fn wait_state(&self, socket: Id, states: &[u8]) {
        wait_until(&format!("socket {socket} is in a state of {states:?}"), || {
            states.contains(&self.state(socket))
        });
    }

    /// Its state.
    pub fn state(&self, socket: Id) -> u8 {
        TcpInfo::read(self.open(socket)).state()
    }

    /// Waits until all that `from` has written in this connection has come in at `to`, or that has ended.
    pub fn delivered(&self, from: Id, to: Id) {
        let written = self.socks[from].written;
        wait_until(&format!("socket {to} has all from {from}"), || {
            let info = TcpInfo::read(self.open(to));
            info.bytes_received() >= written || info.state() == state::CLOSE
        });
    }

    /// Waits until all that it has sent is acknowledged, or it has ended.
    pub fn acknowledged(&self, socket: Id) {
        nix::ioctl_read_bad!(outq, libc::TIOCOUTQ, libc::c_int);
        wait_until(&format!("socket {socket} has all acknowledged"), || {
            let mut left = 0;
            // SAFETY: the descriptor is open, and TIOCOUTQ writes one int.
            unsafe { outq(self.open(socket).as_raw_fd(), &raw mut left) }.expect("SIOCOUTQ");
            left == 0 || self.state(socket) == state::CLOSE
        });
    }

    /// Waits until it has sent something again.
    pub fn sent_again(&self, socket: Id, before: u32) {
        wait_until(&format!("socket {socket} has sent something again"), || {
            self.sent_again_so_far(socket) > before
        });
    }

    /// `tcpi_total_retrans`.
    pub fn sent_again_so_far(&self, socket: Id) -> u32 {
        TcpInfo::read(self.open(socket)).total_retrans()
    }

    /// Lets time pass, on the record.
    pub fn pass(&mut self, socket: Id, time: Duration) {
        _ = self.log(socket, Act::Other, format!("{time:?} pass"), |_| {
            std::thread::sleep(time);
            Ok(0)
        });
    }

    /// Closes what a life that broke off has left open.
    pub fn finish(&mut self) {
        for sock in &mut self.socks {
            sock.socket = None;
        }
    }

    /// Returns the calls so far, one a line.
    pub fn text(&self) -> String {
        let lines: Vec<String> = self.calls.iter().map(|call| format!("\n    {call}")).collect();
        format!("life {}{}", self.number, lines.concat())
    }
}

fn call<T>(result: std::io::Result<T>) -> Result<u64, Errno> {
    match errno_of(result) {
        Errno::UnknownErrno => Ok(0),
        errno => Err(errno),
    }
}

fn bytes(result: std::io::Result<usize>) -> Result<u64, Errno> {
    result
        .map(|count| count as u64)
        .map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or_default()))
}
