//! Connections over the loopback, both ends in this thread.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};

use anyhow::{Context, Result};

/// Each closed connection keeps its client's port for a minute, so no address takes more than this.
const EACH: usize = 10_000;

/// Makes and closes so many, one after another: ten changes of state each. `first` sets the addresses apart from those of
/// other rounds.
pub fn churn(count: usize, first: &mut u8) -> Result<()> {
    let mut left = count;
    while left > 0 {
        *first = first.wrapping_add(1).max(1);
        let listener = TcpListener::bind((Ipv4Addr::new(127, 99, 0, *first), 0)).context("cannot listen")?;
        let address = listener.local_addr()?;
        for _ in 0..left.min(EACH) {
            drop(connect(&listener, address)?);
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
