//! The kernel's counters in a record, generated from the table `tcp_fields!`.

mod derived;

use kmesh_trace_common::unit::{self, Unit};
use kmesh_trace_common::{Snapshot, tcp_fields};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use self::derived::Congestion;
use super::TcpState;

/// Defines the counters of a record.
macro_rules! tcp {
    (
        reported { $($name:ident: $width:ident, $path:literal, $unit:ident, $description:tt;)* }
        derived { $($derived:ident: $type:ty, $derived_description:tt;)* }
        carried { $($carried:tt)* }
        internal { $($internal:tt)* }
    ) => {
        /// The kernel's counters of the socket, in the units that the names say.
        ///
        /// The JSON members are these fields, in this order.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
        #[schemars(
            deny_unknown_fields,
            rename = "tcp",
            description = "The kernel's counters of the socket, in the units that the names say."
        )]
        pub struct Tcp {
            /// The TCP state after the event.
            pub state: TcpState,
            /// The TCP state before the event.
            pub old_state: Option<TcpState>,
            $(
                #[doc = $description]
                // The output of an older version lacks the newer counters.
                #[serde(default)]
                pub $name: <unit::$unit as Unit<$width>>::Value,
            )*
            $(
                #[doc = $derived_description]
                #[serde(default)]
                pub $derived: $type,
            )*
        }

        impl Tcp {
            /// Returns the counters of `snapshot`.
            pub fn new(state: TcpState, old_state: Option<TcpState>, snapshot: &Snapshot) -> Self {
                Self {
                    state,
                    old_state,
                    $($name: <unit::$unit as Unit<$width>>::value(snapshot.$name),)*
                    $($derived: derived::$derived(snapshot),)*
                }
            }
        }
    };
}

tcp_fields!(tcp);
