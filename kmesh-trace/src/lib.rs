//! kmesh-trace prints one line for every TCP connection that closes on this node, and replays what it recorded.
//!
//! ```text
//!                       Kubernetes sources ── updates ──▶ name store
//!                                                            │
//! kernel ──ring──▶ reader ──queue──▶ decode ──▶ track ──▶ annotate ──▶ filter ──▶ sinks
//! (eBPF)                     ▲                  (Record)              (pure;      ├─ log, short, json, table ─▶ stdout
//!    └─ socket scanner ──────┘                                         Delta)     ├─ capture file
//!                                                                                 └─ metrics
//! capture file or JSON stream ──▶ parse ──▶ merge ──▶ join (--join) ───▶ filter ──▶ sinks        (--read)
//! ```
//!
//! - [`record`] defines the domain types. Every module uses them.
//! - [`cli`] defines the flags, and [`config`] turns them into validated settings.
//! - [`kernel`] loads the eBPF programs and reads their events: [`kernel::loader`] (the only module that names aya),
//!   [`kernel::reader`], [`kernel::scanner`].
//! - [`track`] turns the events into records: [`track::decode`], [`track::outcome`], [`track::delta`]. Like [`filter`]
//!   and [`rollup`], it is pure: time is an argument.
//! - [`join`] joins the records of both ends of a connection. It is pure, too.
//! - [`names`] adds the names of pods, Services and nodes to records.
//! - [`engine`] filters records, computes the delta of each record, and feeds the sinks.
//! - [`output`] contains the sinks, which implement [`output::Sink`]. [`capture`] contains one more sink, which writes
//!   captures, and parses captures.
//! - [`session`] connects these stages for a live trace and for a replay.
//!
//! A replay works on any system, live tracing only on Linux.
//!
//! # Where to start
//!
//! | to … | read |
//! |---|---|
//! | follow one connection from the kernel to a line | `docs/architecture.md`, then [`session::live`] |
//! | learn how an outcome is decided | [`track::outcome`] |
//! | add an output | [`output::Sink`] |
//! | add a filter | [`cli::Filters`], then [`filter`] |
//! | add a name source | [`names::sources`] |
//! | add a counter of the kernel | `tcp_fields!` in `kmesh-trace-common/src/tcp.rs` |
//! | change an eBPF program | `kmesh-trace-ebpf/src/main.rs` |
//!
//! `docs/glossary.md` defines the terms, `CONTRIBUTING.md` says how to test a change.

pub mod blocking_io;
pub mod capture;
pub mod cli;
#[cfg(target_os = "linux")]
pub mod clocks;
#[cfg(unix)]
pub mod cluster;
pub mod compare;
pub mod completions;
pub mod config;
pub mod engine;
pub mod filter;
pub mod findings;
pub mod join;
#[cfg(target_os = "linux")]
pub mod kernel;
pub mod names;
#[cfg(target_os = "linux")]
pub mod node;
#[cfg(all(target_env = "gnu", target_feature = "crt-static"))]
pub mod nss;
pub mod output;
pub mod own_connections;
pub mod privileges;
pub mod record;
pub mod rollup;
pub mod session;
mod shell;
pub mod track;
