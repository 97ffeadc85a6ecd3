//! What was found: which sockets are used, for whom their answers speak, and which are refused and why. Pure.
//!
//! ```text
//!  sighted ─▶ used ──── not sighted for long ─▶ gone (its line stays for one more look)
//!     └─────▶ refused ─ not sighted any more ─▶ gone
//! ```

use std::collections::{HashMap, HashSet, VecDeque};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::eyes::Sighting;
use super::{Api, Origin};
use crate::container::Domain;
use crate::source::endpoint::Endpoint;
use crate::source::peer::FileId;

/// Sockets that are used at a time, and those of one user among them for one kind of runtime. Who has more shall name
/// those that count in the configuration.
const MAX_USED: usize = 64;
const MAX_OF_USER: usize = 2;
/// Sockets that have gone and may come back; further ones displace the oldest.
const MAX_FORMER: usize = 64;
/// Refusals that are told.
const MAX_REFUSED: usize = 32;
/// Bytes of a path that a socket's address has room for.
const MAX_PATH: usize = 107;

/// A socket of one kind.
pub(super) type Place = (Api, PathBuf);

/// See the module.
#[derive(Debug)]
pub(super) struct Book {
    /// How long a socket that has gone stays in the list: a daemon that is restarted keeps its connection's history.
    forget_after: Duration,
    used: HashMap<Place, Used>,
    refused: HashMap<Place, Refused>,
    /// Went at the last look.
    gone: Vec<Place>,
    /// Where the host's were that have gone.
    former: VecDeque<PathBuf>,
}

#[derive(Clone, Copy, Debug)]
struct Used {
    domain: Domain,
    origin: Origin,
    seen_at: Instant,
}

/// A socket that is not used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refused {
    pub(super) origin: Origin,
    pub(super) why: String,
}

/// What is said about one sighting: whom it may speak for.
pub(super) type Verdict = Result<Domain, String>;

impl Book {
    pub(super) fn new(forget_after: Duration) -> Self {
        let (used, refused, gone, former) = Default::default();
        Self { forget_after, used, refused, gone, former }
    }

    /// Takes in one look: what was sighted, each with its verdict, and the files of the configured sockets, which are used
    /// whatever was found. Returns the places whose lines nobody needs any more.
    pub(super) fn look(
        &mut self,
        now: Instant,
        configured: &HashSet<(Api, FileId)>,
        sighted: impl IntoIterator<Item = (Verdict, Sighting)>,
    ) -> Vec<Place> {
        let mut files: HashMap<(Api, FileId), Option<PathBuf>> = configured.iter().map(|file| (*file, None)).collect();
        self.refused.clear();
        for (verdict, Sighting { api, path, origin, file, .. }) in sighted {
            let place = (api, path);
            // One socket may have several paths, by links and by mounts of its directory, and may be sighted twice.
            if let Some(first) = files.get(&(api, file.id)) {
                if first.as_ref() != Some(&place.1) {
                    self.used.remove(&place);
                }
                continue;
            }
            files.insert((api, file.id), Some(place.1.clone()));
            match verdict.and_then(|domain| self.room_for(&place, domain)) {
                Ok(domain) => {
                    self.used.insert(place, Used { domain, origin, seen_at: now });
                }
                Err(why) => {
                    self.used.remove(&place);
                    if self.refused.len() < MAX_REFUSED {
                        self.refused.insert(place, Refused { origin, why });
                    }
                }
            }
        }
        let is_over = |used: &Used| now.duration_since(used.seen_at) > self.forget_after;
        let gone: Vec<(Place, Used)> = self.used.extract_if(|_, used| is_over(used)).collect();
        let of_host = gone.iter().filter(|(_, used)| used.domain == Domain::Host);
        let of_host: Vec<PathBuf> = of_host.map(|((_, path), _)| path.clone()).collect();
        self.former.retain(|path| !of_host.contains(path));
        self.former.extend(of_host);
        self.former.drain(..self.former.len().saturating_sub(MAX_FORMER));
        std::mem::replace(&mut self.gone, gone.into_iter().map(|(place, _)| place).collect())
    }

    /// Where the host's sockets are and were.
    pub(super) fn hosts_places(&self) -> Vec<PathBuf> {
        let used = self.used.iter().filter(|(_, used)| used.domain == Domain::Host);
        used.map(|((_, path), _)| path).chain(&self.former).cloned().collect()
    }

    fn room_for(&self, place: &Place, domain: Domain) -> Result<Domain, String> {
        let others = || self.used.iter().filter(|(other, _)| *other != place);
        if others().count() >= MAX_USED {
            return Err(format!("{MAX_USED} others are used already; the configuration may name those that count"));
        }
        let of_domain = |(other, used): &(&Place, &Used)| other.0 == place.0 && used.domain == domain;
        if domain != Domain::Host && others().filter(of_domain).count() >= MAX_OF_USER {
            return Err(format!("{MAX_OF_USER} others of the same owner are used already"));
        }
        Ok(domain)
    }

    /// The sockets of one kind that are used.
    pub(super) fn used(&self, api: Api) -> Vec<Endpoint> {
        let of_kind = self.used.iter().filter(|((kind, _), _)| *kind == api);
        let endpoint =
            |(place, used): (&Place, &Used)| Endpoint { path: place.1.clone(), domain: used.domain, is_expected: true };
        let mut all: Vec<Endpoint> = of_kind.map(endpoint).collect();
        all.sort_by(|one, other| one.path.cmp(&other.path));
        all
    }

    /// Where the used ones come from.
    pub(super) fn origins(&self) -> impl Iterator<Item = (&Place, Origin)> {
        self.used.iter().map(|(place, used)| (place, used.origin))
    }

    pub(super) fn refused(&self) -> impl Iterator<Item = (&Place, &Refused)> {
        self.refused.iter()
    }
}

/// For whom what was sighted may speak, by its file and by where its listener is; `nested` says whose a mount namespace is
/// where that is allowed. Whether it is so is checked again when connecting, by what the kernel recorded.
pub(super) fn judge(sighting: &Sighting, nested: impl Fn(u32) -> Result<Domain, String>) -> Verdict {
    let path = sighting.path.to_str().filter(|path| !path.chars().any(char::is_control));
    let Some(path) = path else { return Err("its path has control characters, or is no text".into()) };
    if path.len() > MAX_PATH {
        return Err(format!("its path has more than {MAX_PATH} bytes, which no program can connect to"));
    }
    match (sighting.apart, sighting.file.uid) {
        (None, 0) => Ok(Domain::Host),
        (None, uid) => Ok(Domain::User(uid)),
        (Some(apart), 0) if apart.uid == 0 => nested(apart.mntns),
        (Some(apart), uid) if apart.uid == uid => Ok(Domain::User(uid)),
        (Some(apart), uid) => Err(format!("its file is uid {uid}'s, and its listener runs as uid {}", apart.uid)),
    }
}

/// A path as people may see it.
pub(super) fn shown(path: &Path) -> String {
    match path.to_str() {
        Some(path) if !path.chars().any(char::is_control) => path.to_owned(),
        _ => path.to_string_lossy().escape_debug().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::eyes::{Apart, SocketFile};
    use super::*;

    fn sighting(path: &str, uid: u32, inode: u64) -> Sighting {
        Sighting {
            api: Api::Docker,
            path: path.into(),
            origin: Origin::Name,
            has_telling_name: true,
            file: SocketFile { id: (1, inode), uid },
            apart: None,
        }
    }

    fn judged(sighting: Sighting) -> (Verdict, Sighting) {
        (judge(&sighting, |_| Err("nested".into())), sighting)
    }

    fn book() -> Book {
        Book::new(Duration::from_secs(60))
    }

    fn used(book: &Book) -> Vec<(String, Domain)> {
        let used = book.used(Api::Docker).into_iter();
        used.map(|endpoint| (endpoint.path.display().to_string(), endpoint.domain)).collect()
    }

    #[test]
    fn a_socket_speaks_for_its_owner() {
        for (uid, apart, expected) in [
            (0, None, Ok(Domain::Host)),
            (1000, None, Ok(Domain::User(1000))),
            (1000, Some(1000), Ok(Domain::User(1000))),
            (0, Some(0), Err("nested")),
            (0, Some(1000), Err("its file is uid 0's, and its listener runs as uid 1000")),
        ] {
            let apart = apart.map(|uid| Apart { uid, mntns: 7 });
            let sighting = Sighting { apart, ..sighting("/tmp/docker.sock", uid, 1) };
            assert_eq!(judge(&sighting, |_| Err("nested".into())), expected.map_err(str::to_owned));
        }
        for path in ["/tmp/a\nb/docker.sock", "/tmp/\u{1b}[2J/docker.sock", &format!("/{}", "x".repeat(107))] {
            assert!(judge(&sighting(path, 0, 1), |_| Err("nested".into())).is_err(), "{path:?}");
        }
    }

    #[test]
    fn one_file_is_one_socket_whatever_leads_there() {
        let (mut book, now) = (book(), Instant::now());
        let two = || ["/run/docker.sock", "/var/run/docker.sock"].map(|path| judged(sighting(path, 0, 1)));
        book.look(now, &HashSet::new(), two());
        assert_eq!(used(&book), [("/run/docker.sock".to_owned(), Domain::Host)]);
        let configured = HashSet::from([(Api::Docker, (1, 1))]);
        book.look(now, &configured, two());
        assert_eq!(used(&book), [], "the configuration has it");
    }

    #[test]
    fn what_has_gone_for_long_leaves_and_its_line_one_look_later() {
        let (mut book, now) = (book(), Instant::now());
        let nothing = HashSet::new();
        let soon = now + Duration::from_secs(59);
        book.look(now, &nothing, [judged(sighting("/run/docker.sock", 0, 1))]);
        assert!(book.look(soon, &nothing, []).is_empty());
        assert_eq!(used(&book).len(), 1);
        // Another file in its place is the same socket to whoever connects.
        book.look(soon, &nothing, [judged(sighting("/run/docker.sock", 0, 2))]);
        let late = soon + Duration::from_secs(61);
        assert!(book.look(late, &nothing, []).is_empty());
        assert_eq!(used(&book), []);
        assert_eq!(book.look(late, &nothing, []), [(Api::Docker, PathBuf::from("/run/docker.sock"))]);
        assert!(book.look(late, &nothing, []).is_empty());
        assert_eq!(book.hosts_places(), [PathBuf::from("/run/docker.sock")], "where it was is remembered");
    }

    #[test]
    fn the_latest_that_have_gone_are_remembered_and_no_users() {
        let (mut book, nothing) = (book(), HashSet::new());
        for n in 0..10 * MAX_FORMER as u64 {
            let now = Instant::now() + Duration::from_secs(100 * n);
            let uid = u32::from(n % 2 == 0);
            book.look(now, &nothing, [judged(sighting(&format!("/{n}/docker.sock"), uid, n))]);
        }
        let (places, last) = (book.hosts_places(), 10 * MAX_FORMER - 3);
        assert_eq!(places.len(), MAX_FORMER + 1, "and one that is used");
        assert!(places.contains(&PathBuf::from(format!("/{last}/docker.sock"))));
    }

    #[test]
    fn a_file_that_changes_hands_speaks_for_its_new_owner() {
        let (mut book, now, nothing) = (book(), Instant::now(), HashSet::new());
        book.look(now, &nothing, [judged(sighting("/run/docker.sock", 0, 1))]);
        book.look(now, &nothing, [judged(sighting("/run/docker.sock", 1000, 2))]);
        assert_eq!(used(&book), [("/run/docker.sock".to_owned(), Domain::User(1000))]);
    }

    #[test]
    fn nobody_fills_the_list() {
        let (mut book, now, nothing) = (book(), Instant::now(), HashSet::new());
        let many = |uid: u32, from: u64, number: u64| {
            (from..from + number).map(move |inode| judged(sighting(&format!("/{uid}/{inode}/docker.sock"), uid, inode)))
        };
        book.look(now, &nothing, many(1000, 0, 10_000).chain(many(0, 20_000, 1)));
        assert_eq!(used(&book).len(), MAX_OF_USER + 1);
        assert!(book.refused().count() == MAX_REFUSED);
        book.look(now, &nothing, many(0, 30_000, 10_000));
        assert_eq!(used(&book).len(), MAX_USED);
    }

    #[test]
    fn paths_are_shown_without_what_a_terminal_would_obey() {
        assert_eq!(shown(Path::new("/run/docker.sock")), "/run/docker.sock");
        assert_eq!(shown(Path::new("/a\n\u{1b}b")), "/a\\n\\u{1b}b");
    }
}
