//! Pinned selections, for programs that know nothing of the library: `NAME/mntns` and `NAME/cgroups` below
//! `selections` in the plane's directory of pins.
//!
//! A third map, `NAME/about`, tells a later tracker what it finds there: the selector, and whether the selection is to be
//! kept. One that is kept is adopted with its maps, which programs may have in use; all others are emptied and removed.
//! There is one keeper of the directory at a time: it holds a lock on it. The owner of a map's content is always the one
//! who holds that lock.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use aya::maps::{Array, IterableMap, Map, MapData};

use super::maps::{SelectionMaps, map_error, unpin};
use super::{Selection, SelectionError};
use crate::plane::pins::{Directory, SELECTIONS};
use crate::selector::Selector;

/// Names are no longer than this.
const MAX_NAME_LEN: usize = 64;

const ABOUT: &str = "about";

/// The directory of pinned selections, and the only right to change what is in it.
#[derive(Debug)]
pub(crate) struct Pins(Directory);

/// A kept selection of an earlier tracker.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) name: String,
    pub(crate) selector: Selector,
    pub(crate) maps: SelectionMaps,
}

impl Pins {
    /// Takes the directory below `pins`, which is made if it is missing.
    pub(crate) fn open(pins: &Path) -> Result<Self, SelectionError> {
        match pins.as_os_str().is_empty() {
            true => Err(SelectionError::Unwanted),
            false => Ok(Self(Directory::own(&pins.join(SELECTIONS))?)),
        }
    }

    /// The same, if an earlier tracker left anything there; `None` if not.
    pub(crate) fn open_left(pins: &Path) -> Option<Result<Self, SelectionError>> {
        let left = fs::read_dir(pins.join(SELECTIONS)).is_ok_and(|mut entries| entries.next().is_some());
        (!pins.as_os_str().is_empty() && left).then(|| Self::open(pins))
    }

    /// What an earlier tracker left and meant to be kept. All else is emptied, for programs that have it open, and removed.
    pub(crate) fn adopt(&self) -> Vec<Found> {
        let entries = fs::read_dir(self.0.path()).into_iter().flatten().flatten();
        let names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.into_iter().filter_map(|name| self.adopt_one(name)).collect()
    }

    fn adopt_one(&self, name: String) -> Option<Found> {
        let directory = self.path(&name);
        let maps = SelectionMaps::from_pins(&directory);
        match (check_name(&name).is_ok(), About::read(&directory.join(ABOUT)), maps) {
            (true, Some(selector), Ok(maps)) => return Some(Found { name, selector, maps }),
            (.., Ok(maps)) => maps.clear(),
            (.., Err(error)) => tracing::debug!(name, %error, "a selection that was left cannot be opened"),
        }
        match unpin(&directory, &[ABOUT]) {
            Ok(()) => tracing::info!(name, "removed the pins of a selection whose tracker has ended"),
            Err(error) => {
                tracing::warn!(path = %directory.display(), %error, "what was left here cannot be removed");
            }
        }
        None
    }

    /// Pins a selection under its name; returns where. One that is to be kept has its selector with it, as it was written.
    pub(crate) fn pin(&self, selection: &Selection, keep: Option<&str>) -> Result<PathBuf, SelectionError> {
        let directory = self.path(selection.name());
        // One that is there is another selection's: of an earlier tracker, not adopted yet, or what could not be removed.
        let made = DirBuilder::new().mode(0o700).create(&directory);
        made.map_err(|source| SelectionError::Directory { path: directory.clone(), source })?;
        let pinned = || -> Result<(), SelectionError> {
            // First of all: what is not whole without it is not kept.
            if let Some(selector) = keep {
                About::of(selector).pin(&directory.join(ABOUT))?;
            }
            selection.pin(&directory)
        };
        if let Err(error) = pinned() {
            let _ = unpin(&directory, &[ABOUT]);
            return Err(error);
        }
        Ok(directory)
    }

    /// Removes the pins of a selection.
    pub(crate) fn unpin(&self, name: &str) {
        let directory = self.path(name);
        if let Err(error) = unpin(&directory, &[ABOUT]) {
            tracing::warn!(path = %directory.display(), %error, "the pins of a selection cannot be removed");
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.pin(name)
    }
}

/// Whether a name can be a directory's in a BPF file system, and everybody's anywhere.
pub(crate) fn check_name(name: &str) -> Result<(), String> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    match name.len() {
        0 => Err("a selection has a name".to_owned()),
        len if len > MAX_NAME_LEN => Err(format!("the name has {len} bytes; at most {MAX_NAME_LEN} are allowed")),
        _ if !name.chars().all(is_plain) => {
            Err(format!("the name `{}` has other characters than letters, digits, `-` and `_`", name.escape_debug()))
        }
        _ => Ok(()),
    }
}

/// The one value of the map `about`.
#[repr(C)]
#[derive(Clone, Copy)]
struct About {
    version: u32,
    len: u32,
    selector: [u8; Selector::MAX_LEN],
}

// SAFETY: two integers and an array of bytes without padding between them: every byte pattern is a value.
unsafe impl aya::Pod for About {}

impl About {
    const VERSION: u32 = 1;

    /// Of a selector's text. One that is longer than any that parses is cut, and will not parse.
    fn of(text: &str) -> Self {
        let mut about = About { version: Self::VERSION, len: 0, selector: [0; Selector::MAX_LEN] };
        for (to, from) in about.selector.iter_mut().zip(text.bytes()) {
            *to = from;
            about.len += 1;
        }
        about
    }

    fn pin(&self, path: &Path) -> Result<(), SelectionError> {
        let mut map = Array::<MapData, About>::create(1, 0).map_err(map_error("make"))?;
        map.set(0, self, 0).map_err(map_error("write"))?;
        let pinned = map.map().pin(path);
        pinned.map_err(|error| SelectionError::Pin { path: path.to_owned(), source: Box::new(error) })
    }

    fn read(path: &Path) -> Option<Selector> {
        let map = Map::from_map_data(MapData::from_pin(path).ok()?).ok()?;
        let about = Array::<MapData, About>::try_from(map).ok()?.get(&0, 0).ok()?;
        let text = about.selector.get(..about.len as usize).filter(|_| about.version == Self::VERSION)?;
        Selector::parse(std::str::from_utf8(text).ok()?).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_plain() {
        for name in ["web", "a", "Web_2-x", &"n".repeat(MAX_NAME_LEN)] {
            assert_eq!(check_name(name), Ok(()));
        }
        for name in ["", ".", "..", "a/b", "a.b", "a b", "ä", "a\0", &"n".repeat(MAX_NAME_LEN + 1)] {
            assert!(check_name(name).is_err(), "{name:?}");
        }
    }
}
