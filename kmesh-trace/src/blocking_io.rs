//! Blocking reads and writes on descriptors that may be non-blocking.
//!
//! `O_NONBLOCK` belongs to the open file, not to the descriptor. If another program sets it on a shared pipe or
//! terminal, the calls of this program fail with `EAGAIN`, too. Here they wait and try again.

use std::io::{self, ErrorKind, Read, Write};

/// Waits until reading `stream` returns bytes or its end.
pub fn wait_until_readable(stream: &std::fs::File) -> io::Result<()> {
    wait::readable(stream)
}

/// A stream whose reads and writes block.
#[derive(Debug)]
pub struct Blocking<T>(pub T);

#[cfg(unix)]
mod wait {
    use std::io;
    use std::os::fd::AsFd;

    use rustix::event::{PollFd, PollFlags, poll};
    use rustix::io::Errno;

    pub trait Descriptor: AsFd {}
    impl<T: AsFd> Descriptor for T {}

    /// Waits until a read or write does not return `EAGAIN`.
    fn ready(stream: &impl AsFd, flags: PollFlags) -> io::Result<()> {
        match poll(&mut [PollFd::new(stream, flags)], None) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    pub fn readable(stream: &impl AsFd) -> io::Result<()> {
        ready(stream, PollFlags::IN)
    }

    pub fn writable(stream: &impl AsFd) -> io::Result<()> {
        ready(stream, PollFlags::OUT)
    }
}

#[cfg(not(unix))]
mod wait {
    use std::io;

    pub trait Descriptor {}
    impl<T> Descriptor for T {}

    pub fn readable(_: &impl Sized) -> io::Result<()> {
        Err(io::ErrorKind::WouldBlock.into())
    }

    pub fn writable(_: &impl Sized) -> io::Result<()> {
        Err(io::ErrorKind::WouldBlock.into())
    }
}

impl<T: Read + wait::Descriptor> Read for Blocking<T> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.0.read(bytes) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => wait::readable(&self.0)?,
                done => return done,
            }
        }
    }
}

/// `write_all` and `write_fmt` use these two methods, so they write no byte twice.
impl<T: Write + wait::Descriptor> Write for Blocking<T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match self.0.write(bytes) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => wait::writable(&self.0)?,
                done => return done,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        loop {
            match self.0.flush() {
                Err(error) if error.kind() == ErrorKind::WouldBlock => wait::writable(&self.0)?,
                done => return done,
            }
        }
    }
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;
    use std::thread;

    use rustix::io::ioctl_fionbio;

    use super::*;

    /// The data is larger than the buffer of the pipe (64 KiB), so both ends have to wait.
    #[test]
    fn nonblocking_pipe_transfers_all_bytes() {
        let bytes: Vec<u8> = (0..1_000_000_u32).map(|number| number as u8).collect();
        let (reader, writer) = std::io::pipe().unwrap();
        ioctl_fionbio(reader.as_fd(), true).unwrap();
        ioctl_fionbio(writer.as_fd(), true).unwrap();
        let [reader, writer] = [reader.into(), writer.into()].map(|fd: std::os::fd::OwnedFd| Blocking(File::from(fd)));
        let mut reader = reader;
        let read = thread::spawn(move || {
            let mut read = Vec::new();
            reader.read_to_end(&mut read).map(|_| read)
        });
        let mut writer = io::LineWriter::new(writer);
        writer.write_all(&bytes).unwrap();
        writer.flush().unwrap();
        drop(writer);
        assert!(read.join().unwrap().unwrap() == bytes);
    }

    #[test]
    fn waiting_write_fails_when_the_reader_closes() {
        let (reader, writer) = std::io::pipe().unwrap();
        ioctl_fionbio(writer.as_fd(), true).unwrap();
        let mut writer = Blocking(writer);
        let write = thread::spawn(move || writer.write_all(&vec![0; 1_000_000]));
        drop(reader);
        assert_eq!(write.join().unwrap().unwrap_err().kind(), ErrorKind::BrokenPipe);
    }
}
