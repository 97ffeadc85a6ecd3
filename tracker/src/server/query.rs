//! Query strings of requests: outside bytes, turned into what is asked for.
//!
//! Unknown and repeated parameters are refused, so that a misspelt one does not silently mean "everything".

use std::borrow::Cow;
use std::net::IpAddr;
use std::path::PathBuf;

use super::answer::Refused;
use super::clock::Wall;
use crate::route::{RouteQuery, parse_address};
use crate::time::BootTime;

/// One number and what kind it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Number {
    /// Inode number of a mount namespace.
    MountNs(u32),
    /// Inode number of a net namespace.
    NetNs(u32),
    /// Id of a cgroup in the v2 hierarchy.
    Cgroup(u64),
    /// Pid in the host's pid namespace.
    Pid(u32),
}

/// What a look-up is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Subject {
    /// Whoever has this number.
    Number(Number),
    /// The containers of a pod.
    Pod {
        /// Pod namespace.
        namespace: String,
        /// Pod name.
        name: String,
    },
}

/// The moment of a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Moment {
    /// Nanoseconds since boot.
    Boot(BootTime),
    /// Wall-clock time.
    Wall(Wall),
}

/// `GET /v1/lookup`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LookupQuery {
    pub(super) subject: Subject,
    /// Absent means now.
    pub(super) at: Option<Moment>,
}

/// In which net ns a route begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Start {
    /// The host's.
    Host,
    /// The one with this inode number.
    Netns(u32),
    /// That of a container, by its id, the beginning of it, or its name.
    Container(String),
    /// That of a process.
    Pid(u32),
    /// The one that is mounted there.
    Path(PathBuf),
}

/// `GET /v1/route`. Interfaces are names or indices, which are looked up in the net ns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RouteAsked {
    pub(super) start: Start,
    pub(super) query: RouteQuery,
    pub(super) input: Option<String>,
    pub(super) output: Option<String>,
    /// Whether the kernel is to be asked whatever is known.
    pub(super) fresh: bool,
    /// Whether to go on with each change of the answer.
    pub(super) watch: bool,
}

/// `GET /v1/containers` and `/v1/watch`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ListQuery {
    /// Also what is over, and every kind.
    pub(super) all: bool,
    /// Only this kind.
    pub(super) kind: Option<crate::container::Kind>,
    /// Only what this selector picks.
    pub(super) selector: Option<String>,
    /// Also what the filter excludes.
    pub(super) excluded: bool,
}

pub(super) fn lookup(query: &str) -> Result<LookupQuery, Refused> {
    let [mntns, netns, cgroup, pid, pod, at] = parameters(query, ["mntns", "netns", "cgroup", "pid", "pod", "at"])?;
    let subject = match (pod, &mntns, &netns, &cgroup, &pid) {
        (Some(pod), None, None, None, None) => parse_pod(&pod)?,
        (Some(_), ..) => return Err(Refused::bad("ask about a pod or about a number, not both")),
        (None, ..) => Subject::Number(one_number(mntns, netns, cgroup, pid)?),
    };
    Ok(LookupQuery { subject, at: at.map(|at| moment(&at)).transpose()? })
}

fn parse_pod(text: &str) -> Result<Subject, Refused> {
    // A namespace of Kubernetes contains no slash.
    let parts = text.split_once('/').filter(|(namespace, name)| !namespace.is_empty() && !name.is_empty());
    let (namespace, name) = parts.ok_or_else(|| {
        Refused::bad(format!("pod={} is not a pod", text.escape_debug()))
            .remedy("give its namespace and its name, for example default/web")
    })?;
    Ok(Subject::Pod { namespace: namespace.to_owned(), name: name.to_owned() })
}

/// `GET /v1/explain?pid=|mntns=`.
pub(super) fn explain(query: &str) -> Result<Number, Refused> {
    let [mntns, pid] = parameters(query, ["mntns", "pid"])?;
    one_number(mntns, None, None, pid)
}

/// `GET /v1/route?dst=`
pub(super) fn route(query: &str) -> Result<RouteAsked, Refused> {
    let [dst, src, netns, container, pid, path] =
        parameters_of(query, ROUTE, ["dst", "src", "netns", "container", "pid", "path"])?;
    let [translated, iif, oif, mark, uid, tos] =
        parameters_of(query, ROUTE, ["translated", "iif", "oif", "mark", "uid", "tos"])?;
    let [proto, sport, dport, fresh, watch] =
        parameters_of(query, ROUTE, ["proto", "sport", "dport", "fresh", "watch"])?;
    let dst = dst.ok_or_else(|| Refused::bad("say where to").remedy("for example ?dst=8.8.8.8"))?;
    let start = match (netns, container, pid, path) {
        (None, None, None, None) => Start::Host,
        (Some(inode), None, None, None) => Start::Netns(number("netns", &inode)?),
        (None, Some(id), None, None) => Start::Container(id.into_owned()),
        (None, None, Some(pid), None) => Start::Pid(number("pid", &pid)?),
        (None, None, None, Some(path)) => Start::Path(PathBuf::from(path.into_owned())),
        _ => return Err(Refused::bad("name one net ns").remedy("by one of netns, container, pid and path")),
    };
    let given = |name, text: Text<'_>| text.map(|text| number(name, &text)).transpose();
    let port = |name, text: Text<'_>| text.map(|text| number(name, &text)).transpose();
    let query = RouteQuery {
        translated: translated.map(|text| address("translated", &text)).transpose()?,
        source: src.map(|text| address("src", &text)).transpose()?,
        mark: given("mark", mark)?,
        uid: given("uid", uid)?,
        tos: tos.map_or(Ok(0), |text| number("tos", &text))?,
        protocol: proto.map(|text| number("proto", &text)).transpose()?,
        source_port: port("sport", sport)?,
        destination_port: port("dport", dport)?,
        ..RouteQuery::to(address("dst", &dst)?)
    };
    let (input, output) = (iif.map(Cow::into_owned), oif.map(Cow::into_owned));
    Ok(RouteAsked { start, query, input, output, fresh: flag("fresh", fresh)?, watch: flag("watch", watch)? })
}

const ROUTE: &[&str] = &[
    "dst",
    "src",
    "netns",
    "container",
    "pid",
    "path",
    "translated",
    "iif",
    "oif",
    "mark",
    "uid",
    "tos",
    "proto",
    "sport",
    "dport",
    "fresh",
    "watch",
];

fn address(name: &str, text: &str) -> Result<IpAddr, Refused> {
    parse_address(text).map_err(|error| {
        let mut refused = Refused::bad(format!("{name}: {error}"));
        refused.refusal.column = Some(error.column);
        refused
    })
}

fn flag(name: &str, text: Text<'_>) -> Result<bool, Refused> {
    match text.as_deref() {
        None | Some("0" | "false") => Ok(false),
        // `?all` and `?all=` read like yes.
        Some("" | "1" | "true") => Ok(true),
        Some(other) => Err(Refused::bad(format!("{name}={} is neither true nor false", other.escape_debug()))),
    }
}

/// `GET /v1/containers`
pub(super) fn list(query: &str) -> Result<ListQuery, Refused> {
    let [all, kind, selector, excluded] = parameters(query, ["all", "kind", "selector", "excluded"])?;
    Ok(ListQuery { excluded: flag("excluded", excluded)?, ..picked(all, kind, selector)? })
}

/// `GET /v1/watch`, which follows what is published alone.
pub(super) fn watch(query: &str) -> Result<ListQuery, Refused> {
    let [all, kind, selector] = parameters(query, ["all", "kind", "selector"])?;
    picked(all, kind, selector)
}

fn picked(all: Text<'_>, kind: Text<'_>, selector: Text<'_>) -> Result<ListQuery, Refused> {
    let all = flag("all", all)?;
    let kind = kind.map(|kind| parse_kind(&kind)).transpose()?;
    let selector = selector.filter(|text| !text.trim().is_empty()).map(Cow::into_owned);
    Ok(ListQuery { all, kind, selector, excluded: false })
}

pub(super) fn none(query: &str) -> Result<(), Refused> {
    parameters(query, []).map(|[]| ())
}

/// The values of the parameters `names`, in their order; others are refused.
fn parameters<'q, const N: usize>(query: &'q str, names: [&str; N]) -> Result<[Option<Cow<'q, str>>; N], Refused> {
    parameters_of(query, &names, names)
}

/// The values of the parameters `names`, in their order; what is not `known` is refused.
fn parameters_of<'q, const N: usize>(
    query: &'q str,
    known: &[&str],
    names: [&str; N],
) -> Result<[Option<Cow<'q, str>>; N], Refused> {
    let mut values = [const { None }; N];
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        let Some(index) = names.iter().position(|wanted| *wanted == name) else {
            if known.contains(&&*name) {
                continue;
            }
            let error = format!("there is no parameter `{}` here", name.escape_debug());
            let known =
                if known.is_empty() { "it takes none".to_owned() } else { format!("it takes {}", known.join(", ")) };
            return Err(Refused::bad(error).remedy(known));
        };
        if values[index].replace(value).is_some() {
            return Err(Refused::bad(format!("the parameter `{}` is given twice", names[index])));
        }
    }
    Ok(values)
}

type Text<'q> = Option<Cow<'q, str>>;

fn one_number(mntns: Text<'_>, netns: Text<'_>, cgroup: Text<'_>, pid: Text<'_>) -> Result<Number, Refused> {
    match (mntns, netns, cgroup, pid) {
        (Some(text), None, None, None) => number("mntns", &text).map(Number::MountNs),
        (None, Some(text), None, None) => number("netns", &text).map(Number::NetNs),
        (None, None, Some(text), None) => number("cgroup", &text).map(Number::Cgroup),
        (None, None, None, Some(text)) => number("pid", &text).map(Number::Pid),
        _ => Err(Refused::bad("ask about exactly one number").remedy("for example ?mntns=4026532253")),
    }
}

fn number<T: std::str::FromStr>(name: &str, text: &str) -> Result<T, Refused> {
    let refused = || Refused::bad(format!("{name}={} is not a number in range", text.escape_debug()));
    text.parse().map_err(|_| refused())
}

/// Digits are nanoseconds since boot, all else is RFC 3339.
fn moment(text: &str) -> Result<Moment, Refused> {
    if let Ok(nanoseconds) = text.parse() {
        return Ok(Moment::Boot(BootTime(nanoseconds)));
    }
    // A `+` that the client did not encode arrives as a blank; RFC 3339 has a blank nowhere else.
    let text = text.replace(' ', "+");
    text.parse().map(Moment::Wall).map_err(|error| {
        Refused::bad(format!("at={} is no moment: {error}", text.escape_debug()))
            .remedy("give RFC 3339 such as 2026-01-31T12:00:00Z, or nanoseconds since boot")
    })
}

fn parse_kind(text: &str) -> Result<crate::container::Kind, Refused> {
    let known = serde::de::value::StrDeserializer::<serde::de::value::Error>::new(text);
    serde::Deserialize::deserialize(known).map_err(|_| {
        Refused::bad(format!("there is no kind `{}`", text.escape_debug()))
            .remedy("the kinds are container, sandbox, unmanaged and sandboxed-process")
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::container::Kind;

    #[test]
    fn a_lookup_names_one_number_and_perhaps_a_moment() {
        let ask = |query: &str| lookup(query).unwrap();
        let subject = Subject::Number(Number::MountNs(4026532253));
        assert_eq!(ask("mntns=4026532253"), LookupQuery { subject, at: None });
        let then = ask("pid=7&at=123").at;
        assert_eq!(then, Some(Moment::Boot(BootTime(123))));
        for (spelling, moment) in [
            ("2026-01-31T12:00:00.000000001Z", "2026-01-31T12:00:00.000000001Z"),
            ("2026-01-31T14:00:00%2B02:00", "2026-01-31T12:00:00Z"),
            ("2026-01-31T14:00:00+02:00", "2026-01-31T12:00:00Z"),
        ] {
            let expected = Some(Moment::Wall(moment.parse().unwrap()));
            assert_eq!(ask(&format!("cgroup=1&at={spelling}")).at, expected, "{spelling}");
        }
    }

    #[test]
    fn a_pod_is_its_namespace_and_its_name() {
        let subject = |query: &str| lookup(query).unwrap().subject;
        let web = Subject::Pod { namespace: "shop".into(), name: "web".into() };
        assert_eq!(subject("pod=shop/web"), web);
        assert_eq!(subject("pod=shop%2Fweb&at=1"), web);
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_its_name() {
        for (query, expected) in [
            ("", "exactly one"),
            ("mntns=1&pid=2", "exactly one"),
            ("pod=shop/web&pid=2", "not both"),
            ("pod=web", "pod=web"),
            ("pod=shop/", "pod=shop/"),
            ("mntns=-1", "mntns=-1"),
            ("mntns=4294967296", "in range"),
            ("pid=1&pid=2", "twice"),
            ("pid=1&att=3", "`att`"),
            ("pid=1&at=yesterday", "at=yesterday"),
        ] {
            let error = lookup(query).unwrap_err().refusal.error;
            assert!(error.contains(expected), "{query}: {error}");
        }
    }

    #[test]
    fn lists_take_flags_kinds_and_selectors() {
        let query = list("all=&kind=sandboxed-process&selector=app%3Dweb%2Cpod%20in%20(a)").unwrap();
        assert!(query.all);
        assert_eq!(query.kind, Some(Kind::SandboxedProcess));
        assert_eq!(query.selector.as_deref(), Some("app=web,pod in (a)"));
        assert_eq!(list("all=false&selector=").unwrap(), ListQuery::default());
        assert!(list("kind=pod").unwrap_err().refusal.remedy.unwrap().contains("sandbox"));
        assert!(list("all=maybe").is_err());
        assert!(none("x=1").is_err() && none("").is_ok());
    }

    #[test]
    fn a_route_says_where_to_and_where_it_begins() {
        let asked = route("dst=%3A%3Affff%3A8.8.8.8&container=web&mark=7&iif=eth0&dport=53&proto=17&fresh").unwrap();
        assert_eq!(asked.start, Start::Container("web".into()));
        assert_eq!((asked.input.as_deref(), asked.output, asked.fresh, asked.watch), (Some("eth0"), None, true, false));
        let query = RouteQuery { mark: Some(7), protocol: Some(17), destination_port: Some(53), ..asked.query };
        assert_eq!(asked.query, query);
        assert_eq!(asked.query.normal().destination.to_string(), "8.8.8.8");
        assert_eq!(route("dst=::1").unwrap().start, Start::Host);
        assert_eq!(route("dst=::1&path=/run/netns/x").unwrap().start, Start::Path("/run/netns/x".into()));
        for (query, expected) in [
            ("", "where to"),
            ("dst=8.8.8", "dst"),
            ("dst=::1&netns=1&pid=2", "one net ns"),
            ("dst=::1&mark=x", "mark=x"),
            ("dst=::1&sport=65536", "sport=65536"),
            ("dst=::1&gateway=1", "`gateway`"),
            ("dst=::1&dst=::2", "twice"),
            ("dst=::1&fresh=maybe", "fresh=maybe"),
        ] {
            let error = route(query).unwrap_err().refusal.error;
            assert!(error.contains(expected), "{query}: {error}");
        }
        assert_eq!(route("dst=8.8.8.300").unwrap_err().refusal.column, Some(9));
    }

    proptest! {
        #[test]
        fn no_query_string_panics(query in "\\PC*") {
            let _ = (lookup(&query), explain(&query), list(&query), none(&query), route(&query));
        }

        #[test]
        fn no_almost_right_query_panics(
            name in "mntns|netns|cgroup|pid|pod|at|all|kind|selector",
            value in "[-+0-9TZ:.%a-z ]{0,40}",
        ) {
            let query = format!("{name}={value}&at={value}");
            let _ = (lookup(&query), explain(&query), list(&query));
        }
    }
}
