use super::*;

const STRUCT: u32 = kind::STRUCT << 24;

fn structures<'a>(structures: &'a [&'static str]) -> Wanted<'a> {
    Wanted {
        structures,
        ..Wanted::default()
    }
}

/// Returns BTF with these `words` in its type section, and these names.
fn blob(words: &[u32], names: &str) -> Vec<u8> {
    let length = words.len() as u32 * 4;
    let mut header = vec![u32::from(MAGIC) | 1 << 16, 24, 0, length, length, names.len() as u32];
    header.extend(words);
    header
        .into_iter()
        .flat_map(u32::to_ne_bytes)
        .chain(names.bytes())
        .collect()
}

/// `struct pair { int a; union { long b; struct { int :5; int f:3; } }; struct inner in; int many[4]; }`, and
/// `struct inner { short x; short y; }`.
fn example() -> Vec<u8> {
    let names = "\0pair\0a\0b\0f\0in\0many\0inner\0x\0y\0int\0long\0short\0alias\0";
    let at = |name: &str| names.find(&format!("\0{name}\0")).unwrap() as u32 + 1;
    #[rustfmt::skip]
    let words = [
        at("int"), kind::INT << 24, 4, 32,
        at("long"), kind::INT << 24, 8, 64,
        at("short"), kind::INT << 24, 2, 16,
        at("alias"), kind::TYPEDEF << 24, 1,
        0, kind::ARRAY << 24, 0, 4, 1, 4,
        at("inner"), STRUCT | 2, 4, at("x"), 3, 0, at("y"), 3, 16,
        0, STRUCT | 1 << 31 | 1, 4, at("f"), 1, 5 | 3 << 24,
        0, kind::UNION << 24 | 2, 8, at("b"), 2, 0, 0, 7, 0,
        at("pair"), STRUCT | 4, 36, at("a"), 4, 0, 0, 8, 64, at("in"), 6, 128, at("many"), 5, 160,
    ];
    blob(&words, names)
}

#[test]
fn members_of_unnamed_structures_are_found() {
    let data = example();
    let btf = Btf::parse(&data, structures(&["pair", "inner"])).unwrap();
    let cases = [
        ("a", 4, 0),
        ("b", 8, 8),
        ("in", 4, 16),
        ("in.y", 2, 18),
        ("many", 16, 20),
    ];
    for (path, size, offset) in cases {
        assert_eq!(btf.offset("pair", path, size), Ok(offset), "{path}");
    }
    assert_eq!(btf.offset("inner", "x", 2), Ok(0));
    assert_eq!(btf.low_byte("pair", "in"), Ok(16));
}

#[test]
fn types_of_a_module_continue_those_of_the_kernel() {
    let kernel = blob(&[1, kind::INT << 24, 4, 32], "\0int\0");
    // Ids start at 2, and names at 5.
    let module = blob(
        &[6, STRUCT | 2, 8, 12, 1, 0, 14, 3, 32, 0, kind::TYPEDEF << 24, 1],
        "\0entry\0a\0b\0",
    );
    let data = [kernel.clone(), module.clone()].concat();
    let btf = Btf::parse(&data, structures(&["entry"])).unwrap();
    assert_eq!(btf.offset("entry", "a", 4), Ok(0));
    assert_eq!(btf.offset("entry", "b", 4), Ok(4));
    let lost = Btf::parse(&kernel, structures(&["entry"])).unwrap();
    assert!(lost.offset("entry", "a", 4).is_err());
    for length in kernel.len() + 1..data.len() {
        // Cut off: an error, or the structure as it is.
        if let Ok(btf) = Btf::parse(&data[..length], structures(&["entry"])) {
            assert!(matches!(btf.offset("entry", "b", 4), Ok(4) | Err(_)), "{length}");
        }
    }
}

#[test]
fn bit_fields_within_a_byte_are_found() {
    let names = "\0flags\0first\0second\0wide\0int\0TEN\0";
    let at = |name: &str| names.find(&format!("\0{name}\0")).unwrap() as u32 + 1;
    #[rustfmt::skip]
    let words = [
        at("int"), kind::INT << 24, 4, 32,
        at("flags"), STRUCT | 1 << 31 | 3, 8,
        at("first"), 1, 1 << 24, at("second"), 1, 1 << 24 | 42, at("wide"), 1, 2 << 24 | 44,
        0, kind::ENUM << 24 | 1, 4, at("TEN"), 10,
    ];
    let data = blob(&words, names);
    let wanted = Wanted {
        enumerators: &["TEN", "absent"],
        ..structures(&["flags"])
    };
    let btf = Btf::parse(&data, wanted).unwrap();
    assert_eq!(btf.bits("flags", "first", 1), Ok(Bits { offset: 0, mask: 1 }));
    assert_eq!(btf.bits("flags", "second", 1), Ok(Bits { offset: 5, mask: 4 }));
    assert_eq!(btf.bits("flags", "wide", 2), Ok(Bits { offset: 5, mask: 0x30 }));
    assert_eq!(
        btf.bits("flags", "wide", 1).unwrap_err().to_string(),
        "this kernel's flags.wide is not 1 bits of a byte"
    );
    assert_eq!((btf.enumerator("TEN"), btf.enumerator("absent")), (Some(10), None));
    assert_eq!(Bits::of_number(8, 10), Bits { offset: 9, mask: 4 });
}

#[test]
fn variables_are_found_by_name() {
    let names = "\0other\0wanted\0";
    let words = [1, kind::VAR << 24, 0, 0, 7, kind::VAR << 24, 0, 0];
    let data = blob(&words, names);
    let btf = Btf::parse(
        &data,
        Wanted {
            variables: &["wanted", "absent"],
            ..Wanted::default()
        },
    )
    .unwrap();
    assert_eq!((btf.has_variable("wanted"), btf.has_variable("absent")), (true, false));
}

#[test]
fn hooks_keep_their_type_ids() {
    let names = "\0int\0hook\0hook\0walk\0";
    let words = [
        1,
        kind::INT << 24,
        4,
        32,
        5,
        kind::TYPEDEF << 24,
        1,
        5,
        kind::FUNC << 24,
        2,
        15,
        kind::FUNC << 24,
        2,
        1,
        kind::TYPEDEF << 24,
        1,
    ];
    let data = blob(&words, names);
    let wanted = Wanted {
        hooks: &["hook", "walk", "none"],
        ..Wanted::default()
    };
    let excerpt = Btf::parse(&data, wanted).unwrap().of_hooks();
    let hooks = Btf::parse(&excerpt, wanted).unwrap().hooks;
    assert_eq!(
        hooks,
        [
            (kind::TYPEDEF, "hook", 2),
            (kind::FUNC, "hook", 3),
            (kind::FUNC, "walk", 4)
        ]
    );
}

#[test]
fn missing_type_is_an_error() {
    let data = example();
    let btf = Btf::parse(&data, structures(&["pair"])).unwrap();
    let error = |path, size| btf.offset("pair", path, size).unwrap_err().to_string();
    assert_eq!(error("c", 4), "this kernel has no member c in struct pair");
    assert_eq!(error("a.x", 4), "this kernel has no member a.x in struct pair");
    assert_eq!(error("a", 8), "this kernel's pair.a has 4 bytes, not 8");
    assert_eq!(error("f", 4), "this kernel's pair.f has 0 bytes, not 4");
    assert_eq!(
        btf.offset("none", "a", 4).unwrap_err().to_string(),
        "this kernel has no struct none"
    );
}

#[test]
fn malformed_btf_does_not_panic() {
    let whole = example();
    for length in 0..whole.len() {
        _ = Btf::parse(&whole[..length], structures(&["pair"])).map(|btf| btf.offset("pair", "in.y", 2));
    }
    let mut seed = 1_u64;
    for _ in 0..20_000 {
        let mut data = whole.clone();
        for _ in 0..4 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let at = (seed >> 33) as usize % data.len();
            data[at] = (seed >> 24) as u8;
        }
        for path in ["a", "b", "f", "in.y", "many.a"] {
            _ = Btf::parse(&data, structures(&["pair"])).map(|btf| btf.offset("pair", path, 2));
        }
    }
}
