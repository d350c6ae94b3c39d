//! The numbers of a record, as a row of 64 bits each: what is left of it once its [`super::shape`] is told.
//!
//! Fields that hardly ever change stand last, so that the mask of those that do is short. Where one number mostly follows
//! from another, the row has the difference. An IPv4 address is the low 32 bits of its second field.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::record::{Record, WallTime};

/// Names the fields, from 0.
macro_rules! fields {
    ($($name:ident)+) => {
        #[repr(usize)]
        #[derive(Clone, Copy)]
        #[expect(clippy::upper_case_acronyms, non_camel_case_types, reason = "they are indexes")]
        enum Field { $($name,)+ COUNT }
        $(
            #[expect(missing_docs, reason = "the record's field of that name")]
            pub const $name: usize = Field::$name as usize;
        )+
        /// How many fields there are.
        pub const FIELDS: usize = Field::COUNT as usize;
    };
}

fields! {
    DURATION SRC_PORT CONNECT SRTT RTT_MIN SND_NXT RCV_NXT PID SENT RECEIVED
    SEGS_IN SEGS_OUT DATA_SEGS_IN DATA_SEGS_OUT DST_PORT SRC_LOW DST_LOW COMM RATE_INTERVAL RATE_DELIVERED CWND
    NETNS CGROUP CONTAINER CONTAINER_ID SRC_POD DST_POD SERVICE SRC_NODE DST_NODE ORIGINAL_LOW ORIGINAL_PORT
    SND_UNA BYTES_ACKED BYTES_RECEIVED DELIVERED MSS SSTHRESH SRC_HIGH DST_HIGH ORIGINAL_HIGH
    UNDELIVERED ERRNO START OBSERVED ASSOCIATION TOTAL_RETRANS LOST RETRANS LOST_OUT SACKED_OUT PACKETS_OUT
    DSACK_DUPS DELIVERED_CE ICSK_RETRANSMITS ECN BYTES_SENT BYTES_RETRANS
}

/// The numbers of a record but for its time and cookie.
pub type Row = [u64; FIELDS];

/// Those that refer to a table.
pub const REFERENCES: u64 = 1 << COMM
    | 1 << CONTAINER
    | 1 << CONTAINER_ID
    | 1 << SRC_POD
    | 1 << DST_POD
    | 1 << SERVICE
    | 1 << SRC_NODE
    | 1 << DST_NODE;

/// The row of a record, with 0 for all references.
pub fn of(record: &Record) -> Row {
    let mut row = [0; FIELDS];
    let duration = record.duration_ns.unwrap_or(0);
    row[DURATION] = duration;
    // Less the duration, this is how the wall clock was stepped meanwhile: nearly always not at all.
    row[START] = record.start.map_or(0, |start| {
        (record.time.0.wrapping_sub(start.0) as u64).wrapping_sub(duration)
    });
    row[OBSERVED] = record.observed_ns.wrapping_sub(duration);
    row[CONNECT] = record.connect_ns.unwrap_or(0);
    row[ASSOCIATION] = record.id.association.into();
    [row[SRC_HIGH], row[SRC_LOW], row[SRC_PORT]] = address(record.src);
    [row[DST_HIGH], row[DST_LOW], row[DST_PORT]] = address(record.dst);
    if let Some(original) = record.names.original_dst {
        [row[ORIGINAL_HIGH], row[ORIGINAL_LOW], row[ORIGINAL_PORT]] = address(original);
    }
    row[PID] = record.process.map_or(0, |process| process.pid.into());
    row[NETNS] = record.netns.into();
    row[CGROUP] = record.cgroup_id.unwrap_or(0);
    row[SENT] = record.sent_bytes;
    row[RECEIVED] = record.received_bytes;
    row[UNDELIVERED] = record.undelivered_bytes;
    row[ERRNO] = record.errno.unwrap_or(0).into();
    let tcp = &record.tcp;
    row[SRTT] = tcp.srtt_us.unwrap_or(0).into();
    row[RTT_MIN] = tcp.rtt_min_us.unwrap_or(0).into();
    row[MSS] = tcp.mss.into();
    row[CWND] = tcp.snd_cwnd.into();
    row[SSTHRESH] = tcp.snd_ssthresh.into();
    row[RCV_NXT] = tcp.rcv_nxt.into();
    row[SND_NXT] = tcp.snd_nxt.into();
    row[SND_UNA] = tcp.snd_nxt.wrapping_sub(tcp.snd_una).into();
    row[ECN] = tcp.ecn_flags.into();
    row[RATE_DELIVERED] = tcp.rate_delivered.into();
    row[RATE_INTERVAL] = tcp.rate_interval_us.into();
    row[PACKETS_OUT] = tcp.packets_out.into();
    row[RETRANS] = tcp.retrans_out.into();
    row[TOTAL_RETRANS] = tcp.total_retrans.into();
    row[SEGS_IN] = tcp.segs_in.into();
    row[DATA_SEGS_IN] = tcp.data_segs_in.into();
    row[SEGS_OUT] = tcp.segs_out.into();
    row[DATA_SEGS_OUT] = tcp.data_segs_out.into();
    row[LOST] = tcp.lost.into();
    row[LOST_OUT] = tcp.lost_out.into();
    row[SACKED_OUT] = tcp.sacked_out.into();
    row[BYTES_RECEIVED] = tcp.bytes_received.wrapping_sub(record.received_bytes);
    row[BYTES_ACKED] = tcp.bytes_acked.wrapping_sub(record.sent_bytes);
    row[DSACK_DUPS] = tcp.dsack_dups.into();
    row[DELIVERED] = tcp.delivered.wrapping_sub(tcp.data_segs_out).into();
    row[DELIVERED_CE] = tcp.delivered_ce.into();
    row[ICSK_RETRANSMITS] = tcp.icsk_retransmits.into();
    row[BYTES_SENT] = tcp.bytes_sent.wrapping_sub(record.sent_bytes);
    row[BYTES_RETRANS] = tcp.bytes_retrans;
    row
}

/// Puts the numbers, but not the references, into a record of the row's shape that has its time already. Bits beyond a
/// field's width are dropped: nothing writes any.
pub fn fill(record: &mut Record, row: &Row) {
    let duration = row[DURATION];
    if let Some(start) = &mut record.start {
        *start = WallTime(record.time.0.wrapping_sub(row[START].wrapping_add(duration) as i64));
    }
    set(&mut record.duration_ns, duration);
    record.observed_ns = row[OBSERVED].wrapping_add(duration);
    set(&mut record.connect_ns, row[CONNECT]);
    record.id.association = row[ASSOCIATION] as u32;
    set_address(&mut record.src, [row[SRC_HIGH], row[SRC_LOW], row[SRC_PORT]]);
    set_address(&mut record.dst, [row[DST_HIGH], row[DST_LOW], row[DST_PORT]]);
    if let Some(original) = &mut record.names.original_dst {
        set_address(original, [row[ORIGINAL_HIGH], row[ORIGINAL_LOW], row[ORIGINAL_PORT]]);
    }
    if let Some(process) = &mut record.process {
        process.pid = row[PID] as u32;
    }
    record.netns = row[NETNS] as u32;
    set(&mut record.cgroup_id, row[CGROUP]);
    record.sent_bytes = row[SENT];
    record.received_bytes = row[RECEIVED];
    record.undelivered_bytes = row[UNDELIVERED];
    set(&mut record.errno, row[ERRNO] as u32);
    let tcp = &mut record.tcp;
    set(&mut tcp.srtt_us, row[SRTT] as u32);
    set(&mut tcp.rtt_min_us, row[RTT_MIN] as u32);
    tcp.mss = row[MSS] as u32;
    tcp.snd_cwnd = row[CWND] as u32;
    tcp.snd_ssthresh = row[SSTHRESH] as u32;
    tcp.rcv_nxt = row[RCV_NXT] as u32;
    tcp.snd_nxt = row[SND_NXT] as u32;
    tcp.snd_una = tcp.snd_nxt.wrapping_sub(row[SND_UNA] as u32);
    tcp.ecn_flags = row[ECN] as u8;
    tcp.rate_delivered = row[RATE_DELIVERED] as u32;
    tcp.rate_interval_us = row[RATE_INTERVAL] as u32;
    tcp.packets_out = row[PACKETS_OUT] as u32;
    tcp.retrans_out = row[RETRANS] as u32;
    tcp.total_retrans = row[TOTAL_RETRANS] as u32;
    tcp.segs_in = row[SEGS_IN] as u32;
    tcp.data_segs_in = row[DATA_SEGS_IN] as u32;
    tcp.segs_out = row[SEGS_OUT] as u32;
    tcp.data_segs_out = row[DATA_SEGS_OUT] as u32;
    tcp.lost = row[LOST] as u32;
    tcp.lost_out = row[LOST_OUT] as u32;
    tcp.sacked_out = row[SACKED_OUT] as u32;
    tcp.bytes_received = row[BYTES_RECEIVED].wrapping_add(row[RECEIVED]);
    tcp.bytes_acked = row[BYTES_ACKED].wrapping_add(row[SENT]);
    tcp.dsack_dups = row[DSACK_DUPS] as u32;
    tcp.delivered = (row[DELIVERED] as u32).wrapping_add(tcp.data_segs_out);
    tcp.delivered_ce = row[DELIVERED_CE] as u32;
    tcp.icsk_retransmits = row[ICSK_RETRANSMITS] as u8;
    tcp.bytes_sent = row[BYTES_SENT].wrapping_add(row[SENT]);
    tcp.bytes_retrans = row[BYTES_RETRANS];
}

fn set<T>(field: &mut Option<T>, value: T) {
    if let Some(field) = field {
        *field = value;
    }
}

fn address(address: SocketAddr) -> [u64; 3] {
    let bits = match address.ip() {
        IpAddr::V4(ip) => u128::from(ip.to_bits()),
        IpAddr::V6(ip) => ip.to_bits(),
    };
    [(bits >> 64) as u64, bits as u64, address.port().into()]
}

fn set_address(address: &mut SocketAddr, [high, low, port]: [u64; 3]) {
    let ip = if address.is_ipv4() {
        IpAddr::V4(Ipv4Addr::from_bits(low as u32))
    } else {
        IpAddr::V6(Ipv6Addr::from_bits(u128::from(high) << 64 | u128::from(low)))
    };
    *address = SocketAddr::new(ip, port as u16);
}
