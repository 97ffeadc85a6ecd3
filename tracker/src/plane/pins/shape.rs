//! What a pinned map has to be to be used again. The loader opens whatever is pinned under a name.

use std::path::PathBuf;

use aya::maps::{MapData, MapType};

use super::directory::Directory;

/// Type and sizes of a map.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Shape {
    pub(crate) kind: MapType,
    pub(crate) key_len: u32,
    pub(crate) value_len: u32,
    pub(crate) entries: u32,
    pub(crate) flags: u32,
}

impl Shape {
    pub(crate) fn array<T>(entries: u32, flags: u32) -> Shape {
        Shape { kind: MapType::Array, key_len: 4, value_len: size_of::<T>() as u32, entries, flags }
    }

    pub(crate) fn hash<K, T>(entries: u32) -> Shape {
        let (key_len, value_len) = (size_of::<K>() as u32, size_of::<T>() as u32);
        Shape { kind: MapType::Hash, key_len, value_len, entries, flags: 0 }
    }

    pub(crate) fn ring(len: u32) -> Shape {
        // As the loader rounds it.
        let entries = len.next_power_of_two();
        Shape { kind: MapType::RingBuf, key_len: 0, value_len: 0, entries, flags: 0 }
    }

    /// Whether a map of this shape is pinned under a name.
    pub(crate) fn is_pinned(&self, directory: &Directory, name: &str) -> bool {
        MapData::from_pin(directory.pin(name)).ok().as_ref().and_then(Shape::of) == Some(*self)
    }

    /// That of an existing map, if the kernel tells.
    pub(crate) fn of(map: &MapData) -> Option<Shape> {
        let info = map.info().ok()?;
        Some(Shape {
            kind: info.map_type().ok()?,
            key_len: info.key_size(),
            value_len: info.value_size(),
            entries: info.max_entries(),
            flags: info.map_flags(),
        })
    }
}

/// Where a map is pinned while it is being loaded.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) name: &'static str,
    /// For the loader: what is pinned there is used, else the map is made and pinned there.
    pub(crate) path: PathBuf,
    /// Whether the path is that of a successor, to be put into place in the end.
    pub(crate) is_new: bool,
}

impl Place {
    /// The pin itself where it is to be used again, else a successor beside it.
    pub(crate) fn of(directory: &Directory, name: &'static str, is_used: bool) -> Place {
        let path = if is_used { directory.pin(name) } else { directory.new_pin(name) };
        Place { name, path, is_new: !is_used }
    }

    /// Puts a successor into place.
    pub(crate) fn settle(&self, directory: &Directory) -> std::io::Result<()> {
        if self.is_new { directory.replace(self.name) } else { Ok(()) }
    }
}
