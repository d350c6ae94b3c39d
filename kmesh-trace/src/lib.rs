//! kmesh-trace prints one line for every TCP connection that closes on this node, and replays what it recorded.
//!
//! ```text
//!                       Kubernetes sources ── updates ──▶ name store
//!                                                            │
//! kernel ──ring──▶ reader ──queue──▶ decode ──▶ track ──▶ annotate ──▶ filter ──▶ sinks
//! (eBPF)                     ▲                  (Record)              (pure;      ├─ log / json / table / rollup ─▶ stdout
//!    └─ socket scanner ──────┘                                         Delta)     ├─ capture file
//!                                                                                 └─ metrics
//! capture file or JSON stream ──▶ parse ──▶ Record ────────────────────▶ filter ──▶ sinks        (--read)
//! ```
//!
//! - [`record`] is the domain. Every module knows it.
//! - [`cli`] has the flags, and [`config`] validated settings made of them.
//! - [`kernel`] has the kernel's side: [`kernel::loader`] (the only file that names aya), [`kernel::reader`],
//!   [`kernel::scanner`].
//! - [`track`] makes records of the kernel's events: [`track::decode`], [`track::outcome`], [`track::delta`]. It is pure, and
//!   so are [`filter`] and [`rollup`]: time comes in as a value.
//! - [`names`] adds the names of pods, Services and nodes.
//! - [`engine`] filters records, computes what each adds, and feeds the sinks.
//! - [`output`] has the sinks: each implements [`output::Sink`]. [`capture`] writes captures, as one more sink, and parses
//!   them.
//! - [`session`] wires these for a live trace and for a replay.
//!
//! A replay is built for any system, live tracing for Linux alone. `docs/architecture.md` has the threads and the life of a
//! connection.

pub mod blocking_io;
pub mod capture;
pub mod cli;
pub mod completions;
pub mod config;
pub mod engine;
pub mod filter;
#[cfg(target_os = "linux")]
pub mod kernel;
pub mod names;
#[cfg(all(target_env = "gnu", target_feature = "crt-static"))]
pub mod nss;
pub mod output;
#[cfg(target_os = "linux")]
pub mod privileges;
pub mod record;
pub mod rollup;
pub mod session;
pub mod track;
