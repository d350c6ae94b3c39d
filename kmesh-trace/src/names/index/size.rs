//! A large cluster: what it takes, and that naming takes nothing more.

use super::*;
use crate::names::fixture::{self, PODS, pod_ip};
use crate::render::allocations::{allocations, live_bytes};
use crate::render::testing::example;

const MOST_BYTES: usize = 64 << 20;

#[test]
fn a_hundred_thousand_pods_and_twenty_thousand_services_fit() {
    let before = live_bytes();
    let _index = fixture::told(fixture::facts());
    let taken = live_bytes() - before;
    assert!(taken <= MOST_BYTES, "{taken} bytes");
}

#[test]
fn naming_allocates_nothing_once_a_pod_is_known() {
    let mut index = fixture::told(fixture::facts().filter(|fact| !matches!(fact, Object::Node(_))));
    let mut records: Vec<_> = (0..1_000)
        .map(|number| Record {
            direction: Direction::Outbound,
            src: SocketAddr::new(pod_ip(number), 40_000),
            dst: SocketAddr::new(pod_ip(PODS - 1 - number), 8080),
            start: Some(WallTime(2_000_000)),
            ..example()
        })
        .collect();
    let mut name_all = || {
        let before = allocations();
        for record in &mut records {
            index.name(record, &Shown::default());
            assert!(record.names.src.pod.is_some() && record.names.dst.pod.is_some() && record.names.service.is_some());
        }
        allocations() - before
    };
    assert!(name_all() > 0, "the count counts");
    assert_eq!(name_all(), 0, "each is made once");
}
