//! Decodes the bytes of the ring into events.

use bytemuck::{Pod, pod_read_unaligned};
use kmesh_trace_common::{
    KIND_CLOSE, KIND_LISTENER, KIND_OPEN, KIND_RESET, KIND_UPDATE, Listener, Reset, Snapshot, Turns, TurnsSnapshot,
};
use thiserror::Error;

/// An event that the eBPF programs report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(
    clippy::large_enum_variant,
    reason = "almost all events are snapshots, and a box would allocate for each"
)]
pub enum KernelEvent {
    /// A connection was established, ended, or visited by a socket scan.
    /// The turns are there if the programs measure them.
    Snapshot(Snapshot, Option<Turns>),
    /// This end sent a RST after a close.
    Reset(Reset),
    /// A socket scan visited a listening socket.
    Listener(Listener),
}

/// The reason why bytes are not a record.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum DecodeError {
    #[error("a record has the unknown kind {0}")]
    UnknownKind(u32),
    #[error("a record of kind {kind} has the wrong length of {length} bytes")]
    WrongLength { kind: u32, length: usize },
}

pub fn decode(bytes: &[u8]) -> Result<KernelEvent, DecodeError> {
    let length = bytes.len();
    let kind: u32 = bytes.first_chunk().map(|word| u32::from_ne_bytes(*word)).unwrap_or(0);
    match kind {
        KIND_CLOSE | KIND_OPEN | KIND_UPDATE => read_snapshot(bytes),
        KIND_RESET => read(bytes).map(KernelEvent::Reset),
        KIND_LISTENER => read(bytes).map(KernelEvent::Listener),
        _ => return Err(DecodeError::UnknownKind(kind)),
    }
    .ok_or(DecodeError::WrongLength { kind, length })
}

fn read_snapshot(bytes: &[u8]) -> Option<KernelEvent> {
    if let Some(snapshot) = read(bytes) {
        return Some(KernelEvent::Snapshot(snapshot, None));
    }
    let TurnsSnapshot { snapshot, turns } = read(bytes)?;
    Some(KernelEvent::Snapshot(snapshot, Some(turns)))
}

fn read<T: Pod>(bytes: &[u8]) -> Option<T> {
    (bytes.len() == size_of::<T>()).then(|| pod_read_unaligned(bytes))
}

#[cfg(test)]
mod tests {
    use bytemuck::{Zeroable, bytes_of};

    use super::*;

    #[test]
    fn records_are_decoded() {
        let close = Snapshot {
            kind: KIND_CLOSE,
            cookie: 7,
            ..Snapshot::zeroed()
        };
        assert_eq!(decode(bytes_of(&close)), Ok(KernelEvent::Snapshot(close, None)));
        let turns = Turns {
            count: 3,
            ..Turns::zeroed()
        };
        let with_turns = TurnsSnapshot { snapshot: close, turns };
        assert_eq!(
            decode(bytes_of(&with_turns)),
            Ok(KernelEvent::Snapshot(close, Some(turns)))
        );
        let reset = Reset {
            kind: KIND_RESET,
            attempt: 2,
            cookie: 7,
            reason: 11,
            decides: 1,
        };
        assert_eq!(decode(bytes_of(&reset)), Ok(KernelEvent::Reset(reset)));
    }

    #[test]
    fn invalid_bytes_are_an_error() {
        let close = Snapshot {
            kind: KIND_CLOSE,
            ..Snapshot::zeroed()
        };
        let whole = bytes_of(&close);
        for length in 0..whole.len() {
            assert!(decode(&whole[..length]).is_err(), "{length} bytes");
        }
        assert_eq!(
            decode(&[0xff; size_of::<Snapshot>()]),
            Err(DecodeError::UnknownKind(u32::MAX))
        );
        assert_eq!(
            decode(&[whole, &[0]].concat()),
            Err(DecodeError::WrongLength {
                kind: KIND_CLOSE,
                length: size_of::<Snapshot>() + 1
            })
        );
        // Unaligned bytes do not come from the ring, but may come from a file.
        let shifted = [&[0], whole].concat();
        assert_eq!(decode(&shifted[1..]), Ok(KernelEvent::Snapshot(close, None)));
    }
}
