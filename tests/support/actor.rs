//! Helper processes with sockets. The test binary runs itself again with a hidden argument, and executes the commands
//! that it gets over a socket pair. File descriptors travel over it, too. (After a fork, a process with threads could
//! do little.)

use std::collections::HashMap;
use std::io::{IoSlice, IoSliceMut, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::str::FromStr;
use std::time::Duration;

use nix::errno::Errno;
use nix::libc;
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg, socketpair,
};
use socket2::{Protocol, SockAddr, SockRef, Socket};

use super::sock::{local_address, stream_socket};

/// The argument with which a test program becomes an actor. Its help does not show it.
pub const ARGUMENT: &str = "__actor";

/// A helper process. Dropping it kills it.
pub struct Actor {
    child: Child,
    channel: OwnedFd,
}

impl Actor {
    /// Starts a process in the calling thread's network namespace.
    pub fn start() -> Self {
        Self::spawn(Command::new("/proc/self/exe"), Stdio::null())
    }

    /// Starts a process that inherits `descriptor` as its standard output, through fork and exec. The command
    /// `adopt_stdout` makes a socket of it.
    pub fn inheriting(descriptor: OwnedFd) -> Self {
        Self::spawn(Command::new("/proc/self/exe"), descriptor.into())
    }

    /// Starts a process in new user and network namespaces, which a process without capabilities may create.
    pub fn in_user_namespace() -> Self {
        let mut command = Command::new("/proc/self/exe");
        // SAFETY: a system call and a short write to a file, which are allowed between fork and exec.
        unsafe {
            command.pre_exec(|| {
                unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET)?;
                std::fs::write("/proc/self/uid_map", "0 0 1")
            })
        };
        Self::spawn(command, Stdio::null())
    }

    fn spawn(mut command: Command, stdout: Stdio) -> Self {
        let (channel, stdin) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).expect("socketpair");
        let child = command
            .arg0(ARGUMENT)
            .arg(ARGUMENT)
            .stdin(stdin)
            .stdout(stdout)
            .spawn()
            .expect("start an actor");
        let actor = Self { child, channel };
        assert_eq!(actor.run("hello"), "");
        actor
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Returns the name of the main thread.
    pub fn comm(&self) -> Vec<u8> {
        let mut comm = std::fs::read(format!("/proc/{}/comm", self.pid())).expect("the actor's comm");
        comm.pop();
        comm
    }

    /// Runs a command, which must succeed, and returns its result.
    pub fn run(&self, command: &str) -> String {
        self.send_command(command, None);
        self.receive_result(command).0
    }

    /// Runs a command that gets a descriptor (`receive_fd NAME`).
    pub fn run_with_fd(&self, command: &str, descriptor: &OwnedFd) -> String {
        self.send_command(command, Some(descriptor.as_raw_fd()));
        self.receive_result(command).0
    }

    /// Runs a command that returns a copy of a descriptor (`send_fd NAME`).
    pub fn run_for_fd(&self, command: &str) -> OwnedFd {
        self.send_command(command, None);
        self.receive_result(command).1.expect("a descriptor")
    }

    /// Starts a command whose result [`Self::wait_result`] waits for.
    pub fn start_command(&self, command: &str) {
        self.send_command(command, None);
    }

    /// Waits for the result of [`Self::start_command`].
    pub fn wait_result(&self) -> String {
        self.receive_result("the started command").0
    }

    /// Connects a socket, and returns its local address.
    pub fn connect(&self, name: &str, to: SocketAddr) -> SocketAddr {
        self.run(&format!("connect {name} {to}")).parse().expect("an address")
    }

    /// Sets the name of the process to bytes that need not be text.
    pub fn set_comm(&self, comm: &[u8]) {
        let hex: String = comm.iter().map(|byte| format!("{byte:02x}")).collect();
        self.run(&format!("set_comm {hex}"));
        assert_eq!(self.comm(), comm, "the actor's name");
    }

    /// Tries to connect, and returns the errno: zero for success, after which the connection is closed.
    pub fn try_connect(&self, to: SocketAddr) -> Errno {
        Errno::from_raw(self.run(&format!("try_connect {to}")).parse().expect("an errno"))
    }

    /// Listens, and returns the listener's address.
    pub fn listen(&self, name: &str, at: SocketAddr) -> SocketAddr {
        self.run(&format!("listen {name} {at}")).parse().expect("an address")
    }

    /// Makes the process exit without closing its sockets, and waits until it has.
    pub fn exit(mut self) {
        self.send_command("exit", None);
        self.child.wait().expect("wait for the actor");
    }

    /// Kills the process with SIGKILL, and waits until it has ended.
    pub fn kill(mut self) {
        self.child.kill().expect("kill the actor");
        self.child.wait().expect("wait for the actor");
    }

    fn send_command(&self, command: &str, descriptor: Option<RawFd>) {
        send(self.channel.as_raw_fd(), command.as_bytes(), descriptor);
    }

    fn receive_result(&self, command: &str) -> (String, Option<OwnedFd>) {
        let (result, descriptor) =
            receive(self.channel.as_raw_fd()).unwrap_or_else(|| panic!("{command}: the actor has ended"));
        match result.split_once(' ') {
            Some(("ok", rest)) => (rest.to_owned(), descriptor),
            _ => panic!("{command}: {result}"),
        }
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        // Both fail after exit() or kill().
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn send(channel: RawFd, text: &[u8], descriptor: Option<RawFd>) {
    let fds: Vec<RawFd> = descriptor.into_iter().collect();
    let rights = [ControlMessage::ScmRights(&fds)];
    let rights = if fds.is_empty() { &rights[..0] } else { &rights[..] };
    sendmsg::<()>(channel, &[IoSlice::new(text)], rights, MsgFlags::MSG_NOSIGNAL, None).expect("sendmsg to the actor");
}

fn receive(channel: RawFd) -> Option<(String, Option<OwnedFd>)> {
    let mut buffer = [0; 4096];
    let mut space = nix::cmsg_space!([RawFd; 1]);
    let mut slices = [IoSliceMut::new(&mut buffer)];
    let message = recvmsg::<()>(channel, &mut slices, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC).ok()?;
    let length = message.bytes;
    let mut descriptor = None;
    for control in message.cmsgs().ok()? {
        if let ControlMessageOwned::ScmRights(fds) = control {
            // SAFETY: the kernel has just added this descriptor to the table, and nothing else knows its number.
            descriptor = fds.first().map(|&fd| unsafe { OwnedFd::from_raw_fd(fd) });
        }
    }
    (length > 0).then(|| (String::from_utf8_lossy(&buffer[..length]).into_owned(), descriptor))
}

/// The main function of a helper process: executes commands until the other end of standard input is closed.
pub fn main() -> std::io::Result<()> {
    let mut process = Process::default();
    while let Some((command, descriptor)) = receive(0) {
        let words: Vec<&str> = command.split(' ').collect();
        match process.execute(&words, descriptor) {
            Ok(Reply::Text(text)) => send(0, format!("ok {text}").as_bytes(), None),
            Ok(Reply::Descriptor(fd)) => send(0, b"ok ", Some(fd)),
            Err(error) => send(0, format!("error {error}").as_bytes(), None),
        }
    }
    Ok(())
}

enum Reply {
    Text(String),
    Descriptor(RawFd),
}

/// The state of a helper process.
#[derive(Default)]
struct Process {
    /// Sockets by their names in commands.
    sockets: HashMap<String, Socket>,
    connections: Vec<Connections>,
    /// Children of `fork`. Closing its pipe ends a child.
    children: Vec<(nix::unistd::Pid, OwnedFd)>,
}

impl Process {
    fn execute(&mut self, words: &[&str], descriptor: Option<OwnedFd>) -> std::io::Result<Reply> {
        let mut text = String::new();
        match *words {
            ["hello"] => {}
            ["exit"] => std::process::exit(0),
            ["set_comm", hex] => set_comm(hex),
            // The kernel closes all sockets. The program that starts then reads the next command.
            ["exec"] => return Err(Command::new("/proc/self/exe").arg0(ARGUMENT).arg(ARGUMENT).exec()),
            ["fork", name] => text = self.fork(name)?,
            ["reap"] => self.reap()?,
            ["read_fds", pid] => text = read_fds(pid).to_string(),
            ["open_connections", at, count] => {
                let (connections, at) = Connections::open(parse(at)?, parse(count)?)?;
                self.connections.push(connections);
                text = at.to_string();
            }
            ["close_connections"] => self.connections.drain(..).try_for_each(Connections::close)?,
            ["send_fd", name] => return Ok(Reply::Descriptor(self.sockets[name].as_raw_fd())),
            ["receive_fd", name] => {
                let socket = descriptor.expect("a descriptor with the message").into();
                self.sockets.insert(name.to_owned(), socket);
            }
            ["adopt_stdout", name] => {
                // SAFETY: standard output is the socket that the parent passed, and this program never prints.
                let socket = unsafe { OwnedFd::from_raw_fd(1) }.into();
                self.sockets.insert(name.to_owned(), socket);
            }
            ["close", name] => drop(self.sockets.remove(name)),
            _ => text = self.execute_on_socket(words)?,
        }
        Ok(Reply::Text(text))
    }

    /// Executes the commands that make system calls on sockets.
    fn execute_on_socket(&mut self, words: &[&str]) -> std::io::Result<String> {
        match *words {
            ["listen", name, at] => {
                let at = parse(at)?;
                let socket = stream_socket(at, Protocol::TCP);
                socket.set_reuse_address(true)?;
                self.add(name, socket);
                self.bind_and_listen(name, at)
            }
            ["bind_and_listen", name, at] => self.bind_and_listen(name, parse(at)?),
            ["listen_bound", name] => self.sockets[name].listen(128).map(|()| String::new()),
            ["connect", name, to] => Ok(self.add(name, connect(parse(to)?)?)),
            ["try_connect", to] => {
                let errno = connect(parse(to)?).map_or_else(|error| error.raw_os_error(), |_| Some(0));
                errno
                    .map(|errno| errno.to_string())
                    .ok_or_else(|| std::io::Error::other("no errno"))
            }
            ["connect_from", name, from, to] => {
                let from = parse(from)?;
                let socket = stream_socket(from, Protocol::TCP);
                socket.bind(&SockAddr::from(from))?;
                socket.connect(&SockAddr::from(parse::<SocketAddr>(to)?))?;
                Ok(self.add(name, socket))
            }
            // `from` need not be an address of this machine. Its owner gets the answer to the SYN.
            ["connect_nonblocking", name, from, to] => {
                let from = parse(from)?;
                let socket = stream_socket(from, Protocol::TCP);
                socket.set_ip_transparent_v4(true)?;
                socket.bind(&SockAddr::from(from))?;
                socket.set_nonblocking(true)?;
                match socket.connect(&SockAddr::from(parse::<SocketAddr>(to)?)) {
                    Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {}
                    other => other?,
                }
                Ok(self.add(name, socket))
            }
            ["connect_in_thread", name, to, thread] => {
                let to = parse(to)?;
                let thread = std::thread::Builder::new().name(thread.to_owned());
                let socket = thread
                    .spawn(move || connect(to))?
                    .join()
                    .expect("the connecting thread")?;
                Ok(self.add(name, socket))
            }
            ["accept", listener, name] => {
                let (socket, peer) = self.sockets[listener].accept()?;
                self.add(name, socket);
                Ok(peer.as_socket().expect("an IP address").to_string())
            }
            ["write", name, count] => (&self.sockets[name])
                .write_all(&vec![0x5a; parse(count)?])
                .map(|()| String::new()),
            ["read", name, count] => (&self.sockets[name])
                .read_exact(&mut vec![0; parse(count)?])
                .map(|()| String::new()),
            // Reads until the end of the stream: the number of bytes.
            ["eof", name] => Ok((&self.sockets[name]).read_to_end(&mut Vec::new())?.to_string()),
            ["shutdown", name] => self.sockets[name].shutdown(Shutdown::Write).map(|()| String::new()),
            ["linger0", name] => SockRef::from(&self.sockets[name])
                .set_linger(Some(Duration::ZERO))
                .map(|()| String::new()),
            _ => Err(std::io::Error::other(format!("no such command: {words:?}"))),
        }
    }

    /// Adds a socket, and returns its local address.
    fn add(&mut self, name: &str, socket: Socket) -> String {
        let address = local_address(&socket).to_string();
        self.sockets.insert(name.to_owned(), socket);
        address
    }

    fn bind_and_listen(&self, name: &str, at: SocketAddr) -> std::io::Result<String> {
        let socket = &self.sockets[name];
        socket.bind(&SockAddr::from(at))?;
        socket.listen(128)?;
        Ok(local_address(socket).to_string())
    }

    /// Leaves the socket to a child process, and returns the child's pid.
    fn fork(&mut self, name: &str) -> std::io::Result<String> {
        let (child_end, parent_end) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
        // SAFETY: this process has one thread, and the child makes only system calls.
        match unsafe { nix::unistd::fork() }? {
            nix::unistd::ForkResult::Child => {
                drop(parent_end);
                // Returns when the parent drops its end.
                let _ = nix::unistd::read(&child_end, &mut [0]);
                // SAFETY: it ends this process immediately.
                unsafe { libc::_exit(0) };
            }
            nix::unistd::ForkResult::Parent { child } => {
                drop(self.sockets.remove(name));
                self.children.push((child, parent_end));
                Ok(child.to_string())
            }
        }
    }

    /// Ends the children, and waits for them.
    fn reap(&mut self) -> std::io::Result<()> {
        for (child, pipe) in self.children.drain(..) {
            drop(pipe);
            nix::sys::wait::waitpid(child, None)?;
        }
        Ok(())
    }
}

fn parse<T: FromStr<Err: std::error::Error + Send + Sync + 'static>>(word: &str) -> std::io::Result<T> {
    word.parse().map_err(std::io::Error::other)
}

fn connect(to: SocketAddr) -> std::io::Result<Socket> {
    let socket = stream_socket(to, Protocol::TCP);
    socket.connect(&SockAddr::from(to))?;
    Ok(socket)
}

/// Reads the links of all descriptors of a process until the process has ended. Returns the number of links read.
fn read_fds(pid: &str) -> usize {
    let mut links = 0;
    while let Ok(entries) = std::fs::read_dir(format!("/proc/{pid}/fd")) {
        let is_link = |entry: &std::fs::DirEntry| std::fs::read_link(entry.path()).is_ok();
        links += entries.flatten().filter(is_link).count();
    }
    links
}

/// Sets the name of the main thread to bytes that need not be text.
fn set_comm(hex: &str) {
    let mut name: Vec<u8> = (0..hex.len() / 2)
        .map(|at| u8::from_str_radix(&hex[at * 2..at * 2 + 2], 16).expect("hexadecimal"))
        .collect();
    name.push(0);
    // SAFETY: PR_SET_NAME reads a string that ends with NUL, as `name` does.
    let result = unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) };
    assert_eq!(result, 0, "PR_SET_NAME");
}

/// Both ends of many connections to one listener. The payload of each follows from the client's port.
struct Connections(Vec<(TcpStream, TcpStream)>);

impl Connections {
    fn open(at: SocketAddr, count: usize) -> std::io::Result<(Self, SocketAddr)> {
        // Two descriptors for each. Root may raise the limit.
        let descriptors = (2 * count + 100) as u64;
        setrlimit(Resource::RLIMIT_NOFILE, descriptors, descriptors)?;
        let listener = TcpListener::bind(at)?;
        let at = listener.local_addr()?;
        let mut pairs = Vec::with_capacity(count);
        for _ in 0..count {
            let (mut client, mut server) = (TcpStream::connect(at)?, listener.accept()?.0);
            let (up, down) = payload_by_port(client.local_addr()?.port());
            let mut buffer = [0; 256];
            client.write_all(&buffer[..up])?;
            server.read_exact(&mut buffer[..up])?;
            server.write_all(&buffer[..down])?;
            client.read_exact(&mut buffer[..down])?;
            pairs.push((client, server));
        }
        Ok((Self(pairs), at))
    }

    /// Closes each client, then its server.
    fn close(self) -> std::io::Result<()> {
        for (client, mut server) in self.0 {
            drop(client);
            let rest = server.read(&mut [0])?;
            assert_eq!(rest, 0, "the end of the stream");
        }
        Ok(())
    }
}

/// Returns what the client of an `open_connections` connection with this port has sent and received.
pub fn payload_by_port(port: u16) -> (usize, usize) {
    (1 + usize::from(port) % 101, 1 + usize::from(port) % 31)
}
