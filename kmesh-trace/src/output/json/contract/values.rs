//! The JSON form and schema of single values.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserializer, Unexpected, Visitor};
use serde::{Deserialize, Serialize, Serializer};

use crate::record::errno::Errno;
use crate::record::rfc3339::{self, Rfc3339};
use crate::record::{
    ClosedBy, Direction, EndOutcomes, Event, Family, LossReason, Outcome, PacketDirection, ProcessBy, ServiceBy,
    TcpState, WallTime,
};

/// A value whose `Display` text is the JSON string.
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

/// The reasons of a loss, separated by commas.
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
        deserializer.deserialize_str(ParsedText("an RFC 3339 time", rfc3339::parse))
    }
}

impl JsonSchema for WallTime {
    fn schema_name() -> Cow<'static, str> {
        "time".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A time: RFC 3339, UTC, nine decimals.",
            "type": "string",
            "format": "date-time",
            "pattern": r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{9}Z$",
        })
    }
}

impl Serialize for EndOutcomes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl JsonSchema for EndOutcomes {
    fn schema_name() -> Cow<'static, str> {
        "end_outcomes".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let names: Vec<_> = Outcome::ALL.iter().map(|outcome| outcome.name()).collect();
        let any = names.join("|");
        json_schema!({
            "description": "An outcome; with --join, the outcomes of client and server where they differ.",
            "type": "string",
            "pattern": format!("^({any})( / ({any}))?$"),
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
        deserializer.deserialize_str(ParsedText("the name of an error", Errno::from_name))
    }
}

impl JsonSchema for Errno {
    fn schema_name() -> Cow<'static, str> {
        "errno".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "The symbolic name of a Linux error; E and the number if it has no name.",
            "type": "string",
            "pattern": "^E[A-Z0-9]+$",
        })
    }
}

/// Deserializes a value from a string: a description of the value, and its parser.
struct ParsedText<F>(&'static str, F);

impl<T, F: Fn(&str) -> Option<T>> Visitor<'_> for ParsedText<F> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        (self.1)(text).ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self.0))
    }
}

/// Makes the enumerations of the domain strings in JSON, with their usual names.
macro_rules! enumerations {
    ($($type:ident as $name:literal,)+) => {$(
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                // As a variant, because our writer does not check variant names for characters to escape.
                serializer.serialize_unit_variant($name, *self as u32, self.name())
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_str(ParsedText(concat!("a value of ", $name), $type::from_name))
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
    PacketDirection as "packet_direction",
}

/// Returns the schema of an IP address. Many validators ignore `format`, so there is also a pattern.
pub fn ip_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "string",
        "anyOf": [
            {"format": "ipv4", "pattern": r"^([0-9]{1,3}\.){3}[0-9]{1,3}$"},
            {"format": "ipv6", "pattern": r"^[0-9a-f:]*:[0-9a-f:.]*$"},
        ],
    })
}
