//! Tells the crate which eBPF object to embed: the committed one, or the one that `KMESH_TRACE_EBPF_OBJECT` names
//! (continuous integration tests a freshly built one so).

use std::env;
use std::path::PathBuf;

fn main() {
    println!("cargo::rerun-if-env-changed=KMESH_TRACE_EBPF_OBJECT");
    // Asked now, not when this was compiled: a target folder may be copied to another checkout.
    let here = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
    let committed = here.join("../kmesh-trace-ebpf/kmesh-trace.bpf.o");
    let object = env::var_os("KMESH_TRACE_EBPF_OBJECT").map_or(committed, Into::into);
    println!("cargo::rerun-if-changed={}", object.display());
    println!("cargo::rustc-env=KMESH_TRACE_EBPF_OBJECT={}", object.display());
}
