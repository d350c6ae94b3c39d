//! Builds for another architecture, with Debian's compiler and cross linker. Debian has packages of the standard
//! library.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use crate::arch::Arch;
use crate::host::{self, RUSTC};

/// Configures cargo for the architecture. Installs missing packages as root on Debian, otherwise returns an error that
/// names them.
pub fn configure(cargo: &mut Command, arch: Arch) -> Result<()> {
    let gcc = format!("{}-gcc", arch.gnu());
    let library = Path::new("/usr/lib/rustlib").join(arch.target());
    if !Path::new(RUSTC).exists() || !library.exists() || host::find(&gcc).is_none() {
        install(arch)?;
    }
    let target = arch.target().replace('-', "_");
    cargo
        .env("RUSTC", RUSTC)
        .env(format!("CARGO_TARGET_{}_LINKER", target.to_uppercase()), &gcc)
        .env(format!("CC_{target}"), &gcc);
    Ok(())
}

fn install(arch: Arch) -> Result<()> {
    let debian = arch.debian();
    let packages = [
        "rustc-web".to_owned(),
        format!("libstd-rust-web-dev:{debian}"),
        format!("gcc-{}", arch.gnu().replace('_', "-")),
        format!("libc6-dev-{debian}-cross"),
    ];
    let packages: Vec<_> = packages.iter().map(String::as_str).collect();
    if !host::can_install() {
        bail!(
            "missing on this machine to build for {}; on Debian: sudo dpkg --add-architecture {debian} && \
             sudo apt-get update && sudo apt-get install {}",
            arch.name(),
            packages.join(" ")
        );
    }
    host::run(Command::new("dpkg").args(["--add-architecture", debian]))?;
    host::install(&packages)
}
