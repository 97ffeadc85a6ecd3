//! Finds fields in the kernel's type information (BTF), in one pass over its bytes.
//!
//! A general BTF library keeps every type; here a handful of offsets is wanted out of 126,000 types, and the pass takes a
//! few milliseconds. The bytes are treated as hostile: every number is checked before it is used, nothing recurses
//! deeper than the kernel's own structs do, and the result of garbage is an error.
//!
//! The format: <https://docs.kernel.org/bpf/btf.html>.

use std::collections::HashMap;

use tracker_common::layout::{Field, Layout, Need, UPID_LEN};

/// Why the bytes told nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BtfError {
    /// Not BTF at all, or of the other byte order.
    #[error("the type information has no BTF header")]
    Header,
    /// Cut, or contradicts itself.
    #[error("the type information is broken at byte {0}")]
    Broken(usize),
    /// Fields that the probes cannot do without.
    #[error("the kernel's type information lacks {}", list(.0))]
    Missing(Vec<Field>),
    /// The probes count on a size that is another here.
    #[error("`struct upid` has {0} bytes instead of {UPID_LEN}")]
    Upid(u32),
}

fn list(fields: &[Field]) -> String {
    let names: Vec<_> = fields.iter().map(|field| format!("`{}.{}`", field.structure, field.field)).collect();
    names.join(", ")
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Where fields are.
    pub layout: Layout,
    /// Whether `sched_process_exit` has a second argument.
    pub exit_tells_group_dead: bool,
    /// Fields that are absent, and that the probes can do without.
    pub absent: Vec<Field>,
}

const MAGIC: u16 = 0xEB9F;
/// `struct btf_type`: name, info, size or type.
const TYPE_LEN: usize = 12;
/// `struct btf_member`: name, type, offset.
const MEMBER_LEN: usize = 12;
/// Anonymous structs and unions are nested three deep at most in the kernels seen.
const MAX_DEPTH: u32 = 8;
/// Structs of one name that are looked at: a module or a driver may have one called `net`.
const MAX_NAMESAKES: usize = 8;
/// `sched_process_exit` without `group_dead`: the probe's context and the task.
const EXIT_PARAMETERS: u32 = 2;

const KIND_PTR: u32 = 2;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_TYPEDEF: u32 = 8;
const KIND_FUNC_PROTO: u32 = 13;

/// Finds the fields of [`Layout::FIELDS`].
pub fn find(bytes: &[u8]) -> Result<Found, BtfError> {
    let btf = Btf::index(bytes, Layout::FIELDS)?;
    let mut layout = Layout::UNKNOWN;
    let (mut missing, mut absent) = (Vec::new(), Vec::new());
    for (place, field) in Layout::FIELDS.iter().enumerate() {
        match (btf.offset(field), field.need) {
            (Some(offset), _) => layout.set(place, u64::from(offset)),
            (None, Need::Must) => missing.push(*field),
            (None, Need::May) => absent.push(*field),
        }
    }
    if !missing.is_empty() {
        return Err(BtfError::Missing(missing));
    }
    match btf.structs("upid").first().and_then(|id| btf.get(*id)) {
        Some(upid) if u64::from(upid.size) != UPID_LEN => return Err(BtfError::Upid(upid.size)),
        _ => {}
    }
    Ok(Found { layout, exit_tells_group_dead: btf.exit_tells_group_dead(), absent })
}

/// Finds the byte offset of each of these fields.
pub fn offsets<const N: usize>(bytes: &[u8], fields: [Field; N]) -> Result<[u64; N], BtfError> {
    let btf = Btf::index(bytes, &fields)?;
    let found = fields.map(|field| btf.offset(&field).map(u64::from));
    let missing: Vec<Field> = fields.into_iter().zip(found).filter(|(_, at)| at.is_none()).map(|(f, _)| f).collect();
    if !missing.is_empty() {
        return Err(BtfError::Missing(missing));
    }
    Ok(found.map(|offset| offset.expect("missing ones were refused")))
}

/// Bytes, where each type starts in them, and where the wanted names are.
struct Btf<'a> {
    types: &'a [u8],
    strings: &'a [u8],
    /// By type id; id 0 is `void` and has no place.
    starts: Vec<u32>,
    /// Ids of structs with a wanted name.
    wanted: HashMap<&'static str, Vec<u32>>,
    /// Id of `btf_trace_sched_process_exit`.
    exit_typedef: Option<u32>,
}

/// The head of one type.
#[derive(Clone, Copy)]
struct Type {
    name: u32,
    kind: u32,
    /// The kind's own flag: in a struct, offsets of members carry bit field sizes.
    flag: bool,
    /// How many members or parameters follow.
    len: u32,
    /// Its size in bytes, or the type it refers to.
    size: u32,
    /// Where its members begin.
    body: usize,
}

impl<'a> Btf<'a> {
    fn index(bytes: &'a [u8], fields: &[Field]) -> Result<Self, BtfError> {
        let number = |at: usize| u32_at(bytes, at).ok_or(BtfError::Header);
        if bytes.first_chunk().map(|magic| u16::from_ne_bytes(*magic)) != Some(MAGIC) {
            return Err(BtfError::Header);
        }
        let header_len = number(4)?;
        let section = |offset: u32, len: u32| {
            let start = (header_len as usize).checked_add(offset as usize)?;
            bytes.get(start..start.checked_add(len as usize)?)
        };
        let types = section(number(8)?, number(12)?).ok_or(BtfError::Header)?;
        let strings = section(number(16)?, number(20)?).ok_or(BtfError::Header)?;

        let mut wanted: HashMap<&'static str, Vec<u32>> = HashMap::new();
        for field in fields {
            wanted.entry(field.structure).or_default();
        }
        let mut btf = Btf { types, strings, starts: vec![0], wanted, exit_typedef: None };
        let mut at = 0;
        while at < types.len() {
            let ty = btf.parse(at).ok_or(BtfError::Broken(at))?;
            let id = btf.starts.len() as u32;
            match ty.kind {
                KIND_STRUCT => {
                    if let Some(ids) = btf.name(ty.name).and_then(|name| btf.wanted.get_mut(name))
                        && ids.len() < MAX_NAMESAKES
                    {
                        ids.push(id);
                    }
                }
                KIND_TYPEDEF if btf.name(ty.name) == Some("btf_trace_sched_process_exit") => {
                    btf.exit_typedef = Some(id);
                }
                _ => {}
            }
            btf.starts.push(at as u32);
            at = ty.body + ty.body_len().ok_or(BtfError::Broken(at))?;
        }
        Ok(btf)
    }

    fn structs(&self, name: &str) -> &[u32] {
        self.wanted.get(name).map_or(&[], Vec::as_slice)
    }

    /// Byte offset of a field in the first struct of that name that has it.
    fn offset(&self, field: &Field) -> Option<u32> {
        self.structs(field.structure).iter().find_map(|id| self.member(*id, field.field, MAX_DEPTH))
    }

    /// Byte offset of a member, also of one in an anonymous struct or union.
    fn member(&self, id: u32, wanted: &str, depth: u32) -> Option<u32> {
        let ty = self.get(id)?;
        if depth == 0 || (ty.kind != KIND_STRUCT && ty.kind != KIND_UNION) {
            return None;
        }
        (0..ty.len as usize).find_map(|place| {
            let at = ty.body.checked_add(place.checked_mul(MEMBER_LEN)?)?;
            let (name, member) = (u32_at(self.types, at)?, u32_at(self.types, at + 4)?);
            let raw = u32_at(self.types, at + 8)?;
            let (bits, bit_field) = if ty.flag { (raw & 0xff_ffff, raw >> 24) } else { (raw, 0) };
            // Wanted are whole numbers and pointers: a bit field of that name is another field.
            if name != 0 {
                let is_it = bit_field == 0 && bits % 8 == 0 && self.name(name) == Some(wanted);
                return is_it.then_some(bits / 8);
            }
            self.member(member, wanted, depth - 1)?.checked_add(bits / 8)
        })
    }

    fn exit_tells_group_dead(&self) -> bool {
        let target = |id: u32, kind: u32| self.get(id).filter(|ty| ty.kind == kind);
        let prototype = || {
            let pointer = target(self.exit_typedef?, KIND_TYPEDEF)?.size;
            let prototype = target(pointer, KIND_PTR)?.size;
            target(prototype, KIND_FUNC_PROTO)
        };
        prototype().is_some_and(|ty| ty.len > EXIT_PARAMETERS)
    }

    fn get(&self, id: u32) -> Option<Type> {
        if id == 0 {
            return None;
        }
        self.parse(*self.starts.get(id as usize)? as usize)
    }

    fn parse(&self, at: usize) -> Option<Type> {
        let (name, info, size) = (u32_at(self.types, at)?, u32_at(self.types, at + 4)?, u32_at(self.types, at + 8)?);
        let (kind, len) = ((info >> 24) & 0x1f, info & 0xffff);
        Some(Type { name, kind, flag: info >> 31 != 0, len, size, body: at + TYPE_LEN })
    }

    fn name(&self, offset: u32) -> Option<&'a str> {
        let rest = self.strings.get(offset as usize..)?;
        let len = rest.iter().take(128).position(|byte| *byte == 0)?;
        std::str::from_utf8(&rest[..len]).ok()
    }
}

impl Type {
    /// Bytes that follow the head; `None` for a kind that is not known, behind which nothing can be read.
    fn body_len(&self) -> Option<usize> {
        let len = self.len as usize;
        Some(match self.kind {
            // int, variable, declaration tag
            1 | 14 | 17 => 4,
            // pointer, forward, typedef, volatile, const, restrict, function, float, type tag
            2 | 7..=12 | 16 | 18 => 0,
            // array
            3 => 12,
            // struct, union, section, 64-bit enum
            4 | 5 | 15 | 19 => len * 12,
            // enum, function prototype
            6 | 13 => len * 8,
            _ => return None,
        })
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|number| u32::from_ne_bytes(*number))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Writes BTF: each type is its words, names are added as they come.
    #[derive(Default)]
    struct Writer {
        types: Vec<u32>,
        strings: Vec<u8>,
        count: u32,
    }

    impl Writer {
        fn new() -> Self {
            Writer { strings: vec![0], ..Writer::default() }
        }

        fn name(&mut self, name: &str) -> u32 {
            if name.is_empty() {
                return 0;
            }
            let at = self.strings.len() as u32;
            self.strings.extend(name.bytes().chain([0]));
            at
        }

        fn add(&mut self, name: &str, kind: u32, flag: bool, size: u32, len: u32, body: &[u32]) -> u32 {
            let name = self.name(name);
            self.types.extend([name, (u32::from(flag) << 31) | kind << 24 | len, size]);
            self.types.extend(body);
            self.count += 1;
            self.count
        }

        /// A struct whose members are (name, type, bits).
        fn structure(&mut self, name: &str, flag: bool, members: &[(&str, u32, u32)]) -> u32 {
            let body: Vec<u32> = members.iter().flat_map(|(name, ty, bits)| [self.name(name), *ty, *bits]).collect();
            self.add(name, KIND_STRUCT, flag, 16, members.len() as u32, &body)
        }

        fn bytes(&self) -> Vec<u8> {
            let types: Vec<u8> = self.types.iter().flat_map(|word| word.to_ne_bytes()).collect();
            let mut bytes = [MAGIC.to_ne_bytes(), [1, 0]].concat();
            for word in [24, 0, types.len(), types.len(), self.strings.len()] {
                bytes.extend((word as u32).to_ne_bytes());
            }
            [bytes, types, self.strings.clone()].concat()
        }
    }

    /// BTF that has every field, the nth field of a struct at byte 8n, but for those that `skip` names.
    fn kernel(skip: &[(&str, &str)], exit_parameters: u32) -> Writer {
        let mut writer = Writer::new();
        let int = writer.add("int", 1, false, 4, 0, &[32]);
        let mut structs: Vec<&str> = Layout::FIELDS.iter().map(|field| field.structure).collect();
        structs.dedup();
        for name in structs {
            let fields = Layout::FIELDS.iter().filter(|f| f.structure == name && !skip.contains(&(name, f.field)));
            let members: Vec<_> = fields.enumerate().map(|(n, field)| (field.field, int, n as u32 * 64)).collect();
            writer.structure(name, false, &members);
        }
        let body = vec![0; 2 * exit_parameters as usize];
        let prototype = writer.add("", KIND_FUNC_PROTO, false, 0, exit_parameters, &body);
        let pointer = writer.add("", KIND_PTR, false, prototype, 0, &[]);
        writer.add("btf_trace_sched_process_exit", KIND_TYPEDEF, false, pointer, 0, &[]);
        writer
    }

    #[test]
    fn every_field_is_found() {
        let found = find(&kernel(&[], 3).bytes()).unwrap();
        assert_eq!((found.layout.task_nsproxy, found.layout.task_pid), (0, 16));
        assert_eq!((found.layout.nsproxy_net_ns, found.layout.signal_oom_mm), (8, 24));
        assert!(found.absent.is_empty() && found.exit_tells_group_dead);
        assert!(!find(&kernel(&[], 2).bytes()).unwrap().exit_tells_group_dead);
    }

    #[test]
    fn offsets_of_other_fields_are_found_or_named() {
        let field = |structure, field| Field { structure, field, need: Need::Must };
        let mut writer = kernel(&[], 2);
        writer.structure("linux_binprm", false, &[("file", 1, 0), ("filename", 1, 96 * 8)]);
        let bytes = writer.bytes();
        let wanted = [field("linux_binprm", "filename"), field("task_struct", "nsproxy")];
        assert_eq!(offsets(&bytes, wanted), Ok([96, 0]));
        let missing = field("linux_binprm", "gone");
        assert_eq!(offsets(&bytes, [missing, wanted[0]]), Err(BtfError::Missing(vec![missing])));
    }

    #[test]
    fn a_missing_field_is_named_and_an_optional_one_is_absent() {
        let error = find(&kernel(&[("nsproxy", "mnt_ns")], 2).bytes()).unwrap_err();
        assert_eq!(error.to_string(), "the kernel's type information lacks `nsproxy.mnt_ns`");
        let found = find(&kernel(&[("ns_common", "ns_id")], 2).bytes()).unwrap();
        assert_eq!(found.layout.ns_common_ns_id, tracker_common::layout::ABSENT);
        assert_eq!(found.absent.len(), 1);
    }

    #[test]
    fn members_of_anonymous_structs_and_namesakes_are_found_and_bit_fields_are_not() {
        let mut writer = kernel(&[("ns_common", "ns_id"), ("upid", "nr")], 2);
        let inner = writer.structure("", true, &[("ns_id", 1, 64 | 3 << 24), ("nr", 1, 32)]);
        writer.structure("ns_common", false, &[("", inner, 128)]);
        writer.structure("upid", false, &[("", inner, 256)]);
        let found = find(&writer.bytes()).unwrap();
        assert_eq!(found.layout.upid_nr, 36);
        assert_eq!(found.layout.ns_common_ns_id, tracker_common::layout::ABSENT);
    }

    #[test]
    fn a_struct_inside_itself_ends() {
        let mut writer = kernel(&[("pid", "level")], 2);
        let id = writer.count + 1;
        writer.structure("pid", false, &[("", id, 8)]);
        assert!(matches!(find(&writer.bytes()), Err(BtfError::Missing(_))));
    }

    proptest! {
        #[test]
        fn any_bytes_end_in_an_answer(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            prop_assert!(find(&bytes).is_err());
        }

        #[test]
        fn damage_anywhere_ends_in_an_answer(damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20)) {
            let mut bytes = kernel(&[], 3).bytes();
            for (place, value) in damage {
                let place = place.index(bytes.len());
                bytes[place] = value;
            }
            let _ = find(&bytes);
        }
    }
}
