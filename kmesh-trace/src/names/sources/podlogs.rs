//! Names out of the kubelet's log folders, `/var/log/pods/NAMESPACE_NAME_UID`: free, and of this node alone.

use std::fs;
use std::io;
use std::path::Path;

use crate::names::update::PodObject;

/// Where kubelets keep them.
pub const FOLDER: &str = "/var/log/pods";
/// Folders that are looked at. A node has some hundred pods.
const MOST: usize = 100_000;

/// The pods that have a folder. One that is gone keeps it for a while.
pub fn list(folder: &Path) -> io::Result<Vec<PodObject>> {
    let entries = fs::read_dir(folder)?.take(MOST).flatten();
    Ok(entries.filter_map(|entry| pod(entry.file_name().to_str()?)).collect())
}

/// None of the three has an underscore in it.
fn pod(name: &str) -> Option<PodObject> {
    let (namespace, rest) = name.split_once('_')?;
    let (name, uid) = rest.split_once('_')?;
    let is_uid =
        |uid: &str| (32..=36).contains(&uid.len()) && uid.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
    (!namespace.is_empty() && !name.is_empty() && is_uid(uid)).then(|| PodObject {
        uid: uid.to_owned(),
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        ..PodObject::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::update::Owner;

    #[test]
    fn folders_are_read_as_the_kubelet_names_them() {
        let api = "616228b6-685c-4ea6-98c2-0e14f12a777f";
        let of_file = "e10f27833d6898de61d846374e3c0d0a";
        let cases = [
            (
                format!("shop_web-9b9899d94-jsjxn_{api}"),
                Some(("shop", "web-9b9899d94-jsjxn", api)),
            ),
            (
                format!("kube-system_etcd-n1.example_{of_file}"),
                Some(("kube-system", "etcd-n1.example", of_file)),
            ),
            (format!("shop_{api}"), None),
            (format!("_web_{api}"), None),
            (format!("shop__{api}"), None),
            (format!("shop_web_{api}_x"), None),
            ("shop_web_".to_owned(), None),
            ("shop_web_not-a-uid".to_owned(), None),
            ("lost+found".to_owned(), None),
        ];
        for (folder, expected) in cases {
            let pod = pod(&folder);
            let told = pod.as_ref().map(|pod| (&*pod.namespace, &*pod.name, &*pod.uid));
            assert_eq!(told, expected, "{folder}");
            assert!(
                pod.is_none_or(|pod| pod.owner == Owner::Unknown && pod.labels.is_none() && pod.host_network.is_none())
            );
        }
    }
}
