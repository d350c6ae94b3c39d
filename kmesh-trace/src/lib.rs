//! kmesh-trace: what the kernel knows of every TCP connection that ends, as lines.
//!
//! ```text
//! kernel ──ring──▶ source ──bytes──▶ decode ──Event──▶ track ──Record──▶ enrich ──▶ filter ──▶ render ──▶ stdout
//! (ebpf)          (reader thread)    (pure)            (pure; outcome)   (names)    (pure)    (log, json)
//!                                                                                                       └──▶ metrics
//!                        └──bounded queue──▶ pipeline: up to enrich ────────────┘ delivery: the rest, and all counts
//! ```
//!
//! [`source::kernel`] loads the eBPF programs and is the only file that knows aya. [`source::reader`] drains their ring in
//! a thread of its own into a bounded queue. In the writer's thread [`pipeline`] takes it from there: [`decode`] makes events
//! of bytes, [`track`] records of events ([`outcome`] has the rules of how a connection ended), [`enrich`] names them.
//! [`delivery`] has the finished records: limits, [`filter`], tallies, [`render`] makes lines of what passes, and [`metrics`] counts
//! what [`deltas`] says it adds. [`run`] wires them up. Stages do not know each other; all know [`record`].

pub mod cli;
pub mod clock;
pub mod completions;
pub mod config;
pub mod decode;
pub mod delivery;
pub mod deltas;
pub mod enrich;
pub mod errno;
pub mod exit;
pub mod filter;
pub mod metrics;
pub mod outcome;
pub mod pipeline;
pub mod prefilter;
pub mod privileges;
pub mod record;
pub mod render;
pub mod rfc3339;
pub mod run;
pub mod schema;
pub mod source;
pub mod track;
pub mod wire;
pub mod writer;
