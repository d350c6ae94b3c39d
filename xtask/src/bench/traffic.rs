//! Connections over loopback, with both ends in this thread.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// The number of connections to one address. Each closed connection occupies its client port for a minute.
const PER_ADDRESS: usize = 10_000;
/// The prefix of all server addresses.
pub const NETWORK: &str = "127.99.0.";
/// The bytes that the client of an exchange sends: not a multiple of 1024, to which other tracers round.
const UP: usize = 777;
/// The bytes that the server of an exchange sends.
const DOWN: usize = 3333;

/// Opens and closes `count` connections, one after the other. Each has ten changes of state. `address` is the last byte
/// of the latest server address; each call uses new addresses.
pub fn churn(count: usize, address: &mut u8) -> Result<()> {
    each(count, address, |listener, server| connect(listener, server).map(drop))
}

fn each(count: usize, first: &mut u8, mut one: impl FnMut(&TcpListener, SocketAddr) -> Result<()>) -> Result<()> {
    let mut left = count;
    while left > 0 {
        *first = first.wrapping_add(1).max(1);
        let listener = TcpListener::bind((Ipv4Addr::new(127, 99, 0, *first), 0)).context("cannot listen")?;
        let address = listener.local_addr()?;
        for _ in 0..left.min(PER_ADDRESS) {
            one(&listener, address)?;
        }
        left = left.saturating_sub(PER_ADDRESS);
    }
    Ok(())
}

pub fn connect(listener: &TcpListener, address: SocketAddr) -> Result<(TcpStream, TcpStream)> {
    let client = TcpStream::connect(address).context("cannot connect")?;
    let (server, _) = listener.accept().context("cannot accept")?;
    Ok((client, server))
}

/// Connections that exchange data, and attempts that are refused.
pub struct Exchanges {
    /// The number of connections.
    pub count: usize,
    /// The number of refused attempts.
    pub refused: usize,
}

impl Exchanges {
    /// Returns the number of bytes that all ends send and receive.
    pub fn bytes(&self) -> u64 {
        (self.count * 2 * (UP + DOWN)) as u64
    }

    /// Runs all connections on one processor. Returns the connections per second.
    pub fn run(&self, first: &mut u8) -> Result<f64> {
        let everywhere = sched_getaffinity(None).context("cannot read the allowed processors")?;
        let mut one = CpuSet::new();
        let last = (0..CpuSet::MAX_CPU).rfind(|&cpu| everywhere.is_set(cpu));
        one.set(last.context("no processor")?);
        sched_setaffinity(None, &one).context("cannot select one processor")?;
        let rate = self.run_here(first);
        sched_setaffinity(None, &everywhere).context("cannot select all processors again")?;
        rate
    }

    fn run_here(&self, first: &mut u8) -> Result<f64> {
        let (up, down) = ([1; UP], [2; DOWN]);
        let mut buffer = [0; DOWN];
        let began = Instant::now();
        each(self.count, first, |listener, address| {
            let (mut client, mut server) = connect(listener, address)?;
            client.write_all(&up)?;
            server.read_exact(&mut buffer[..UP])?;
            server.write_all(&down)?;
            client.read_exact(&mut buffer)?;
            Ok(())
        })?;
        let rate = self.count as f64 / began.elapsed().as_secs_f64();
        let listener = TcpListener::bind((Ipv4Addr::new(127, 99, 0, *first), 0)).context("cannot listen")?;
        let closed = listener.local_addr()?;
        drop(listener);
        for _ in 0..self.refused {
            ensure!(TcpStream::connect(closed).is_err(), "{closed} is not closed");
        }
        Ok(rate)
    }
}
