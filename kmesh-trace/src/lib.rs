//! kmesh-trace: what the kernel knows of every TCP connection that ends, as lines.
//!
//! ```text
//! kernel ──ring──▶ source ──bytes──▶ decode ──Event──▶ track ──Record──▶ names ──▶ filter ──▶ render ──▶ stdout
//! (ebpf)          (reader thread)    (pure)            (pure; outcome)   (names)    (pure)    (log, json)
//!                                                                                                       └──▶ metrics
//!                        └──bounded queue──▶ pipeline: up to names ────────────┘ delivery: the rest, and all counts
//! ```
//!
//! [`source::kernel`] loads the eBPF programs and is the only file that knows aya. [`source::reader`] drains their ring in
//! a thread of its own into a bounded queue. In the writer's thread [`pipeline`] takes it from there: [`decode`] makes events
//! of bytes, [`track`] records of events ([`outcome`] has the rules of how a connection ended), [`names`] names them,
//! by what [`names::sources`] report from threads of their own.
//! [`delivery`] has the finished records: limits, [`filter`], tallies, and [`render`] makes lines of what passes: of each
//! record, or of the windows and groups that [`rollup`] sums them up to; a table in a terminal ([`render::term`]) is drawn by
//! threads of its own. [`metrics`] counts what [`deltas`] says that a record adds, and serves it from a thread of its own.
//! [`run`] wires them up, and lets go ([`privileges`]) of what is not needed any more. Stages do not know each other; all know
//! [`record`].
//!
//! [`capture`] is what [`delivery`] can keep besides, and [`replay`] puts it through [`delivery`] again: what that takes is
//! built for any system, the rest for Linux alone.

#[cfg(target_os = "linux")]
pub mod account;
pub mod blocking_io;
pub mod capture;
pub mod cli;
pub mod clock;
pub mod completions;
pub mod config;
pub mod decode;
pub mod deltas;
pub mod engine;
pub mod errno;
pub mod exit;
pub mod filter;
#[cfg(target_os = "linux")]
pub mod metrics;
pub mod names;
pub mod note;
#[cfg(all(target_env = "gnu", target_feature = "crt-static"))]
pub mod nss;
pub mod outcome;
pub mod outlet;
#[cfg(target_os = "linux")]
pub mod pipeline;
#[cfg(target_os = "linux")]
pub mod privileges;
pub mod record;
pub mod render;
pub mod replay;
pub mod rfc3339;
pub mod rollup;
#[cfg(target_os = "linux")]
pub mod run;
pub mod schema;
#[cfg(target_os = "linux")]
pub mod source;
pub mod track;
pub mod wire;
#[cfg(target_os = "linux")]
pub mod writer;
