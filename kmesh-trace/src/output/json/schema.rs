//! `kmesh-trace schema`: the JSON Schema of all lines.

use crate::output::json::contract::{
    ChangeLine, ConnLine, FindingLine, HeaderLine, ListenerLine, LostLine, PairLine, RejectLine, RollupLine,
    SummaryLine,
};
use schemars::generate::SchemaSettings;

/// Returns the JSON Schema (draft 2020-12) of the lines of `-o json`. Exactly one of its alternatives fits a line.
pub fn schema() -> serde_json::Value {
    let mut generator = SchemaSettings::draft2020_12().for_serialize().into_generator();
    let lines = [
        generator.subschema_for::<ConnLine<'_>>(),
        generator.subschema_for::<PairLine<'_>>(),
        generator.subschema_for::<RollupLine<'_>>(),
        generator.subschema_for::<RejectLine<'_>>(),
        generator.subschema_for::<ListenerLine<'_>>(),
        generator.subschema_for::<FindingLine<'_>>(),
        generator.subschema_for::<ChangeLine<'_>>(),
        generator.subschema_for::<HeaderLine<'_>>(),
        generator.subschema_for::<LostLine<'_>>(),
        generator.subschema_for::<SummaryLine<'_>>(),
    ];
    serde_json::json!({
        "$schema": schemars::consts::meta_schemas::DRAFT2020_12,
        "title": "kmesh-trace -o json",
        "description": "One line of the output. Its \"type\" says which kind.",
        "oneOf": lines,
        "$defs": generator.take_definitions(true),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::Compression;
    use crate::capture::testing::capture;
    use crate::output::{Json, RollupJson, Sink, Stdout, testing};
    use crate::record::{Outcome, Process, ProcessBy, Record, Tcp, TcpState};
    use crate::rollup::{By, Key, RollupSettings};
    use clap::ValueEnum;
    use serde_json::{Value, json};

    fn validator() -> jsonschema::Validator {
        jsonschema::options()
            .should_validate_formats(true)
            .build(&schema())
            .unwrap()
    }

    fn rollup_settings(keys: &[Key], max_groups: usize) -> RollupSettings {
        RollupSettings {
            by: By::new(keys),
            interval: Some(std::time::Duration::from_secs(5)),
            max_groups,
        }
    }

    /// Returns a line of each type, with every record of the tests.
    fn lines() -> Vec<Value> {
        let out = testing::Shared::default();
        let mut json = Json::new(testing::ALL_EVENTS, &testing::info(), Stdout::to(out.clone()));
        json.lost(&testing::lost()).unwrap();
        json.summary(&testing::summary()).unwrap();
        json.summary(&testing::clean_summary()).unwrap();
        let records = [testing::all(), testing::joined(), testing::reports()].concat();
        testing::deliver(Box::new(json), &records);
        for keys in [
            &[Key::Workload][..],
            &[Key::Node, Key::Namespace],
            Key::value_variants(),
        ] {
            let settings = rollup_settings(keys, 5);
            let rollup = RollupJson::new(settings, &testing::info(), Stdout::to(out.clone()));
            testing::deliver(Box::new(rollup), &[testing::all(), testing::joined()].concat());
        }
        let mut bytes = out.bytes();
        bytes.extend(capture(Compression::None, |_| ()));
        serde_json::Deserializer::from_slice(&bytes)
            .into_iter()
            .map(Result::unwrap)
            .collect()
    }

    #[test]
    fn schema_is_valid_json_schema() {
        jsonschema::draft202012::meta::validate(&schema()).unwrap();
    }

    #[test]
    fn every_line_fits_the_schema() {
        let validator = validator();
        for line in lines() {
            let errors: Vec<_> = validator.iter_errors(&line).map(|error| error.to_string()).collect();
            assert!(errors.is_empty(), "{line}: {errors:?}");
        }
    }

    #[test]
    fn every_enumeration_value_fits_the_schema() {
        let validator = validator();
        let fits = |record: Record| {
            let line = serde_json::to_value(ConnLine::new(&record)).unwrap();
            assert!(validator.is_valid(&line), "{record:?}");
        };
        let example = testing::example();
        Outcome::ALL.iter().for_each(|&outcome| {
            fits(Record {
                outcome: Some(outcome),
                ..example.clone()
            })
        });
        (0..200).for_each(|errno| {
            fits(Record {
                errno: Some(errno),
                ..example.clone()
            })
        });
        for &state in TcpState::ALL {
            fits(Record {
                tcp: Tcp {
                    old_state: Some(state),
                    ..example.tcp
                },
                ..example.clone()
            });
        }
        for &by in ProcessBy::ALL {
            fits(Record {
                process: Some(Process {
                    pid: 1,
                    comm: testing::comm(b"a"),
                    by,
                }),
                ..example.clone()
            });
        }
        for address in [
            "[::]:0",
            "[::1]:1",
            "[::ffff:1.2.3.4]:2",
            "[fe80::1]:3",
            "[1:2:3:4:5:6:7:8]:4",
            "0.0.0.0:5",
        ] {
            fits(Record {
                src: address.parse().unwrap(),
                ..example.clone()
            });
        }
    }

    #[test]
    fn missing_or_additional_member_does_not_fit() {
        fn objects(value: &Value, at: &str, found: &mut Vec<String>) {
            if let Value::Object(members) = value {
                found.push(at.to_owned());
                members
                    .iter()
                    .for_each(|(name, member)| objects(member, &format!("{at}/{name}"), found));
            }
        }
        let validator = validator();
        for line in lines() {
            let mut places = Vec::new();
            objects(&line, "", &mut places);
            // These have arbitrary members.
            let arbitrary = ["/outcomes", "/reset_reasons", "/drops"];
            places.retain(|place| !place.ends_with("/labels") && !arbitrary.contains(&&**place));
            let is_pair = line["type"] == "pair";
            for place in places {
                let mut more = line.clone();
                more.pointer_mut(&place).unwrap()["surprise"] = Value::Null;
                assert!(!validator.is_valid(&more), "{place}: one more");
                let names: Vec<_> = line
                    .pointer(&place)
                    .unwrap()
                    .as_object()
                    .unwrap()
                    .keys()
                    .cloned()
                    .collect();
                // Members about a pod exist only if the end is a pod.
                let ends = ["/client", "/server"];
                let of_end = ends.iter().filter(|_| is_pair).find_map(|end| place.strip_prefix(end));
                let is_optional = |name: &str| match of_end.unwrap_or(&place) {
                    "/src" | "/dst" => !matches!(name, "ip" | "port"),
                    "/service" => name == "ambiguous",
                    // A group has only the grouped facts.
                    "/group/src" | "/group/dst" => true,
                    "/group" => !matches!(name, "direction" | "src" | "dst"),
                    "/group/process" => true,
                    _ => false,
                };
                for name in names.into_iter().filter(|name| !is_optional(name)) {
                    let mut less = line.clone();
                    less.pointer_mut(&place).unwrap().as_object_mut().unwrap().remove(&name);
                    assert!(!validator.is_valid(&less), "{place}: without {name}");
                }
            }
        }
    }

    #[test]
    fn wrong_value_does_not_fit() {
        let all = lines();
        let of_type = |kind: &str| all.iter().find(|line| line["type"] == kind).unwrap();
        let (conn, lost, summary) = (of_type("conn"), of_type("lost"), of_type("summary"));
        let (rollup, reject, listener) = (of_type("rollup"), of_type("reject"), of_type("listener"));
        let pair = of_type("pair");
        let dropped = all.iter().find(|line| line.pointer("/drops/0").is_some()).unwrap();
        let cases = [
            (conn, "/type", json!("lost")),
            (conn, "/type", json!("Conn")),
            (conn, "/v", json!(2)),
            (conn, "/id", json!("")),
            (conn, "/id", json!(7)),
            (conn, "/event", json!("closed")),
            (conn, "/time", json!("2024-09-14T08:19:26Z")),
            (conn, "/time", json!("2024-09-14T08:19:26.552709932+00:00")),
            (conn, "/time", json!("2024-13-14T08:19:26.552709932Z")),
            (conn, "/time", Value::Null),
            (conn, "/start", json!(0)),
            (conn, "/duration_ns", json!(-1)),
            (conn, "/duration_ns", json!(1.5)),
            (conn, "/duration_ns", json!("1")),
            (conn, "/observed_ns", Value::Null),
            (conn, "/preexisting", Value::Null),
            (conn, "/direction", json!("INBOUND")),
            (conn, "/protocol", json!("udp")),
            (conn, "/family", json!("ipv5")),
            (conn, "/src", Value::Null),
            (conn, "/src/ip", json!("10.0.0")),
            (conn, "/src/ip", json!("[::1]")),
            (conn, "/src/ip", json!("fe80::1%eth0")),
            (conn, "/src/port", json!(65536)),
            (conn, "/service", json!({})),
            (conn, "/process/pid", json!(-1)),
            (conn, "/process/by", json!("guess")),
            (conn, "/local/netns", Value::Null),
            (conn, "/outcome", json!("OK")),
            (conn, "/errno", json!(111)),
            (conn, "/errno", json!("refused")),
            (conn, "/closed_by", json!("neither")),
            (conn, "/reset_reason", json!(7)),
            (conn, "/drops", json!({})),
            (conn, "/turns", json!(0)),
            (dropped, "/drops/0/direction", json!("forwarded")),
            (dropped, "/drops/0/reason", Value::Null),
            (dropped, "/drops/0/packets", json!(-1)),
            (conn, "/security_policy", json!("tls")),
            (conn, "/security_policy", Value::Null),
            (conn, "/tcp/state", json!("close")),
            (conn, "/tcp/ecn_flags", json!(256)),
            (rollup, "/window_ns", json!(-1)),
            (rollup, "/window_start", Value::Null),
            (rollup, "/group", json!({})),
            (rollup, "/group/direction", json!("up")),
            (rollup, "/group/src", Value::Null),
            (rollup, "/outcomes", json!({"failed": 1})),
            (rollup, "/outcomes", json!({"ok": -1})),
            (rollup, "/reset_reasons", Value::Null),
            (rollup, "/drops", json!({"NETFILTER_DROP": -1})),
            (rollup, "/drops", json!([])),
            (rollup, "/open", Value::Null),
            (rollup, "/duration_quantiles_ns", json!({"p50": 1})),
            (reject, "/src", json!({"ip": "10.0.0.1", "port": 80})),
            (reject, "/reason", json!(3)),
            (reject, "/count", Value::Null),
            (listener, "/dst", Value::Null),
            (listener, "/id", json!("")),
            (listener, "/backlog", Value::Null),
            (listener, "/dropped", json!(-1)),
            (pair, "/client", json!({})),
            (pair, "/server/type", json!("pair")),
            (pair, "/undelivered/sent", json!(-1)),
            (pair, "/undelivered", json!(0)),
            (pair, "/network_ns", json!("1")),
            (rollup, "/outcomes", json!({"ok / failed": 1})),
            (lost, "/type", json!("summary")),
            (lost, "/lost_records", Value::Null),
            (lost, "/reason", json!("")),
            (lost, "/reason", json!("ring_full,")),
            (lost, "/reason", json!("ring_full, program_skipped")),
            (summary, "/node", Value::Null),
            (summary, "/closes", json!(-1)),
            (summary, "/reason", json!("bad luck")),
        ];
        let validator = validator();
        for (line, pointer, wrong) in cases {
            let mut line = line.clone();
            *line.pointer_mut(pointer).unwrap() = wrong.clone();
            assert!(!validator.is_valid(&line), "{pointer} = {wrong}");
        }
    }

    /// Many validators ignore formats.
    #[test]
    fn addresses_are_checked_without_formats() {
        let lax = jsonschema::options()
            .should_validate_formats(false)
            .build(&schema())
            .unwrap();
        let mut line = lines().remove(0);
        assert!(lax.is_valid(&line));
        line["src"]["ip"] = json!("worker-1");
        assert!(!lax.is_valid(&line));
    }
}
