//! How single values stand in lines, and in their schema.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserializer, Unexpected, Visitor};
use serde::{Deserialize, Serialize, Serializer};

use crate::record::errno::Errno;
use crate::record::rfc3339::{self, Rfc3339};
use crate::record::{
    ClosedBy, Direction, Event, Family, LossReason, Outcome, ProcessBy, ServiceBy, TcpState, WallTime,
};

/// Whatever is displayed, as a JSON string.
#[derive(Clone, Copy, Debug)]
pub struct Text<T>(pub T);

impl<T: fmt::Display> Serialize for Text<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<T> JsonSchema for Text<T> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "text".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string"})
    }
}

/// Reasons of a loss, joined by commas.
#[derive(Clone, Copy, Debug)]
pub struct Reasons<'a>(pub &'a [LossReason]);

impl fmt::Display for Reasons<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, reason) in self.0.iter().enumerate() {
            f.write_str(if index == 0 { "" } else { "," })?;
            f.write_str(reason.name())?;
        }
        Ok(())
    }
}

impl Serialize for Reasons<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl JsonSchema for Reasons<'_> {
    fn schema_name() -> Cow<'static, str> {
        "loss_reasons".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let any = LossReason::ALL
            .iter()
            .map(|reason| reason.name())
            .collect::<Vec<_>>()
            .join("|");
        json_schema!({"type": "string", "pattern": format!("^({any})(,({any}))*$")})
    }
}

impl Serialize for WallTime {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(Rfc3339::new(*self).as_str())
    }
}

impl<'de> Deserialize<'de> for WallTime {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(Spelled("a time of RFC 3339", rfc3339::parse))
    }
}

impl JsonSchema for WallTime {
    fn schema_name() -> Cow<'static, str> {
        "time".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "RFC 3339, UTC, nine decimals.",
            "type": "string",
            "format": "date-time",
            "pattern": r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{9}Z$",
        })
    }
}

impl Serialize for Errno {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Errno {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(Spelled("the name of an error", Errno::from_name))
    }
}

impl JsonSchema for Errno {
    fn schema_name() -> Cow<'static, str> {
        "errno".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "Linux's symbolic name of an error; E and the number where there is no name.",
            "type": "string",
            "pattern": "^E[A-Z0-9]+$",
        })
    }
}

/// Reads a value from a string: what the value is called, and the function that knows its spelling.
struct Spelled<F>(&'static str, F);

impl<T, F: Fn(&str) -> Option<T>> Visitor<'_> for Spelled<F> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        (self.1)(text).ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self.0))
    }
}

/// Makes enumerations of the domain strings on the wire, spelled as everywhere.
macro_rules! enumerations {
    ($($type:ident as $name:literal,)+) => {$(
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                // A variant, since its name is ours: whoever writes it need not look for what is to be escaped.
                serializer.serialize_unit_variant($name, *self as u32, self.name())
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_str(Spelled(concat!("a value of ", $name), $type::from_name))
            }
        }

        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                $name.into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                let names: Vec<_> = Self::ALL.iter().map(|value| value.name()).collect();
                json_schema!({"type": "string", "enum": names})
            }
        }
    )+};
}

enumerations! {
    Event as "event",
    Direction as "direction",
    Family as "family",
    Outcome as "outcome",
    ClosedBy as "closed_by",
    ProcessBy as "process_by",
    ServiceBy as "service_by",
    TcpState as "tcp_state",
}

/// An address of either family. The patterns say it again for the many validators that do not look at formats.
pub fn ip_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "string",
        "anyOf": [
            {"format": "ipv4", "pattern": r"^([0-9]{1,3}\.){3}[0-9]{1,3}$"},
            {"format": "ipv6", "pattern": r"^[0-9a-f:]*:[0-9a-f:.]*$"},
        ],
    })
}
