//! Bytes from the ring → events. Pure: what is no record of ours is an error that the caller counts.

use bytemuck::{Pod, pod_read_unaligned};
use kmesh_trace_common::{KIND_CLOSE, KIND_OPEN, KIND_RESET, KIND_UPDATE, Reset, Snapshot};
use thiserror::Error;

/// What the eBPF side tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(
    clippy::large_enum_variant,
    reason = "nearly all are of the large kind, and a box is an allocation a record"
)]
pub enum Event {
    /// An association was established, ended, or met by a walk.
    Snapshot(Snapshot),
    /// A RST was sent that settles how an association ended.
    Reset(Reset),
}

/// Bytes that are no record.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum DecodeError {
    /// No such kind of record.
    #[error("a record of unknown kind {0}")]
    UnknownKind(u32),
    /// Too short or too long for its kind.
    #[error("a record of kind {kind} with {length} bytes")]
    WrongLength {
        /// Its first word.
        kind: u32,
        /// Bytes.
        length: usize,
    },
}

/// Decodes one record.
pub fn decode(bytes: &[u8]) -> Result<Event, DecodeError> {
    let length = bytes.len();
    let kind: u32 = bytes.first_chunk().map(|word| u32::from_ne_bytes(*word)).unwrap_or(0);
    match kind {
        KIND_CLOSE | KIND_OPEN | KIND_UPDATE => read(bytes).map(Event::Snapshot),
        KIND_RESET => read(bytes).map(Event::Reset),
        _ => return Err(DecodeError::UnknownKind(kind)),
    }
    .ok_or(DecodeError::WrongLength { kind, length })
}

fn read<T: Pod>(bytes: &[u8]) -> Option<T> {
    (bytes.len() == size_of::<T>()).then(|| pod_read_unaligned(bytes))
}

#[cfg(test)]
mod tests {
    use bytemuck::{Zeroable, bytes_of};

    use super::*;

    #[test]
    fn what_was_written_is_read() {
        let close = Snapshot {
            kind: KIND_CLOSE,
            cookie: 7,
            ..Snapshot::zeroed()
        };
        assert_eq!(decode(bytes_of(&close)), Ok(Event::Snapshot(close)));
        let reset = Reset {
            kind: KIND_RESET,
            attempt: 2,
            cookie: 7,
        };
        assert_eq!(decode(bytes_of(&reset)), Ok(Event::Reset(reset)));
    }

    #[test]
    fn anything_else_is_an_error_and_no_panic() {
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
        // The ring lends unaligned bytes to nobody, but a file might.
        let shifted = [&[0], whole].concat();
        assert_eq!(decode(&shifted[1..]), Ok(Event::Snapshot(close)));
    }
}
