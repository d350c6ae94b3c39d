//! Other processes with sockets. The test binary runs itself again with a hidden argument and obeys the commands that come
//! over a socket pair; descriptors travel over it too. (A fork of a threaded process could do little more than crash.)

use std::collections::HashMap;
use std::io::{IoSlice, IoSliceMut, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};

use nix::libc;
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg, socketpair,
};
use socket2::{Protocol, SockAddr, SockRef, Socket};

use super::sock::{address, stream_socket};

/// The hidden argument.
pub const ARGUMENT: &str = "__actor";

/// Another process.
pub struct Actor {
    child: Child,
    wire: OwnedFd,
}

impl Actor {
    /// Starts one in the calling thread's network namespace.
    pub fn start() -> Self {
        Self::start_with(Stdio::null())
    }

    /// Starts one that inherits `descriptor` through fork and exec, as its standard output. It finds it by `inherited`.
    pub fn inheriting(descriptor: OwnedFd) -> Self {
        Self::start_with(descriptor.into())
    }

    /// Starts one in a user namespace and a network namespace that it makes itself, as a process without any capability may.
    pub fn in_user_namespace() -> Self {
        let mut command = Command::new("/proc/self/exe");
        // SAFETY: one system call and one short write, which may be made between fork and exec.
        unsafe {
            command.pre_exec(|| {
                unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET)?;
                std::fs::write("/proc/self/uid_map", "0 0 1")
            })
        };
        Self::spawn(command, Stdio::null())
    }

    fn start_with(stdout: Stdio) -> Self {
        Self::spawn(Command::new("/proc/self/exe"), stdout)
    }

    fn spawn(mut command: Command, stdout: Stdio) -> Self {
        let (wire, far) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).expect("socketpair");
        let child = command
            .arg0(ARGUMENT)
            .arg(ARGUMENT)
            .stdin(far)
            .stdout(stdout)
            .spawn()
            .expect("start an actor");
        let actor = Self { child, wire };
        assert_eq!(actor.ask("hello"), "");
        actor
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The name of its main thread, as the kernel has it now.
    pub fn comm(&self) -> Vec<u8> {
        let mut comm = std::fs::read(format!("/proc/{}/comm", self.pid())).expect("the actor's comm");
        comm.pop();
        comm
    }

    /// Gives a command that must work and returns its answer.
    pub fn ask(&self, command: &str) -> String {
        self.tell(command, None);
        self.answer(command).0
    }

    /// Gives a command together with a descriptor (`take NAME`).
    pub fn hand(&self, command: &str, descriptor: &OwnedFd) -> String {
        self.tell(command, Some(descriptor.as_raw_fd()));
        self.answer(command).0
    }

    /// Asks for a copy of a descriptor (`give NAME`).
    pub fn fetch(&self, command: &str) -> OwnedFd {
        self.tell(command, None);
        self.answer(command).1.expect("a descriptor")
    }

    /// Gives a command whose answer [`Self::done`] waits for.
    pub fn begin(&self, command: &str) {
        self.tell(command, None);
    }

    /// The answer to [`Self::begin`].
    pub fn done(&self) -> String {
        self.answer("what was begun").0
    }

    /// Connects: the actor's own address.
    pub fn connect(&self, name: &str, to: SocketAddr) -> SocketAddr {
        self.ask(&format!("connect {name} {to}")).parse().expect("an address")
    }

    /// Listens: the address.
    pub fn listen(&self, name: &str, at: SocketAddr) -> SocketAddr {
        self.ask(&format!("listen {name} {at}")).parse().expect("an address")
    }

    /// Lets it end without closing anything, and waits until it has.
    pub fn exit(mut self) {
        self.tell("exit", None);
        self.child.wait().expect("wait for the actor");
    }

    /// Kills it with SIGKILL, and waits until it is gone.
    pub fn kill(mut self) {
        self.child.kill().expect("kill the actor");
        self.child.wait().expect("wait for the actor");
    }

    fn tell(&self, command: &str, descriptor: Option<RawFd>) {
        send(self.wire.as_raw_fd(), command.as_bytes(), descriptor);
    }

    fn answer(&self, command: &str) -> (String, Option<OwnedFd>) {
        let (answer, descriptor) =
            receive(self.wire.as_raw_fd()).unwrap_or_else(|| panic!("{command}: the actor is gone"));
        match answer.split_once(' ') {
            Some(("ok", rest)) => (rest.to_owned(), descriptor),
            _ => panic!("{command}: {answer}"),
        }
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        // After exit() or kill() both fail, and that is fine.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn send(wire: RawFd, text: &[u8], descriptor: Option<RawFd>) {
    let fds: Vec<RawFd> = descriptor.into_iter().collect();
    let rights = [ControlMessage::ScmRights(&fds)];
    let rights = if fds.is_empty() { &rights[..0] } else { &rights[..] };
    sendmsg::<()>(wire, &[IoSlice::new(text)], rights, MsgFlags::MSG_NOSIGNAL, None).expect("sendmsg to the actor");
}

fn receive(wire: RawFd) -> Option<(String, Option<OwnedFd>)> {
    let mut buffer = [0; 4096];
    let mut space = nix::cmsg_space!([RawFd; 1]);
    let mut slices = [IoSliceMut::new(&mut buffer)];
    let message = recvmsg::<()>(wire, &mut slices, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC).ok()?;
    let length = message.bytes;
    let mut descriptor = None;
    for control in message.cmsgs().ok()? {
        if let ControlMessageOwned::ScmRights(fds) = control {
            // SAFETY: the kernel has just put this descriptor into our table, and nobody else knows its number.
            descriptor = fds.first().map(|&fd| unsafe { OwnedFd::from_raw_fd(fd) });
        }
    }
    (length > 0).then(|| (String::from_utf8_lossy(&buffer[..length]).into_owned(), descriptor))
}

/// The actor's whole life: obey until the other end of standard input is gone.
pub fn main() -> std::io::Result<()> {
    let mut sockets = HashMap::new();
    let mut held = Vec::new();
    let mut children = Vec::new();
    while let Some((command, descriptor)) = receive(0) {
        let words: Vec<&str> = command.split(' ').collect();
        if words[0] == "exit" {
            std::process::exit(0);
        }
        match obey(&mut sockets, &mut held, &mut children, &words, descriptor) {
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

/// Both ends of so many connections to one listener. What moves each way follows from the client's port.
struct Held(Vec<(TcpStream, TcpStream)>);

impl Held {
    fn new(at: SocketAddr, count: usize) -> std::io::Result<(Self, SocketAddr)> {
        // Two descriptors each; root may have more than it was given.
        let enough = (2 * count + 100) as u64;
        setrlimit(Resource::RLIMIT_NOFILE, enough, enough)?;
        let listener = TcpListener::bind(at)?;
        let at = listener.local_addr()?;
        let mut pairs = Vec::with_capacity(count);
        for _ in 0..count {
            let (mut client, mut server) = (TcpStream::connect(at)?, listener.accept()?.0);
            let (up, down) = held_bytes(client.local_addr()?.port());
            let mut buffer = [0; 256];
            client.write_all(&buffer[..up])?;
            server.read_exact(&mut buffer[..up])?;
            server.write_all(&buffer[..down])?;
            client.read_exact(&mut buffer[..down])?;
            pairs.push((client, server));
        }
        Ok((Self(pairs), at))
    }

    /// The clients close first.
    fn release(self) -> std::io::Result<()> {
        for (client, mut server) in self.0 {
            drop(client);
            let rest = server.read(&mut [0])?;
            assert_eq!(rest, 0, "the end of the stream");
        }
        Ok(())
    }
}

/// What a held connection's client has sent, and received, by its port.
pub fn held_bytes(port: u16) -> (usize, usize) {
    (1 + usize::from(port) % 101, 1 + usize::from(port) % 31)
}

fn obey(
    sockets: &mut HashMap<String, Socket>,
    held: &mut Vec<Held>,
    children: &mut Vec<(nix::unistd::Pid, OwnedFd)>,
    words: &[&str],
    descriptor: Option<OwnedFd>,
) -> std::io::Result<Reply> {
    let named = |sockets: &HashMap<String, Socket>, name: &str| sockets[name].try_clone();
    let mut text = String::new();
    match *words {
        ["hello"] => {}
        ["name", hex] => set_comm(hex),
        ["listen", name, at] => {
            let at: SocketAddr = at.parse().map_err(std::io::Error::other)?;
            let socket = stream_socket(at, Protocol::TCP);
            socket.set_reuse_address(true)?;
            socket.bind(&SockAddr::from(at))?;
            socket.listen(128)?;
            text = address(&socket).to_string();
            sockets.insert(name.to_owned(), socket);
        }
        // A socket that came from elsewhere, at this address.
        ["listen_again", name, at] => {
            let at: SocketAddr = at.parse().map_err(std::io::Error::other)?;
            sockets[name].bind(&SockAddr::from(at))?;
            sockets[name].listen(128)?;
            text = address(&sockets[name]).to_string();
        }
        // Reads the links of all its descriptors until that process is gone: how many.
        ["look", pid] => {
            let mut links = 0;
            let folder = format!("/proc/{pid}/fd");
            while let Ok(entries) = std::fs::read_dir(&folder) {
                links += entries
                    .flatten()
                    .filter(|entry| std::fs::read_link(entry.path()).is_ok())
                    .count();
            }
            text = links.to_string();
        }
        // A socket that came from elsewhere, at the address that it has.
        ["listen_here", name] => sockets[name].listen(128)?,
        ["connect", name, to] => {
            let socket = connect(to)?;
            text = address(&socket).to_string();
            sockets.insert(name.to_owned(), socket);
        }
        ["connect_from", name, from, to] => {
            let from: SocketAddr = from.parse().map_err(std::io::Error::other)?;
            let to: SocketAddr = to.parse().map_err(std::io::Error::other)?;
            let socket = stream_socket(from, Protocol::TCP);
            socket.bind(&SockAddr::from(from))?;
            socket.connect(&SockAddr::from(to))?;
            text = address(&socket).to_string();
            sockets.insert(name.to_owned(), socket);
        }
        // From an address that need not be this machine's. The answer to the SYN goes to who has that address.
        ["attempt", name, from, to] => {
            let from: SocketAddr = from.parse().map_err(std::io::Error::other)?;
            let to: SocketAddr = to.parse().map_err(std::io::Error::other)?;
            let socket = stream_socket(from, Protocol::TCP);
            socket.set_ip_transparent_v4(true)?;
            socket.bind(&SockAddr::from(from))?;
            socket.set_nonblocking(true)?;
            match socket.connect(&SockAddr::from(to)) {
                Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {}
                other => other?,
            }
            text = address(&socket).to_string();
            sockets.insert(name.to_owned(), socket);
        }
        ["connect_in_thread", name, to, thread] => {
            let to = to.to_owned();
            let builder = std::thread::Builder::new().name(thread.to_owned());
            let socket = builder
                .spawn(move || connect(&to))?
                .join()
                .expect("the connecting thread")?;
            text = address(&socket).to_string();
            sockets.insert(name.to_owned(), socket);
        }
        ["accept", listener, name] => {
            let (socket, peer) = named(sockets, listener)?.accept()?;
            text = peer.as_socket().expect("an IP address").to_string();
            sockets.insert(name.to_owned(), socket);
        }
        ["write", name, count] => {
            named(sockets, name)?.write_all(&vec![0x5a; count.parse().map_err(std::io::Error::other)?])?;
        }
        ["read", name, count] => {
            named(sockets, name)?.read_exact(&mut vec![0; count.parse().map_err(std::io::Error::other)?])?;
        }
        ["eof", name] => {
            let mut all = Vec::new();
            text = named(sockets, name)?.read_to_end(&mut all)?.to_string();
        }
        ["shutdown", name] => sockets[name].shutdown(Shutdown::Write)?,
        ["linger0", name] => SockRef::from(&sockets[name]).set_linger(Some(std::time::Duration::ZERO))?,
        ["close", name] => drop(sockets.remove(name)),
        ["fork", name] => {
            let (end, own) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
            // SAFETY: this process has one thread, and the child makes only system calls.
            match unsafe { nix::unistd::fork() }? {
                nix::unistd::ForkResult::Child => {
                    drop(own);
                    // Until the parent drops its end.
                    let _ = nix::unistd::read(&end, &mut [0]);
                    // SAFETY: it ends this process at once.
                    unsafe { libc::_exit(0) };
                }
                nix::unistd::ForkResult::Parent { child } => {
                    drop(sockets.remove(name));
                    text = child.to_string();
                    children.push((child, own));
                }
            }
        }
        ["reap"] => {
            for (child, end) in children.drain(..) {
                drop(end);
                nix::sys::wait::waitpid(child, None)?;
            }
        }
        // The kernel closes all sockets. The program that comes then reads the next command.
        ["exec"] => return Err(Command::new("/proc/self/exe").arg0(ARGUMENT).arg(ARGUMENT).exec()),
        ["hold", at, count] => {
            let parsed = (
                at.parse().map_err(std::io::Error::other)?,
                count.parse().map_err(std::io::Error::other)?,
            );
            let (all, at) = Held::new(parsed.0, parsed.1)?;
            held.push(all);
            text = at.to_string();
        }
        ["release"] => held.drain(..).try_for_each(Held::release)?,
        ["give", name] => return Ok(Reply::Descriptor(sockets[name].as_raw_fd())),
        ["take", name] => {
            sockets.insert(
                name.to_owned(),
                descriptor.expect("a descriptor with the message").into(),
            );
        }
        ["inherited", name] => {
            // SAFETY: standard output is what the parent put there, and this program never prints.
            sockets.insert(name.to_owned(), unsafe { OwnedFd::from_raw_fd(1) }.into());
        }
        _ => return Err(std::io::Error::other(format!("no such command: {words:?}"))),
    }
    Ok(Reply::Text(text))
}

fn connect(to: &str) -> std::io::Result<Socket> {
    let to: SocketAddr = to.parse().map_err(std::io::Error::other)?;
    let socket = stream_socket(to, Protocol::TCP);
    socket.connect(&SockAddr::from(to))?;
    Ok(socket)
}

/// Names the main thread, with bytes that need not be text.
fn set_comm(hex: &str) {
    let mut name: Vec<u8> = (0..hex.len() / 2)
        .map(|at| u8::from_str_radix(&hex[at * 2..at * 2 + 2], 16).expect("hexadecimal"))
        .collect();
    name.push(0);
    // SAFETY: PR_SET_NAME reads a string that ends with NUL, which `name` is.
    let done = unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) };
    assert_eq!(done, 0, "PR_SET_NAME");
}
