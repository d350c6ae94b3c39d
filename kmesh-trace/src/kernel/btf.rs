//! Finds members of the running kernel's structures in its BTF (`Documentation/bpf/btf.rst` in the kernel's sources).
//!
//! One pass over the types, kept only as long as offsets are looked up: the full model that a library would build of
//! 150,000 types takes as long as all the rest of the start.

use thiserror::Error;

const MAGIC: u16 = 0xeb9f;
const VERSION: u32 = 1;
/// Types within types within types: more is a loop.
const MAX_DEPTH: u32 = 32;

/// The kinds of type that matter here; `enum btf_kind`.
mod kind {
    pub const INT: u32 = 1;
    pub const PTR: u32 = 2;
    pub const ARRAY: u32 = 3;
    pub const STRUCT: u32 = 4;
    pub const UNION: u32 = 5;
    pub const ENUM: u32 = 6;
    pub const FWD: u32 = 7;
    pub const TYPEDEF: u32 = 8;
    pub const VOLATILE: u32 = 9;
    pub const CONST: u32 = 10;
    pub const RESTRICT: u32 = 11;
    pub const FUNC: u32 = 12;
    pub const FUNC_PROTO: u32 = 13;
    pub const VAR: u32 = 14;
    pub const DATASEC: u32 = 15;
    pub const DECL_TAG: u32 = 17;
    pub const TYPE_TAG: u32 = 18;
    pub const ENUM64: u32 = 19;
}

/// Why the BTF could not be used.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum BtfError {
    /// Not BTF, or cut short.
    #[error("the kernel's BTF is malformed at byte {0}")]
    Malformed(usize),
    /// A structure that this kernel does not have.
    #[error("this kernel has no struct {0}")]
    NoStruct(String),
    /// A member that the structure does not have.
    #[error("this kernel has no member {path} in struct {structure}")]
    NoMember {
        /// The structure asked for.
        structure: String,
        /// The member asked for.
        path: String,
    },
    /// A member that is no single bit.
    #[error("this kernel's {structure}.{path} is not one bit")]
    NoBit {
        /// The structure asked for.
        structure: String,
        /// The member asked for.
        path: String,
    },
    /// A member of another size than the programs read.
    #[error("this kernel's {structure}.{path} has {found} bytes, not {expected}")]
    WrongSize {
        /// The structure asked for.
        structure: String,
        /// The member asked for.
        path: String,
        /// Its size, bytes; 0 for a bit-field.
        found: u32,
        /// The size expected, bytes.
        expected: u32,
    },
}

/// The kernel's types.
pub struct Btf<'a> {
    data: &'a [u8],
    strings: usize,
    /// Where each type begins, by its id; 0 for id 0 (void).
    types: Vec<u32>,
    /// The structures asked for, by name.
    structures: Vec<(&'static str, u32)>,
    /// The variables asked for, likewise.
    variables: Vec<&'static str>,
    /// The enumerators asked for, with their values.
    enumerators: Vec<(&'static str, u32)>,
    /// The typedefs and functions asked for, by kind and name.
    hooks: Vec<(u32, &'static str, u32)>,
}

/// What is to be found by name.
#[derive(Clone, Copy, Default)]
pub struct Wanted<'a> {
    /// Structures, for their members.
    pub structures: &'a [&'static str],
    /// Per-CPU variables.
    pub variables: &'a [&'static str],
    /// Enumerators, for their values.
    pub enumerators: &'a [&'static str],
    /// Typedefs and functions, for their ids.
    pub hooks: &'a [&'static str],
}

/// One bit of a structure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bit {
    /// Its byte, from the start of the structure.
    pub offset: u32,
    /// The bit in that byte.
    pub mask: u8,
}

impl Bit {
    /// The bit with this number, from the least one of a number at `offset`, on a little-endian machine.
    pub fn of_number(offset: u32, number: u32) -> Self {
        Self {
            offset: offset + number / 8,
            mask: 1 << (number % 8),
        }
    }
}

/// Where a member is, from the start of the structure.
struct Member {
    bits: u32,
    type_id: u32,
    /// Its size in bits, if it is a bit-field; else 0.
    bitfield_bits: u32,
}

impl<'a> Btf<'a> {
    /// Reads the index of all types, and finds those that are wanted.
    pub fn parse(data: &'a [u8], wanted: Wanted<'_>) -> Result<Self, BtfError> {
        let mut btf = Self {
            data,
            strings: 0,
            types: vec![0],
            structures: Vec::new(),
            variables: Vec::new(),
            enumerators: Vec::new(),
            hooks: Vec::new(),
        };
        if btf.u32(0)? & 0xffff != u32::from(MAGIC) {
            return Err(BtfError::Malformed(0));
        }
        let header = btf.u32(4)? as usize;
        let types = header + btf.u32(8)? as usize;
        let end = types + btf.u32(12)? as usize;
        btf.strings = header + btf.u32(16)? as usize;
        let mut at = types;
        while at < end {
            btf.types.push(at as u32);
            let info = btf.u32(at + 4)?;
            let (kind, count) = (info >> 24 & 0x1f, (info & 0xffff) as usize);
            let id = btf.types.len() as u32 - 1;
            match kind {
                // A structure that is only declared is of another kind.
                kind::STRUCT => {
                    let name = btf.name_among(wanted.structures, at)?;
                    btf.structures.extend(name.map(|name| (name, id)));
                }
                kind::VAR => {
                    let name = btf.name_among(wanted.variables, at)?;
                    btf.variables.extend(name);
                }
                kind::ENUM => {
                    for entry in (0..count).map(|index| at + 12 + 8 * index) {
                        if let Some(name) = btf.name_among(wanted.enumerators, entry)? {
                            btf.enumerators.push((name, btf.u32(entry + 4)?));
                        }
                    }
                }
                kind::TYPEDEF | kind::FUNC => {
                    let name = btf.name_among(wanted.hooks, at)?;
                    btf.hooks.extend(name.map(|name| (kind, name, id)));
                }
                _ => {}
            }
            at += 12
                + match kind {
                    kind::INT | kind::VAR | kind::DECL_TAG => 4,
                    kind::ARRAY => 12,
                    kind::STRUCT | kind::UNION | kind::DATASEC | kind::ENUM64 => 12 * count,
                    kind::ENUM | kind::FUNC_PROTO => 8 * count,
                    _ => 0,
                };
        }
        Ok(btf)
    }

    /// The offset in bytes of the member that `path` names (`__sk_common.skc_net.net`), which has `size` bytes. Members
    /// of unnamed structures and unions are found as C finds them; an array's member is its first element's.
    pub fn offset(&self, structure: &str, path: &str, size: u32) -> Result<u32, BtfError> {
        let Member {
            bits,
            type_id,
            bitfield_bits,
        } = self.find(structure, path)?;
        let found = if bitfield_bits != 0 || bits % 8 != 0 {
            0
        } else {
            self.size(type_id, 0)?
        };
        if found != size {
            let (structure, path) = (structure.to_owned(), path.to_owned());
            return Err(BtfError::WrongSize {
                structure,
                path,
                found,
                expected: size,
            });
        }
        Ok(bits / 8)
    }

    /// The offset of the first byte of the member that `path` names, a number of whatever size.
    pub fn low_byte(&self, structure: &str, path: &str) -> Result<u32, BtfError> {
        Ok(self.find(structure, path)?.bits / 8)
    }

    /// The bit-field of one bit that `path` names.
    pub fn bit(&self, structure: &str, path: &str) -> Result<Bit, BtfError> {
        let member = self.find(structure, path)?;
        match member.bitfield_bits {
            1 => Ok(Bit::of_number(0, member.bits)),
            _ => Err(BtfError::NoBit {
                structure: structure.to_owned(),
                path: path.to_owned(),
            }),
        }
    }

    /// The value of an enumerator, one of those asked for.
    pub fn enumerator(&self, name: &str) -> Option<u32> {
        let mut known = self.enumerators.iter();
        known.find(|(known, _)| *known == name).map(|&(_, value)| value)
    }

    fn find(&self, structure: &str, path: &str) -> Result<Member, BtfError> {
        let mut found = Member {
            bits: 0,
            type_id: self.structure(structure)?,
            bitfield_bits: 0,
        };
        for name in path.split('.') {
            let member = self.member(found.type_id, name, 0)?.ok_or_else(|| BtfError::NoMember {
                structure: structure.to_owned(),
                path: path.to_owned(),
            })?;
            found = Member {
                bits: member.bits.saturating_add(found.bits),
                ..member
            };
        }
        Ok(found)
    }

    /// Whether the kernel has the variable of this name, one of those asked for.
    pub fn has_variable(&self, name: &str) -> bool {
        self.variables.contains(&name)
    }

    /// BTF with the hooks under their ids, and declarations of nothing under all others: for a loader that looks up no more,
    /// and makes a model of all there is.
    pub fn of_hooks(&self) -> Vec<u8> {
        let last = self.hooks.iter().map(|&(.., id)| id).max().unwrap_or(0);
        let mut types = [0, kind::FWD << 24, 0].repeat(last as usize);
        let mut names = vec![0];
        for &(kind, name, id) in &self.hooks {
            let at = 3 * (id as usize - 1);
            types[at..at + 2].copy_from_slice(&[names.len() as u32, kind << 24]);
            names.extend_from_slice(name.as_bytes());
            names.push(0);
        }
        let length = 4 * types.len() as u32;
        let header = [
            u32::from(MAGIC) | VERSION << 16,
            24,
            0,
            length,
            length,
            names.len() as u32,
        ];
        let words = header.into_iter().chain(types);
        words.flat_map(u32::to_ne_bytes).chain(names).collect()
    }

    fn structure(&self, name: &str) -> Result<u32, BtfError> {
        let found = self.structures.iter().find(|(known, _)| *known == name);
        found
            .map(|&(_, id)| id)
            .ok_or_else(|| BtfError::NoStruct(name.to_owned()))
    }

    fn member(&self, type_id: u32, name: &str, depth: u32) -> Result<Option<Member>, BtfError> {
        let type_id = self.plain(type_id)?;
        let at = self.at(type_id)?;
        if depth > MAX_DEPTH {
            return Err(BtfError::Malformed(at));
        }
        let info = self.u32(at + 4)?;
        match info >> 24 & 0x1f {
            kind::ARRAY => return self.member(self.u32(at + 12)?, name, depth + 1),
            kind::STRUCT | kind::UNION => {}
            _ => return Ok(None),
        }
        let has_bitfields = info >> 31 == 1;
        for index in 0..(info & 0xffff) as usize {
            let entry = at + 12 + 12 * index;
            let (name_at, member_type, offset) = (self.u32(entry)?, self.u32(entry + 4)?, self.u32(entry + 8)?);
            let bits = if has_bitfields { offset & 0x00ff_ffff } else { offset };
            if name_at == 0 {
                if let Some(inner) = self.member(member_type, name, depth + 1)? {
                    return Ok(Some(Member {
                        bits: bits.saturating_add(inner.bits),
                        ..inner
                    }));
                }
            } else if self.has_string(name_at, name)? {
                return Ok(Some(Member {
                    bits,
                    type_id: member_type,
                    bitfield_bits: if has_bitfields { offset >> 24 } else { 0 },
                }));
            }
        }
        Ok(None)
    }

    fn size(&self, type_id: u32, depth: u32) -> Result<u32, BtfError> {
        let type_id = self.plain(type_id)?;
        let at = self.at(type_id)?;
        if depth > MAX_DEPTH {
            return Err(BtfError::Malformed(at));
        }
        match self.u32(at + 4)? >> 24 & 0x1f {
            kind::PTR => Ok(8),
            kind::ARRAY => Ok(self
                .size(self.u32(at + 12)?, depth + 1)?
                .saturating_mul(self.u32(at + 20)?)),
            _ => self.u32(at + 8),
        }
    }

    /// The type behind names and qualifiers.
    fn plain(&self, mut type_id: u32) -> Result<u32, BtfError> {
        // A chain longer than this is a loop.
        for _ in 0..64 {
            let at = self.at(type_id)?;
            match self.u32(at + 4)? >> 24 & 0x1f {
                kind::TYPEDEF | kind::VOLATILE | kind::CONST | kind::RESTRICT | kind::TYPE_TAG => {
                    type_id = self.u32(at + 8)?;
                }
                _ => return Ok(type_id),
            }
        }
        Err(BtfError::Malformed(self.at(type_id)?))
    }

    fn at(&self, type_id: u32) -> Result<usize, BtfError> {
        match self.types.get(type_id as usize) {
            Some(&at) if at != 0 => Ok(at as usize),
            _ => Err(BtfError::Malformed(type_id as usize)),
        }
    }

    fn u32(&self, at: usize) -> Result<u32, BtfError> {
        let bytes = self.data.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
        bytes.map(u32::from_ne_bytes).ok_or(BtfError::Malformed(at))
    }

    fn has_string(&self, offset: u32, name: &str) -> Result<bool, BtfError> {
        let at = self.strings + offset as usize;
        let rest = self.data.get(at..).ok_or(BtfError::Malformed(at))?;
        let (name, end) = (name.as_bytes(), rest.get(name.len()));
        Ok(rest.starts_with(name) && end == Some(&0))
    }

    /// Which of these is the name of the type at this place.
    fn name_among(&self, names: &[&'static str], at: usize) -> Result<Option<&'static str>, BtfError> {
        let offset = self.u32(at)?;
        for &name in names {
            if self.has_string(offset, name)? {
                return Ok(Some(name));
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STRUCT: u32 = kind::STRUCT << 24;

    fn structures<'a>(structures: &'a [&'static str]) -> Wanted<'a> {
        Wanted {
            structures,
            ..Wanted::default()
        }
    }

    /// Lays out BTF: `words` of the type section, and names.
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
    fn members_are_found_as_c_finds_them() {
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
    fn bits_are_found_in_their_bytes() {
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
        assert_eq!(btf.bit("flags", "first"), Ok(Bit { offset: 0, mask: 1 }));
        assert_eq!(btf.bit("flags", "second"), Ok(Bit { offset: 5, mask: 4 }));
        assert_eq!(
            btf.bit("flags", "wide").unwrap_err().to_string(),
            "this kernel's flags.wide is not one bit"
        );
        assert_eq!((btf.enumerator("TEN"), btf.enumerator("absent")), (Some(10), None));
        assert_eq!(Bit::of_number(8, 10), Bit { offset: 9, mask: 4 });
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
    fn hooks_keep_their_ids() {
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
    fn what_is_not_there_is_told() {
        let data = example();
        let btf = Btf::parse(&data, structures(&["pair"])).unwrap();
        let told = |path, size| btf.offset("pair", path, size).unwrap_err().to_string();
        assert_eq!(told("c", 4), "this kernel has no member c in struct pair");
        assert_eq!(told("a.x", 4), "this kernel has no member a.x in struct pair");
        assert_eq!(told("a", 8), "this kernel's pair.a has 4 bytes, not 8");
        assert_eq!(told("f", 4), "this kernel's pair.f has 0 bytes, not 4");
        assert_eq!(
            btf.offset("none", "a", 4).unwrap_err().to_string(),
            "this kernel has no struct none"
        );
    }

    #[test]
    fn any_bytes_give_an_answer_and_no_panic() {
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
}
