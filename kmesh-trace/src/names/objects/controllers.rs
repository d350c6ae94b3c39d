//! ReplicaSets and Jobs, which may themselves have a controller.

use serde::Deserialize;

use super::{Meta, text};
use crate::names::update::{ControllerObject, Kind, Object};

/// `apps/v1` `ReplicaSet`, or `batch/v1` `Job`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Controller {
    metadata: Option<Meta>,
}

impl Controller {
    /// Returns the controller, of this kind, as the store takes it.
    pub fn object(self, kind: Kind) -> Object {
        let meta = self.metadata.unwrap_or_default();
        Object::Controller(ControllerObject {
            kind,
            uid: text(&meta.uid),
            namespace: text(&meta.namespace),
            owner: meta.controller(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::objects::parsed;
    use crate::names::update::ControllerRef;

    #[test]
    fn controller_has_its_controlling_owner() {
        let owned = r#"{"metadata":{"uid":"r1","ownerReferences":
            [{"kind":"Deployment","name":"web","uid":"d1","controller":true}]}}"#;
        let owner = ControllerRef {
            kind: "Deployment".to_owned(),
            name: "web".to_owned(),
            uid: "d1".to_owned(),
        };
        for (name, kind) in [("ReplicaSet", Kind::ReplicaSets), ("Job", Kind::Jobs)] {
            let expected = |owner| {
                Object::Controller(ControllerObject {
                    kind,
                    namespace: String::new(),
                    uid: "r1".to_owned(),
                    owner,
                })
            };
            assert_eq!(parsed(name, owned), expected(Some(owner.clone())));
            assert_eq!(parsed(name, r#"{"metadata":{"uid":"r1"}}"#), expected(None));
        }
    }
}
