//! The table of the `tcp_sock` members that the programs read, and the offsets generated from it.

use bytemuck::{Pod, Zeroable};

/// Calls the macro `$define` with the table of `tcp_sock` members.
///
/// The fields of the snapshot, the offsets, the getters of the eBPF programs, `record::Tcp`, its JSON members and their
/// schema are generated from this table. A new counter is one line here and one line in the manual.
///
/// `reported` lists the members that records have under `tcp`, in the order of the JSON members. Its columns are: the
/// name outside the kernel; the width in the kernel (`u64`, `u32`, `u16` or `u8`); the path in `tcp_sock`; the unit, a
/// type of [`unit`](crate::unit) that converts the kernel's value to the record's; and the description in the schema.
///
/// `derived` lists the members that follow under `tcp` and that user space computes from several fields of the
/// snapshot: name, type in a record, description. The functions are in `record::tcp`.
///
/// `carried` lists the members of the snapshot from which those are computed: name, width, path, description. A kernel
/// may lack them.
///
/// `internal` lists the other members that the programs read: name, width, path, description.
#[macro_export]
macro_rules! tcp_fields {
    ($define:ident) => {
        $define! {
            reported {
                srtt_us: u32, "srtt_us", Eighths, "Smoothed round-trip time; null without a sample.";
                rtt_min_us: u32, "rtt_min.s.v", Nullable, "Minimum recent round-trip time; null without a sample.";
                mss: u32, "mss_cache", Plain, "Largest payload of a segment, bytes.";
                snd_cwnd: u32, "snd_cwnd", Plain, "Congestion window, segments.";
                snd_ssthresh: u32, "snd_ssthresh", Plain, "Slow start threshold, segments.";
                rcv_nxt: u32, "rcv_nxt", Plain, "Next sequence number expected from the peer.";
                snd_nxt: u32, "snd_nxt", Plain, "Sequence number of the next new byte.";
                snd_una: u32, "snd_una", Plain, "First sequence number that the peer has not acknowledged.";
                ecn_flags: u8, "ecn_flags", Plain, "State of explicit congestion notification (the kernel's bits).";
                rate_delivered: u32, "rate_delivered", Plain, "Segments delivered in the latest delivery-rate sample.";
                rate_interval_us: u32, "rate_interval_us", Plain, "Duration of the latest sample of the delivery rate.";
                packets_out: u32, "packets_out", Plain, "Segments sent and not acknowledged.";
                retrans_out: u32, "retrans_out", Plain, "Segments retransmitted and not acknowledged.";
                total_retrans: u32, "total_retrans", Plain, "Segments retransmitted.";
                segs_in: u32, "segs_in", Plain, "Segments received.";
                data_segs_in: u32, "data_segs_in", Plain, "Segments with payload received.";
                segs_out: u32, "segs_out", Plain, "Segments sent.";
                data_segs_out: u32, "data_segs_out", Plain, "Segments with payload sent.";
                lost: u32, "lost", Plain, "Segments marked lost, total.";
                lost_out: u32, "lost_out", Plain, "Segments currently marked lost.";
                sacked_out: u32, "sacked_out", Plain, "Segments in flight that the peer acknowledged selectively.";
                bytes_received: u64, "bytes_received", Plain, "Bytes received, the peer's FIN included.";
                bytes_acked: u64, "bytes_acked", Plain, "Bytes acknowledged, the SYN of connect() and FIN included.";
                dsack_dups: u32, "dsack_dups", Plain, "Duplicate segments that the peer reported (DSACK).";
                delivered: u32, "delivered", Plain, "Segments delivered, retransmitted ones included.";
                delivered_ce: u32, "delivered_ce", Plain, "Segments delivered with a congestion mark.";
                icsk_retransmits: u8, "inet_conn.icsk_retransmits", Plain, "Retransmissions since the last ACK.";
                bytes_sent: u64, "bytes_sent", Plain, "Payload bytes sent, retransmitted payload included.";
                bytes_retrans: u64, "bytes_retrans", Plain, "Payload bytes retransmitted.";
                rcv_ooopack: u32, "rcv_ooopack", Nullable, "Segments received out of order.";
                reord_seen: u32, "reord_seen", Nullable, "Times that the peer's ACKs showed reordered segments.";
                snd_wnd: u32, "snd_wnd", Plain, "The peer's receive window, bytes.";
                rcv_wnd: u32, "rcv_wnd", Plain, "The receive window that this end offers, bytes.";
                rcv_rtt_us: u32, "rcv_rtt_est.rtt_us", Eighths, "Round-trip time by received data; null without a sample.";
                rttvar_us: u32, "mdev_us", Quarters, "Mean deviation of the round-trip time.";
            }
            derived {
                rto_us: Option<u64>, "Retransmission timeout.";
                pmtu: Option<u32>, "Path MTU, bytes.";
                congestion: Option<Congestion>, "Name of the congestion control algorithm.";
                total_rto: Option<u16>, "Retransmission timeouts; null before Linux 6.7.";
                total_rto_ms: Option<u32>, "Time spent in retransmission timeouts; null before Linux 6.7.";
                busy_us: Option<u64>, "Time with data that was not sent or not acknowledged.";
                rwnd_limited_us: Option<u64>, "Part of busy_us in which the peer's receive window was full.";
                sndbuf_limited_us: Option<u64>, "Part of busy_us in which this end's send buffer was full.";
                last_send_ms: Option<u32>, "Time since data was sent; null if never connected, and in a client's open.";
                last_receive_ms: Option<u32>, "Time since data arrived; null if never connected, and in a client's open.";
            }
            carried {
                icsk_rto: u32, "inet_conn.icsk_rto", "Retransmission timeout, ticks.";
                icsk_pmtu_cookie: u32, "inet_conn.icsk_pmtu_cookie", "Path MTU, bytes.";
                total_rto_time: u32, "total_rto_time", "Time spent in timeouts that are over, ms.";
                rto_stamp: u32, "rto_stamp", "Start of the current timeout: CLOCK_MONOTONIC, ms; 0 if none.";
                chrono_start: u32, "chrono_start", "Start of the current period of activity, ticks.";
                lsndtime: u32, "lsndtime", "Time when data was last sent, ticks.";
                lrcvtime: u32, "inet_conn.icsk_ack.lrcvtime", "Time when data was last received, ticks.";
                total_rto: u16, "total_rto", "Retransmission timeouts.";
            }
            internal {
                inet_sport: u16, "inet_conn.icsk_inet.inet_sport", "The local port, big-endian.";
                write_seq: u32, "write_seq", "Sequence number after the last byte that the program wrote.";
                copied_seq: u32, "copied_seq", "Sequence number of the first byte that the program has not read.";
                snd_wl1: u32, "snd_wl1", "Sequence number of the segment that last updated the send window.";
                linger2: i32, "linger2", "Time to wait for the peer's FIN, ticks; negative: do not wait.";
            }
        }
    };
}

/// Conversions from the kernel's number to the value in a record: the fourth column of
/// [`tcp_fields!`](crate::tcp_fields).
pub mod unit {
    use core::ops::Not;

    use bytemuck::Zeroable;

    /// A conversion from the kernel's number to the value in a record.
    pub trait Unit<Raw> {
        /// The type of the value in a record.
        type Value;

        /// Whether the tool also runs on kernels that lack the member. On these the programs read all ones.
        const IS_OPTIONAL: bool = false;

        /// Converts the kernel's number.
        fn value(raw: Raw) -> Self::Value;
    }

    /// The kernel's number, unchanged.
    pub struct Plain;

    impl<Raw> Unit<Raw> for Plain {
        type Value = Raw;

        fn value(raw: Raw) -> Raw {
            raw
        }
    }

    /// The kernel's number, or `None` if all its bits are ones: the kernel has no sample, or no such member.
    pub struct Nullable;

    impl<Raw: Zeroable + Not<Output = Raw> + PartialEq> Unit<Raw> for Nullable {
        type Value = Option<Raw>;

        const IS_OPTIONAL: bool = true;

        fn value(raw: Raw) -> Option<Raw> {
            (raw != !Raw::zeroed()).then_some(raw)
        }
    }

    /// A time that the kernel stores multiplied by eight; `None` for 0, since the kernel has no sample.
    pub struct Eighths;

    impl Unit<u32> for Eighths {
        type Value = Option<u32>;

        fn value(raw: u32) -> Option<u32> {
            (raw != 0).then_some(raw >> 3)
        }
    }

    /// A time that the kernel stores multiplied by four.
    pub struct Quarters;

    impl Unit<u32> for Quarters {
        type Value = u32;

        fn value(raw: u32) -> u32 {
            raw >> 2
        }
    }
}

/// Defines [`TcpOffsets`] from the table.
macro_rules! offsets {
    (
        reported { $($name:ident: $width:ident, $path:literal, $unit:ident, $description:literal;)* }
        derived { $($derived:tt)* }
        carried { $($carried:ident: $carried_width:ident, $carried_path:literal, $carried_description:literal;)* }
        internal { $($internal:ident: $internal_width:ident, $internal_path:literal, $internal_description:literal;)* }
    ) => {
        /// Byte offsets of the table's members from the start of `tcp_sock`; [`ABSENT`](crate::ABSENT) for a member
        /// that the kernel lacks.
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
        pub struct TcpOffsets {
            $(
                #[doc = concat!("`tcp_sock.", $path, "`, ", stringify!($width), ": ", $description)]
                pub $name: u32,
            )*
            $(
                #[doc = concat!(
                    "`tcp_sock.", $carried_path, "`, ", stringify!($carried_width), ": ", $carried_description
                )]
                pub $carried: u32,
            )*
            $(
                #[doc = concat!(
                    "`tcp_sock.", $internal_path, "`, ", stringify!($internal_width), ": ", $internal_description
                )]
                pub $internal: u32,
            )*
        }
    };
}

tcp_fields!(offsets);

#[cfg(test)]
mod tests {
    use super::unit::{Eighths, Nullable, Plain, Quarters, Unit};

    #[test]
    fn plain_unit_returns_the_kernels_number() {
        assert_eq!([0, u32::MAX].map(<Plain as Unit<u32>>::value), [0, u32::MAX]);
    }

    #[test]
    fn nullable_unit_is_none_if_all_bits_are_ones() {
        assert_eq!(
            [0, 98, u32::MAX].map(<Nullable as Unit<u32>>::value),
            [Some(0), Some(98), None]
        );
        assert_eq!([7, u16::MAX].map(<Nullable as Unit<u16>>::value), [Some(7), None]);
    }

    #[test]
    fn eighths_unit_rounds_down_and_is_none_for_zero() {
        assert_eq!([0, 967].map(<Eighths as Unit<u32>>::value), [None, Some(120)]);
    }

    #[test]
    fn quarters_unit_rounds_down() {
        assert_eq!([0, 163].map(<Quarters as Unit<u32>>::value), [0, 40]);
    }
}
