//! Controllers that themselves may have one.

use serde::Deserialize;

use super::{Meta, Object, or_default, text};
use crate::enrich::facts::{ControllerFacts, Fact, Key, Kind};

/// One kind of them.
macro_rules! controller {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Default, Deserialize)]
        #[serde(default)]
        pub struct $name {
            #[serde(deserialize_with = "or_default")]
            metadata: Meta,
        }

        impl Object for $name {
            const KIND: &'static str = stringify!($name);
            const TELLS: Kind = Kind::Controllers;

            fn meta(&self) -> &Meta {
                &self.metadata
            }

            fn key(&self) -> Key {
                Key::Controller(text(&self.metadata.uid))
            }

            fn fact(self) -> Fact {
                Fact::Controller(ControllerFacts {
                    uid: text(&self.metadata.uid),
                    owner: self.metadata.controller(),
                })
            }
        }
    };
}

controller! {
    /// `apps/v1` `ReplicaSet`.
    ReplicaSet
}
controller! {
    /// `batch/v1` `Job`.
    Job
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::enrich::facts::ControllerRef;
    use crate::enrich::objects::{fact, told};

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
                Fact::Controller(ControllerFacts {
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
