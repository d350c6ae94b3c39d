//! The kubelet's log folders, `/var/log/pods/NAMESPACE_NAME_UID`: they name this node's pods.

use std::fs;

use super::error::SourceError;
use super::poll::{Listed, PollSource};
use super::reporter::List;
use crate::names::update::{Object, PodObject};

/// The folder where kubelets store the logs.
pub const FOLDER: &str = "/var/log/pods";
/// The largest number of folders that are read. A node has some hundred pods.
const MAX_FOLDERS: usize = 20_000;

/// The log folders of this node. The folder of a pod stays for a while when the pod is gone.
pub struct PodLogsSource;

impl PollSource for PodLogsSource {
    async fn list(&mut self, list: &mut List<'_>) -> Result<Listed, SourceError> {
        let entries = fs::read_dir(FOLDER)?.take(MAX_FOLDERS).flatten();
        let pods = entries.filter_map(|entry| pod(entry.file_name().to_str()?));
        pods.for_each(|pod| list.upsert(Object::Pod(pod)));
        Ok(Listed::Complete)
    }
}

/// Parses the name of a folder. None of its three parts has an underscore.
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
    fn folder_names_are_parsed() {
        let api = "616228b6-685c-4ea6-98c2-0e14f12a777f";
        let from_file = "e10f27833d6898de61d846374e3c0d0a";
        let cases = [
            (format!("shop_web-1_{api}"), Some(("shop", "web-1", api))),
            (
                format!("a_etcd-n1.example_{from_file}"),
                Some(("a", "etcd-n1.example", from_file)),
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
            let found = pod.as_ref().map(|pod| (&*pod.namespace, &*pod.name, &*pod.uid));
            assert_eq!(found, expected, "{folder}");
            assert!(
                pod.is_none_or(|pod| pod.owner == Owner::Unknown && pod.labels.is_none() && pod.host_network.is_none())
            );
        }
    }
}
