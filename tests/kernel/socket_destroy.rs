//! Sockets that an administrator destroys with `ss -K`. The record names the socket's owner, never `ss`.

use nix::errno::Errno;

use crate::Topic;
use crate::support::net;
use crate::support::probe::Need;
use crate::support::record_view::RecordView;
use crate::support::sock::{
    ClosedPort, IpVersion, connect_nonblocking, drain, exchanged_pair, reset, take_error, wait_fin_acknowledged,
};

pub fn topic() -> Topic {
    const DESTROY: &[Need] = &[Need::SocketDestroy];
    Topic::new("socket_destroy")
        .both_versions("client", DESTROY, client)
        .both_versions("server", DESTROY, server)
        .both_versions("client_in_fin_wait2", DESTROY, client_in_fin_wait2)
        .both_versions("server_in_close_wait", DESTROY, server_in_close_wait)
        .both_versions("attempt", &[Need::SocketDestroy, Need::Nft], attempt)
}

/// Destroys the sockets that match a filter of `ss`.
fn destroy(filter: &str) {
    net::run("ss", &["-K", "-t", "-n", "-a", filter]);
}

fn client(view: &RecordView, version: IpVersion) {
    let pair = exchanged_pair(version);
    destroy(&format!("dport = :{}", pair.truth.dst.port()));
    assert_eq!(take_error(&pair.client), Errno::ECONNABORTED);
    assert_eq!(take_error(&pair.server), Errno::ECONNRESET);
    view.expect(&[
        pair.truth
            .outbound()
            .bytes(1000, 300)
            .ended("reset_by_local", Some("ECONNABORTED"), Some("local")),
        pair.truth
            .inbound()
            .bytes(300, 1000)
            .reset_by_peer()
            .found_by(&["listener"]),
    ]);
}

fn server(view: &RecordView, version: IpVersion) {
    let pair = exchanged_pair(version);
    destroy(&format!("sport = :{}", pair.truth.dst.port()));
    assert_eq!(take_error(&pair.server), Errno::ECONNABORTED);
    assert_eq!(take_error(&pair.client), Errno::ECONNRESET);
    view.expect(&[
        pair.truth.outbound().bytes(1000, 300).reset_by_peer(),
        pair.truth
            .inbound()
            .bytes(300, 1000)
            .ended("reset_by_local", Some("ECONNABORTED"), Some("local"))
            .found_by(&["listener"]),
    ]);
}

/// The client has shut down, and still has the socket.
fn client_in_fin_wait2(view: &RecordView, version: IpVersion) {
    let pair = exchanged_pair(version);
    pair.client.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(drain(&pair.server), 0);
    wait_fin_acknowledged(&pair.client);
    destroy(&format!("dport = :{}", pair.truth.dst.port()));
    assert_eq!(take_error(&pair.client), Errno::ECONNABORTED);
    assert_eq!(take_error(&pair.server), Errno::EPIPE);
    view.expect(&[
        pair.truth
            .outbound()
            .bytes(1000, 300)
            .ended("reset_by_local", Some("ECONNABORTED"), Some("local"))
            .old_states(&["FIN_WAIT2"]),
        pair.truth
            .inbound()
            .bytes(300, 1000)
            .ended("reset_by_peer", Some("EPIPE"), Some("peer"))
            .found_by(&["listener"]),
    ]);
}

/// The client has closed before.
fn server_in_close_wait(view: &RecordView, version: IpVersion) {
    let pair = exchanged_pair(version);
    drop(pair.client);
    assert_eq!(drain(&pair.server), 0);
    view.expect(&[pair.truth.outbound().bytes(1000, 300).ok("local")]);
    destroy(&format!("sport = :{}", pair.truth.dst.port()));
    assert_eq!(take_error(&pair.server), Errno::ECONNABORTED);
    view.expect(&[pair
        .truth
        .inbound()
        .bytes(300, 1000)
        .ended("reset_by_local", Some("ECONNABORTED"), Some("peer"))
        .old_states(&["CLOSE_WAIT"])
        .found_by(&["listener"])]);
    reset(pair.server);
    view.expect_nothing();
}

/// No answer to the SYN has arrived.
fn attempt(view: &RecordView, version: IpVersion) {
    let port = ClosedPort::blackhole();
    let attempt = connect_nonblocking(version.at(0), port.at(version));
    destroy(&format!("dport = :{}", port.number()));
    assert_eq!(take_error(&attempt.socket), Errno::ECONNABORTED);
    view.expect(&[attempt
        .truth
        .outbound()
        .connect_failed("connect_aborted", Some("ECONNABORTED"), Some("local"))]);
}
