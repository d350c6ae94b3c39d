//! Controllers that themselves may have one.

use serde::Deserialize;

use super::{KubeObject, Meta, or_default, text};
use crate::names::update::{ControllerObject, Key, Kind, Object};

/// One kind of them.
macro_rules! controller {
    ($(#[$doc:meta])* $name:ident, $kind:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Default, Deserialize)]
        #[serde(default)]
        pub struct $name {
            #[serde(deserialize_with = "or_default")]
            metadata: Meta,
        }

        impl KubeObject for $name {
            const KIND: &'static str = stringify!($name);
            const TELLS: Kind = Kind::$kind;

            fn meta(&self) -> &Meta {
                &self.metadata
            }

            fn key(&self) -> Key {
                Key::Controller(text(&self.metadata.uid))
            }

            fn fact(self) -> Object {
                Object::Controller(ControllerObject {
                    kind: Kind::$kind,
                    uid: text(&self.metadata.uid),
                    namespace: text(&self.metadata.namespace),
                    owner: self.metadata.controller(),
                })
            }
        }
    };
}

controller! {
    /// `apps/v1` `ReplicaSet`.
    ReplicaSet, ReplicaSets
}
controller! {
    /// `batch/v1` `Job`.
    Job, Jobs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::objects::{fact, told};
    use crate::names::update::ControllerRef;

    #[test]
    fn what_controls_them_is_told() {
        let owned = r#"{"metadata":{"uid":"r1","ownerReferences":
            [{"kind":"Deployment","name":"web","uid":"d1","controller":true}]}}"#;
        let owner = ControllerRef {
            kind: "Deployment".to_owned(),
            name: "web".to_owned(),
            uid: "d1".to_owned(),
        };
        for kind in ["ReplicaSet", "Job"] {
            let expected = |owner| {
                Object::Controller(ControllerObject {
                    kind: match kind {
                        "Job" => Kind::Jobs,
                        _ => Kind::ReplicaSets,
                    },
                    namespace: String::new(),
                    uid: "r1".to_owned(),
                    owner,
                })
            };
            assert_eq!(told(kind, owned), expected(Some(owner.clone())));
            assert_eq!(told(kind, r#"{"metadata":{"uid":"r1"}}"#), expected(None));
        }
        assert_eq!(fact("Deployment", "{}").unwrap(), None);
    }
}
