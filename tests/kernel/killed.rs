//! Sockets that an administrator destroys: `ss -K`. The owner is who it was, never `ss`.

use nix::errno::Errno;

use crate::Table;
use crate::support::expect::Scene;
use crate::support::net;
use crate::support::probe::Need;
use crate::support::sock::{ClosedPort, V, dial, drain, error_of, exchange, fin_acknowledged, flushed, pair, reset};

/// The trials.
pub fn table() -> Table {
    Table::new("killed")
        .both("client", &[Need::Kill], client)
        .both("server", &[Need::Kill], server)
        .both("client_half_closed", &[Need::Kill], client_half_closed)
        .both("server_half_closed", &[Need::Kill], server_half_closed)
        .both("attempt", &[Need::Kill, Need::Nft], attempt)
}

fn kill(filter: &str) {
    net::run("ss", &["-K", "-t", "-n", "-a", filter]);
}

fn client(scene: &Scene, v: V) {
    let pair = pair(v);
    exchange(&pair, 1000, 300);
    flushed(&pair.server);
    kill(&format!("dport = :{}", pair.truth.dst.port()));
    assert_eq!(error_of(&pair.client), Errno::ECONNABORTED);
    assert_eq!(error_of(&pair.server), Errno::ECONNRESET);
    scene.expect(&[
        pair.truth
            .outbound()
            .bytes(1000, 300)
            .ended("reset_by_local", Some("ECONNABORTED"), Some("local")),
        pair.truth.inbound().bytes(300, 1000).reset_by_peer().by(&["listener"]),
    ]);
}

fn server(scene: &Scene, v: V) {
    let pair = pair(v);
    exchange(&pair, 1000, 300);
    flushed(&pair.server);
    kill(&format!("sport = :{}", pair.truth.dst.port()));
    assert_eq!(error_of(&pair.server), Errno::ECONNABORTED);
    assert_eq!(error_of(&pair.client), Errno::ECONNRESET);
    scene.expect(&[
        pair.truth.outbound().bytes(1000, 300).reset_by_peer(),
        pair.truth
            .inbound()
            .bytes(300, 1000)
            .ended("reset_by_local", Some("ECONNABORTED"), Some("local"))
            .by(&["listener"]),
    ]);
}

/// In FIN_WAIT2, the program still there.
fn client_half_closed(scene: &Scene, v: V) {
    let pair = pair(v);
    exchange(&pair, 1000, 300);
    pair.client.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(drain(&pair.server), 0);
    fin_acknowledged(&pair.client);
    kill(&format!("dport = :{}", pair.truth.dst.port()));
    assert_eq!(error_of(&pair.client), Errno::ECONNABORTED);
    assert_eq!(error_of(&pair.server), Errno::EPIPE);
    scene.expect(&[
        pair.truth
            .outbound()
            .bytes(1000, 300)
            .ended("reset_by_local", Some("ECONNABORTED"), Some("local"))
            .states(&["FIN_WAIT2"]),
        pair.truth
            .inbound()
            .bytes(300, 1000)
            .ended("reset_by_peer", Some("EPIPE"), Some("peer"))
            .by(&["listener"]),
    ]);
}

/// In CLOSE_WAIT: the peer had closed first.
fn server_half_closed(scene: &Scene, v: V) {
    let pair = pair(v);
    exchange(&pair, 1000, 300);
    drop(pair.client);
    assert_eq!(drain(&pair.server), 0);
    scene.expect(&[pair.truth.outbound().bytes(1000, 300).ok("local")]);
    kill(&format!("sport = :{}", pair.truth.dst.port()));
    assert_eq!(error_of(&pair.server), Errno::ECONNABORTED);
    scene.expect(&[pair
        .truth
        .inbound()
        .bytes(300, 1000)
        .ended("reset_by_local", Some("ECONNABORTED"), Some("peer"))
        .states(&["CLOSE_WAIT"])
        .by(&["listener"])]);
    reset(pair.server);
    scene.expect_nothing();
}

/// While it still waits for an answer.
fn attempt(scene: &Scene, v: V) {
    let port = ClosedPort::new();
    let to = port.at(v);
    net::rules(&[&format!("tcp dport {} drop", to.port())]);
    let attempt = dial(v.at(0), to);
    kill(&format!("dport = :{}", to.port()));
    assert_eq!(error_of(&attempt.socket), Errno::ECONNABORTED);
    scene.expect(&[attempt
        .truth
        .outbound()
        .failed("connect_aborted", Some("ECONNABORTED"), Some("local"))]);
}
