//! Finds members of the running kernel's structures in its BTF (`Documentation/bpf/btf.rst` in the kernel's sources).
//!
//! The parser reads the types in one pass, and does not build a model of all 150,000 types. A library that builds one
//! takes as long as the rest of the start.
//!
//! The BTF of a module continues that of the kernel: its first type has the next id, and its strings have the next
//! offsets.

use std::ops::Range;

use thiserror::Error;

const MAGIC: u16 = 0xeb9f;
const VERSION: u32 = 1;
/// The maximum depth of nested types. Deeper nesting is a loop.
const MAX_DEPTH: u32 = 32;

/// The kinds of types that the parser handles: `enum btf_kind`.
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

/// The reason why a look-up in the BTF failed.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum BtfError {
    #[error("the kernel's BTF is malformed at byte {0}")]
    Malformed(usize),
    #[error("this kernel has no struct {0}")]
    NoStruct(String),
    #[error("this kernel has no member {path} in struct {structure}")]
    NoMember { structure: String, path: String },
    /// The member is not a bit-field of this size, or not within one byte.
    #[error("this kernel's {structure}.{path} is not {width} bits of a byte")]
    NoBits {
        structure: String,
        path: String,
        /// The expected size, bits.
        width: u32,
    },
    /// The member has another size than the programs read.
    #[error("this kernel's {structure}.{path} has {found} bytes, not {expected}")]
    WrongSize {
        structure: String,
        path: String,
        /// The size of the member, bytes; 0 for a bit-field.
        found: u32,
        /// The expected size, bytes.
        expected: u32,
    },
}

/// The kernel's types, with the ids of those that [`Wanted`] names.
pub struct Btf<'a> {
    data: &'a [u8],
    /// The positions of the kernel's strings in `data`.
    strings: Range<usize>,
    /// The position of the module's strings in `data`; its end if there is no module.
    module_strings: usize,
    /// The position of each type in `data`, by its id; 0 for id 0 (void).
    types: Vec<u32>,
    /// The ids of the wanted structures, by name.
    structures: Vec<(&'static str, u32)>,
    variables: Vec<&'static str>,
    /// The values of the wanted enumerators, by name.
    enumerators: Vec<(&'static str, u32)>,
    /// The ids of the wanted enumerations, by name.
    enums: Vec<(&'static str, u32)>,
    /// The kinds, names and ids of the wanted hooks.
    hooks: Vec<(u32, &'static str, u32)>,
}

/// The names to look up.
#[derive(Clone, Copy, Default)]
pub struct Wanted<'a> {
    /// Structures whose members are looked up.
    pub structures: &'a [&'static str],
    /// Per-CPU variables whose presence is checked.
    pub variables: &'a [&'static str],
    /// Enumerators whose values are looked up.
    pub enumerators: &'a [&'static str],
    /// Enumerations of which all enumerators are looked up.
    pub enums: &'a [&'static str],
    /// Typedefs and functions whose ids are looked up.
    pub hooks: &'a [&'static str],
}

/// Adjacent bits of a byte of a structure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bits {
    /// The offset of the byte from the start of the structure.
    pub offset: u32,
    /// The mask of the bits in that byte.
    pub mask: u8,
}

impl Bits {
    /// Returns the bit with this number, counted from the lowest bit of a little-endian number at `offset`.
    pub fn of_number(offset: u32, number: u32) -> Self {
        Self {
            offset: offset + number / 8,
            mask: 1 << (number % 8),
        }
    }
}

/// The position of a member.
struct Member {
    /// The offset from the start of the structure, bits.
    bits: u32,
    type_id: u32,
    /// The size of a bit-field, bits; 0 for any other member.
    bitfield_bits: u32,
}

/// The positions of the parts of a BTF.
struct Sections {
    types: Range<usize>,
    strings: Range<usize>,
}

impl<'a> Btf<'a> {
    /// Reads all types, and finds the wanted ones. `data` has the kernel's BTF; that of one module may follow.
    pub fn parse(data: &'a [u8], wanted: Wanted<'_>) -> Result<Self, BtfError> {
        let mut btf = Self {
            data,
            strings: 0..0,
            module_strings: data.len(),
            types: vec![0],
            structures: Vec::new(),
            variables: Vec::new(),
            enumerators: Vec::new(),
            enums: Vec::new(),
            hooks: Vec::new(),
        };
        let kernel = btf.sections(0)?;
        btf.strings = kernel.strings;
        btf.add(kernel.types, wanted)?;
        let end = btf.strings.end;
        if end < data.len() {
            let module = btf.sections(end)?;
            btf.module_strings = module.strings.start;
            btf.add(module.types, wanted)?;
        }
        Ok(btf)
    }

    /// Reads the header at this position.
    fn sections(&self, start: usize) -> Result<Sections, BtfError> {
        if self.u32(start)? & 0xffff != u32::from(MAGIC) {
            return Err(BtfError::Malformed(start));
        }
        let word = |at: usize| Ok::<_, BtfError>(self.u32(start + at)? as usize);
        let header = start + word(4)?;
        let (types, strings) = (header + word(8)?, header + word(16)?);
        Ok(Sections {
            types: types..types + word(12)?,
            strings: strings..strings + word(20)?,
        })
    }

    /// Reads the types at these positions, and finds the wanted ones.
    fn add(&mut self, Range { start: mut at, end }: Range<usize>, wanted: Wanted<'_>) -> Result<(), BtfError> {
        while at < end {
            self.types.push(at as u32);
            let info = self.u32(at + 4)?;
            let (kind, count) = (info >> 24 & 0x1f, (info & 0xffff) as usize);
            let id = self.types.len() as u32 - 1;
            match kind {
                // A structure that is only declared has another kind.
                kind::STRUCT => {
                    let name = self.name_among(wanted.structures, at)?;
                    self.structures.extend(name.map(|name| (name, id)));
                }
                kind::VAR => {
                    let name = self.name_among(wanted.variables, at)?;
                    self.variables.extend(name);
                }
                kind::ENUM => {
                    let name = self.name_among(wanted.enums, at)?;
                    self.enums.extend(name.map(|name| (name, id)));
                    for entry in (0..count).map(|index| at + 12 + 8 * index) {
                        if let Some(name) = self.name_among(wanted.enumerators, entry)? {
                            self.enumerators.push((name, self.u32(entry + 4)?));
                        }
                    }
                }
                kind::TYPEDEF | kind::FUNC => {
                    let name = self.name_among(wanted.hooks, at)?;
                    self.hooks.extend(name.map(|name| (kind, name, id)));
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
        Ok(())
    }

    /// Returns the offset, in bytes, of the member with this `path` (`__sk_common.skc_net.net`) and `size`. Finds
    /// members of unnamed structures and unions, as C does. A member of an array is that of its first element.
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

    /// Returns the offset of the first byte of the member with this `path`, whatever its size.
    pub fn low_byte(&self, structure: &str, path: &str) -> Result<u32, BtfError> {
        Ok(self.find(structure, path)?.bits / 8)
    }

    /// Returns the bit-field of `width` bits with this `path`, which is within one byte.
    pub fn bits(&self, structure: &str, path: &str, width: u32) -> Result<Bits, BtfError> {
        let member = self.find(structure, path)?;
        if member.bitfield_bits != width || member.bits % 8 + width > 8 {
            return Err(BtfError::NoBits {
                structure: structure.to_owned(),
                path: path.to_owned(),
                width,
            });
        }
        let Bits { offset, mask: lowest } = Bits::of_number(0, member.bits);
        let mask = (0..width).fold(0, |mask, bit| mask | lowest << bit);
        Ok(Bits { offset, mask })
    }

    /// Returns the value of a wanted enumerator, if the kernel has it.
    pub fn enumerator(&self, name: &str) -> Option<u32> {
        let mut known = self.enumerators.iter();
        known.find(|(known, _)| *known == name).map(|&(_, value)| value)
    }

    /// Returns the values and names of all enumerators of a wanted enumeration; none if the kernel has no such type.
    pub fn enumeration(&self, name: &str) -> Vec<(u32, String)> {
        let Some(&(_, id)) = self.enums.iter().find(|(known, _)| *known == name) else {
            return Vec::new();
        };
        let read = || {
            let at = self.at(id)?;
            let count = (self.u32(at + 4)? & 0xffff) as usize;
            let entries = (0..count).map(|index| at + 12 + 8 * index);
            entries
                .map(|entry| Ok((self.u32(entry + 4)?, self.string(self.u32(entry)?)?)))
                .collect::<Result<_, BtfError>>()
        };
        read().unwrap_or_default()
    }

    /// Returns the number of arguments of a wanted tracepoint, a typedef; `None` if the kernel does not have it.
    pub fn argument_count(&self, hook: &str) -> Option<usize> {
        let (.., id) = self.hooks.iter().find(|(_, known, _)| *known == hook)?;
        let pointer = self.at(self.resolve(*id).ok()?).ok()?;
        let prototype = self.at(self.u32(pointer + 8).ok()?).ok()?;
        let parameters = (self.u32(prototype + 4).ok()? & 0xffff) as usize;
        // The first parameter is the tracepoint's own data.
        parameters.checked_sub(1)
    }

    /// Returns the id of a wanted hook; `None` if the kernel does not have it.
    pub fn hook_id(&self, hook: &str) -> Option<u32> {
        let found = self.hooks.iter().find(|(_, known, _)| *known == hook);
        found.map(|&(.., id)| id)
    }

    /// Returns the size of a structure in bytes.
    pub fn struct_size(&self, structure: &str) -> Result<u32, BtfError> {
        self.size(self.structure(structure)?, 0)
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

    /// Returns whether the kernel has a wanted variable.
    pub fn has_variable(&self, name: &str) -> bool {
        self.variables.contains(&name)
    }

    /// Returns BTF that has the hooks under their ids, and an unnamed forward declaration under every other id. aya
    /// builds a model of all types that it gets, and looks up only the hooks.
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
        let type_id = self.resolve(type_id)?;
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
        let type_id = self.resolve(type_id)?;
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

    /// Returns the type behind typedefs and qualifiers.
    fn resolve(&self, mut type_id: u32) -> Result<u32, BtfError> {
        // A longer chain is a loop.
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

    /// Returns all bytes from the string at this offset on. The module's strings follow the kernel's.
    fn bytes_from(&self, offset: u32) -> Result<&[u8], BtfError> {
        let (offset, kernel) = (offset as usize, &self.strings);
        let at = match offset.checked_sub(kernel.len()) {
            Some(offset) => self.module_strings + offset,
            None => kernel.start + offset,
        };
        self.data.get(at..).ok_or(BtfError::Malformed(at))
    }

    fn string(&self, offset: u32) -> Result<String, BtfError> {
        let rest = self.bytes_from(offset)?;
        let end = rest.iter().position(|&byte| byte == 0);
        let end = end.ok_or(BtfError::Malformed(self.data.len()))?;
        Ok(String::from_utf8_lossy(&rest[..end]).into_owned())
    }

    fn has_string(&self, offset: u32, name: &str) -> Result<bool, BtfError> {
        let rest = self.bytes_from(offset)?;
        let (name, end) = (name.as_bytes(), rest.get(name.len()));
        Ok(rest.starts_with(name) && end == Some(&0))
    }

    /// Returns the one of `names` that is the name of the type at this position.
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
mod tests;
