//! Connections over the loopback, both ends in this thread.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Each closed connection keeps its client's port for a minute, so no address takes more than this.
const EACH: usize = 10_000;
/// How the addresses of all servers begin.
pub const NETWORK: &str = "127.99.0.";
/// What the client of an exchange sends, bytes; no multiple of what others round to.
const UP: usize = 777;
/// What it gets.
const DOWN: usize = 3333;

/// Makes and closes so many, one after another: ten changes of state each. `first` sets the addresses apart from those of
/// other rounds.
pub fn churn(count: usize, first: &mut u8) -> Result<()> {
    each(count, first, |listener, address| connect(listener, address).map(drop))
}

fn each(count: usize, first: &mut u8, mut one: impl FnMut(&TcpListener, SocketAddr) -> Result<()>) -> Result<()> {
    let mut left = count;
    while left > 0 {
        *first = first.wrapping_add(1).max(1);
        let listener = TcpListener::bind((Ipv4Addr::new(127, 99, 0, *first), 0)).context("cannot listen")?;
        let address = listener.local_addr()?;
        for _ in 0..left.min(EACH) {
            one(&listener, address)?;
        }
        left = left.saturating_sub(EACH);
    }
    Ok(())
}

/// One connection.
pub fn connect(listener: &TcpListener, address: SocketAddr) -> Result<(TcpStream, TcpStream)> {
    let client = TcpStream::connect(address).context("cannot connect")?;
    let (server, _) = listener.accept().context("cannot accept")?;
    Ok((client, server))
}

/// Connections that carry something, and attempts at ports where nobody listens.
pub struct Exchanges {
    /// How many connect.
    pub count: usize,
    /// How many are refused.
    pub refused: usize,
}

impl Exchanges {
    /// What all ends of all connections have sent and received, bytes.
    pub fn bytes(&self) -> u64 {
        (self.count * 2 * (UP + DOWN)) as u64
    }

    /// Makes all of them on one processor; connections a second.
    pub fn run(&self, first: &mut u8) -> Result<f64> {
        let everywhere = sched_getaffinity(None).context("cannot ask for processors")?;
        let mut one = CpuSet::new();
        let last = (0..CpuSet::MAX_CPU).rfind(|&cpu| everywhere.is_set(cpu));
        one.set(last.context("no processor")?);
        sched_setaffinity(None, &one).context("cannot keep to one processor")?;
        let rate = self.run_here(first);
        sched_setaffinity(None, &everywhere).context("cannot go back to all processors")?;
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
            ensure!(TcpStream::connect(closed).is_err(), "somebody listens at {closed}");
        }
        Ok(rate)
    }
}
