//! Which unix sockets are listened on, as `/proc/<pid>/net/unix` shows them for that process's net namespace. Pure.
//!
//! The kernel prints a socket's path as it is, line breaks included, so that whoever binds a socket can write lines of its
//! own into this list. That is no harm: a line only says where to look, and who listens there is asked when connecting.

/// A stream socket with a path that somebody listens on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Listening<'a> {
    /// The socket's own inode, as descriptors of it show; not the file's.
    pub(super) inode: u64,
    /// Where it was bound, as seen from there.
    pub(super) path: &'a [u8],
}

/// `__SO_ACCEPTCON`: somebody called `listen`.
const ACCEPTS: u64 = 0x1_0000;
/// `SOCK_STREAM`.
const STREAM: u64 = 1;

/// What a line shows, if it is of a stream socket that is listened on. Abstract addresses, which anybody may take, and
/// relative paths, of which nobody knows what they are relative to, are none.
pub(super) fn parse(line: &[u8]) -> Option<Listening<'_>> {
    let mut rest = line;
    let mut field = || {
        rest = rest.trim_ascii_start();
        let (field, after) = rest.split_at(rest.iter().position(|byte| *byte == b' ')?);
        rest = after;
        std::str::from_utf8(field).ok()
    };
    let hex = |field: &str| u64::from_str_radix(field, 16).ok();
    // Num: RefCount Protocol Flags Type St Inode Path
    let (_, _, _) = (field()?, field()?, field()?);
    let (flags, kind, _) = (hex(field()?)?, hex(field()?)?, field()?);
    let inode = field()?.parse().ok()?;
    let path = rest.strip_prefix(b" ").filter(|path| path.first() == Some(&b'/'))?;
    (flags & ACCEPTS != 0 && kind == STREAM).then_some(Listening { inode, path })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(line: &str) -> Option<(u64, String)> {
        parse(line.as_bytes()).map(|found| (found.inode, String::from_utf8_lossy(found.path).into_owned()))
    }

    #[test]
    fn only_stream_sockets_with_a_path_that_are_listened_on_are_shown() {
        for (line, expected) in [
            ("Num       RefCount Protocol Flags    Type St Inode Path", None),
            ("00000000b6976cc1: 00000002 00000000 00010000 0001 01 18845993 /run/a.sock", Some("/run/a.sock")),
            ("00000000b6976cc1: 00000002 00000000 00010000 0001 01 18845993 /run/a  b", Some("/run/a  b")),
            // Connected, a datagram socket's, without a name, abstract, relative, cut off.
            ("00000000b6976cc1: 00000003 00000000 00000000 0001 03 18845993 /run/a.sock", None),
            ("00000000b6976cc1: 00000002 00000000 00010000 0005 01 18845993 /run/a.sock", None),
            ("00000000b6976cc1: 00000002 00000000 00010000 0001 01 18845993", None),
            ("00000000b6976cc1: 00000002 00000000 00010000 0001 01 18845993 @/run/a.sock", None),
            ("00000000b6976cc1: 00000002 00000000 00010000 0001 01 18845993 a.sock", None),
            ("00000000b6976cc1: 00000002 00000000 00010000 0001", None),
            ("ck", None),
            ("", None),
        ] {
            assert_eq!(shown(line), expected.map(|path| (18_845_993, path.to_owned())), "{line:?}");
        }
        // The inode is padded to five characters.
        let short = "00000000b6976cc1: 00000002 00000000 00010000 0001 01    42 /a";
        assert_eq!(shown(short), Some((42, "/a".to_owned())));
    }
}
