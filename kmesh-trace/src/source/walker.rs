//! The thread that walks over the open sockets each interval and tells how they stand, off the draining path.

use std::ops::ControlFlow;
use std::sync::mpsc::SyncSender;
use std::thread;
use std::time::{Duration, Instant};

use kmesh_trace_common::Snapshot;

use super::kernel::{StartError, Walker};
use super::monotonic_ns;
use super::reader::{Control, Message};

/// Walks every `interval` until [`Control::stop`] or until nobody reads `messages`. A walk that takes longer than an
/// interval puts off the next one; none is made up for.
pub fn run(mut walker: Walker, interval: Duration, control: &Control, messages: &SyncSender<Message>) {
    let began = Instant::now();
    let mut intervals = 1;
    loop {
        thread::sleep((began + interval * intervals).saturating_duration_since(Instant::now()));
        if control.stopped() {
            return;
        }
        // What the ring tells of later than this waits for what the walk tells of.
        control.walk_began(monotonic_ns());
        let walked = walk(&mut walker, messages);
        control.walk_ended();
        if let Err(error) = walked
            && messages.send(Message::WalkFailed(error.to_string())).is_err()
        {
            return;
        }
        let elapsed = began.elapsed().as_nanos() / interval.as_nanos().max(1);
        intervals = u32::try_from(elapsed).unwrap_or(u32::MAX - 1) + 1;
    }
}

fn walk(walker: &mut Walker, messages: &SyncSender<Message>) -> Result<(), StartError> {
    walker.walk(|snapshots| {
        let bytes = framed(snapshots);
        if bytes.is_empty() || messages.send(Message::Walked(bytes)).is_ok() {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        }
    })
}

/// How the open connections stand, as in [`Message::Walked`].
pub fn standing(walker: &mut Walker) -> Result<Vec<u8>, StartError> {
    let mut all = Vec::new();
    walker.walk(|snapshots| {
        all.extend_from_slice(&framed(snapshots));
        ControlFlow::Continue(())
    })?;
    Ok(all)
}

/// Each behind its length, as [`super::reader::records`] wants them.
fn framed(snapshots: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(snapshots.len() / size_of::<Snapshot>() * (size_of::<Snapshot>() + 8));
    for snapshot in snapshots.chunks_exact(size_of::<Snapshot>()) {
        bytes.extend_from_slice(&(snapshot.len() as u64).to_ne_bytes());
        bytes.extend_from_slice(snapshot);
    }
    bytes
}
