//! The image, as an archive with the layout of the Open Container Initiative: containerd, podman, Docker and skopeo
//! import it. It contains the executable and the licences, and one manifest for each architecture.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{HOMEPAGE, Release, SUMMARY, VERSION, archive};

/// The files of the archive that are in the image, and their names there.
const FILES: [(&str, &str); 5] = [
    ("kmesh-trace", "kmesh-trace"),
    ("LICENSE-APACHE", "licenses/LICENSE-APACHE"),
    ("LICENSE-MIT", "licenses/LICENSE-MIT"),
    ("LICENSE-GPL2", "licenses/LICENSE-GPL2"),
    ("THIRD-PARTY", "licenses/THIRD-PARTY"),
];

/// Packs one image of all these releases, and returns the path of the archive.
pub fn pack(releases: &[&Release], platform: &str, out: &Path) -> Result<PathBuf> {
    let layout = Layout(out.join("image"));
    let manifests: Vec<_> = releases
        .iter()
        .map(|release| layout.add_image(release))
        .collect::<Result<_>>()?;
    let mut index = layout.add_json(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": manifests,
    }))?;
    index["mediaType"] = "application/vnd.oci.image.index.v1+json".into();
    // containerd reads its own annotation, podman and skopeo the other one.
    index["annotations"] = json!({
        "io.containerd.image.name": format!("docker.io/library/kmesh-trace:{VERSION}"),
        "org.opencontainers.image.ref.name": format!("kmesh-trace:{VERSION}"),
    });
    let index = json!({"schemaVersion": 2, "manifests": [index]});
    archive::write(&layout.0, "index.json", index.to_string().as_bytes())?;
    archive::write(&layout.0, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;

    let file = out.join(format!("kmesh-trace-{VERSION}-{platform}.oci.tar"));
    let date = releases.first().map_or("", |release| &release.date);
    archive::tar(&layout.0, &["blobs", "index.json", "oci-layout"], date, &file)?;
    remove(&layout.0)?;
    Ok(file)
}

/// The folder of an image layout.
struct Layout(PathBuf);

impl Layout {
    /// Adds layer, configuration and manifest of a release, and returns the descriptor of the manifest.
    fn add_image(&self, release: &Release) -> Result<Value> {
        let tree = self.0.with_extension("root");
        for (from, to) in FILES {
            archive::write(&tree, to, &archive::read(&release.files.join(from))?)?;
        }
        let tar = self.0.with_extension("layer");
        archive::tar(&tree, &["kmesh-trace", "licenses"], &release.date, &tar)?;
        remove(&tree)?;
        let diff_id = format!("sha256:{}", archive::digest(&tar)?);
        archive::gzip(&tar)?;
        let mut layer = self.add_file(&tar.with_extension("layer.gz"))?;
        layer["mediaType"] = "application/vnd.oci.image.layer.v1.tar+gzip".into();

        let created = format!("{}T00:00:00Z", release.date);
        let labels = json!({
            "org.opencontainers.image.title": "kmesh-trace",
            "org.opencontainers.image.description": SUMMARY,
            "org.opencontainers.image.version": VERSION,
            "org.opencontainers.image.url": HOMEPAGE,
            "org.opencontainers.image.licenses": "(Apache-2.0 OR MIT) AND GPL-2.0-only",
            "org.opencontainers.image.created": created,
        });
        // Go, and so the image specification, has the same names of architectures as Debian.
        let architecture = release.arch.debian();
        let mut config = self.add_json(&json!({
            "created": created,
            "architecture": architecture,
            "os": "linux",
            "config": {"User": "0:0", "Entrypoint": ["/kmesh-trace"], "Labels": labels},
            "rootfs": {"type": "layers", "diff_ids": [diff_id]},
            "history": [{"created": created, "created_by": "cargo xtask dist"}],
        }))?;
        config["mediaType"] = "application/vnd.oci.image.config.v1+json".into();

        let mut manifest = self.add_json(&json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": config,
            "layers": [layer],
            "annotations": labels,
        }))?;
        manifest["mediaType"] = "application/vnd.oci.image.manifest.v1+json".into();
        manifest["platform"] = json!({"os": "linux", "architecture": architecture});
        Ok(manifest)
    }

    /// Adds a JSON document, and returns its descriptor without the media type.
    fn add_json(&self, document: &Value) -> Result<Value> {
        let file = archive::write(&self.0, "document", document.to_string().as_bytes())?;
        self.add_file(&file)
    }

    /// Moves a file to the blobs, and returns its descriptor without the media type.
    fn add_file(&self, file: &Path) -> Result<Value> {
        let digest = archive::digest(file)?;
        let bytes = archive::read(file)?;
        archive::write(&self.0, &format!("blobs/sha256/{digest}"), &bytes)?;
        fs::remove_file(file).with_context(|| format!("cannot remove {}", file.display()))?;
        Ok(json!({"digest": format!("sha256:{digest}"), "size": bytes.len()}))
    }
}

fn remove(folder: &Path) -> Result<()> {
    fs::remove_dir_all(folder).with_context(|| format!("cannot remove {}", folder.display()))
}
