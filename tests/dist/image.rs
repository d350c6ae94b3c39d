//! The image: its layout, and a start by containerd.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::roots::{check_requirements, empty_root, run_in};
use crate::support::{scratch_dir, test_timeout};
use crate::{artefact, components, output, traces, trial};

/// The name under which the image is imported, which is that of `image: kmesh-trace:VERSION` in a manifest.
const NAME: &str = concat!("docker.io/library/kmesh-trace:", env!("CARGO_PKG_VERSION"));
const PROGRAMS: &[&str] = &["containerd", "containerd-shim-runc-v2", "ctr", "runc"];

pub fn trials() -> Vec<Trial> {
    vec![
        trial(
            "empty_root::runs_from_the_image",
            check_requirements,
            runs_from_the_image,
        ),
        trial(
            "image::containerd_runs_it",
            || check_requirements().and_then(|()| components::find(PROGRAMS).map(drop)),
            containerd_runs_it,
        ),
    ]
}

/// Follows the layout from the index to the layer, checks every digest, and runs the entry point of the unpacked layer.
fn runs_from_the_image() {
    let layout = scratch_dir().join("image");
    _ = fs::remove_dir_all(&layout);
    fs::create_dir_all(&layout).unwrap();
    output(
        Command::new("tar")
            .arg("-xf")
            .arg(artefact(".oci.tar"))
            .arg("-C")
            .arg(&layout),
    );
    let index = read_json(&layout.join("index.json"));
    let images = read_json(&blob(&layout, &index["manifests"][0]));
    let platform = &images["manifests"][0]["platform"];
    let arch = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
    assert_eq!(platform["architecture"], arch);
    let manifest = read_json(&blob(&layout, &images["manifests"][0]));
    let config = read_json(&blob(&layout, &manifest["config"]));
    assert_eq!(config["architecture"], arch);

    let layer = blob(&layout, &manifest["layers"][0]);
    let tar = layout.join("layer.tar");
    let unzipped = Command::new("gzip").args(["-dc"]).arg(&layer).output().unwrap().stdout;
    fs::write(&tar, unzipped).unwrap();
    assert_eq!(config["rootfs"]["diff_ids"][0], format!("sha256:{}", sha256(&tar)));
    let root = empty_root("image-root");
    fs::remove_file(root.join("kmesh-trace")).unwrap();
    output(Command::new("tar").arg("-xf").arg(&tar).arg("-C").arg(&root));
    let entry_point = config["config"]["Entrypoint"][0].as_str().unwrap();
    let version = run_in(&root, &[], &[entry_point, "--version"]);
    assert_eq!(version, format!("kmesh-trace {}\n", env!("CARGO_PKG_VERSION")));
    assert!(root.join("licenses/THIRD-PARTY").is_file());
}

/// Returns the file of a descriptor, whose digest and size must be right.
fn blob(layout: &Path, descriptor: &Value) -> PathBuf {
    let digest = descriptor["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
    let file = layout.join("blobs/sha256").join(digest);
    assert_eq!(sha256(&file), digest);
    assert_eq!(fs::metadata(&file).unwrap().len(), descriptor["size"].as_u64().unwrap());
    file
}

/// Returns the digest of a file as `sha256sum` computes it.
pub fn sha256(file: &Path) -> String {
    let line = output(Command::new("sha256sum").arg(file));
    line.split(' ').next().unwrap().to_owned()
}

pub fn read_json(file: &Path) -> Value {
    serde_json::from_slice(&fs::read(file).unwrap()).unwrap()
}

/// containerd imports the archive, and runc starts a container that prints the version, checks the node and traces.
fn containerd_runs_it() {
    let containerd = Containerd::start();
    let imported = output(containerd.ctr().args(["image", "import"]).arg(artefact(".oci.tar")));
    assert!(imported.contains(NAME), "{imported}");
    let version = output(containerd.run("version", &[]).arg("--version"));
    assert_eq!(version, format!("kmesh-trace {}\n", env!("CARGO_PKG_VERSION")));
    let check = output(containerd.run("check", &["--privileged"]).arg("check"));
    assert!(check.starts_with("ok "), "{check}");
    // The container has its own network, and the tool traces the node's.
    traces::check_traces_by(containerd.run("trace", &["--privileged"]));
}

/// A containerd of this test alone.
struct Containerd {
    process: Child,
    folder: PathBuf,
    programs: PathBuf,
}

impl Containerd {
    fn start() -> Self {
        let programs = components::find(PROGRAMS).unwrap();
        // The paths of sockets are short.
        let folder = std::env::temp_dir().join(format!("kmd{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let log = fs::File::create(folder.join("log")).unwrap();
        let path = |name: &str| folder.join(name).into_os_string();
        let config = "version = 2\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n";
        fs::write(folder.join("config.toml"), config).unwrap();
        let mut command = Command::new(programs.join("containerd"));
        command
            .arg("--config")
            .arg(path("config.toml"))
            .arg("--root")
            .arg(path("root"))
            .arg("--state")
            .arg(path("state"))
            .arg("--address")
            .arg(path("sock"))
            .env("PATH", path_with(&programs))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        let process = command.spawn().unwrap();
        let containerd = Self {
            process,
            folder,
            programs,
        };
        let deadline = Instant::now() + test_timeout();
        while !containerd.ctr().arg("version").output().unwrap().status.success() {
            assert!(Instant::now() < deadline, "containerd does not answer");
            thread::sleep(Duration::from_millis(50));
        }
        containerd
    }

    fn ctr(&self) -> Command {
        let mut ctr = Command::new(self.programs.join("ctr"));
        ctr.arg("--address")
            .arg(self.folder.join("sock"))
            .env("PATH", path_with(&self.programs));
        ctr
    }

    /// Returns a command that runs the image with these options. Its arguments are those of the tool. With arguments,
    /// ctr does not use the entry point of the image.
    fn run(&self, container: &str, options: &[&str]) -> Command {
        let mut ctr = self.ctr();
        ctr.args(["run", "--rm", "--runc-binary"])
            .arg(self.programs.join("runc"));
        ctr.args(options).args([NAME, container, "/kmesh-trace"]);
        ctr
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        let pid = Pid::from_raw(self.process.id().try_into().unwrap());
        _ = kill(pid, Signal::SIGTERM);
        _ = self.process.wait();
        if thread::panicking() {
            println!("the log of containerd is in {}", self.folder.display());
        } else {
            _ = fs::remove_dir_all(&self.folder);
        }
    }
}

/// Returns the search path with a folder in front.
fn path_with(folder: &Path) -> std::ffi::OsString {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::join_paths([folder.to_owned()].into_iter().chain(std::env::split_paths(&path))).unwrap()
}
