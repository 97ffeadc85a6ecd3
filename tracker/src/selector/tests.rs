//! What selectors pick, how they are printed, and where their errors point.

use proptest::prelude::*;

use super::*;
use crate::container::{Cgroup, Domain, Image, Namespaces, Pod, Runtime};
use crate::fact::SourceSet;

fn labels(labels: &[(&str, &str)]) -> Labels {
    labels.iter().copied().collect()
}

/// A running container with everything that a selector can ask for.
fn web() -> Container {
    Container {
        id: "5b0c".into(),
        domain: Domain::Host,
        instance: 1,
        name: Some("web".into()),
        kind: Kind::Container,
        state: State::Running,
        grade: None,
        sequence: 1,
        awaiting: SourceSet::EMPTY,
        sources: SourceSet::EMPTY,
        runtime: Runtime { name: Some("containerd".into()), ..Runtime::default() },
        image: Some(Image {
            name: Some("docker.io/library/nginx:1.25".into()),
            id: None,
            digest: Some("sha256:abc".into()),
        }),
        pod: Some(Pod {
            name: Some("web-0".into()),
            namespace: Some("shop".into()),
            labels: Some(labels(&[("app", "web")])),
            ..Pod::default()
        }),
        labels: labels(&[("tier", "front"), ("odd,key", "a*b"), ("empty", "")]),
        annotations: Labels::default(),
        details: Default::default(),
        parent: None,
        task: None,
        namespaces: Namespaces::default(),
        generation: None,
        host_network: None,
        cgroup: Cgroup::default(),
        bundle: None,
        created_at: None,
        started_at: None,
        exited_at: None,
        exit: None,
    }
}

#[test]
fn each_form_of_a_term_picks_what_it_says() {
    let yes = [
        "",
        "  ",
        "name=web",
        "name==web",
        " name = web , id=5b0c ",
        "name!=db",
        "name in (db, web)",
        "name notin (db,cache)",
        "name",
        "label:tier",
        "!label:absent",
        "! label:absent",
        "label:absent!=x",
        "label:absent notin (x)",
        "label:empty",
        "label:empty=",
        "id=5b*",
        "id=?b0?",
        "image=*nginx:1.25",
        "image=*/nginx:*",
        "image-digest=sha256:abc",
        "runtime=containerd",
        "pod=web-0,pod-namespace=shop",
        "kind=container,state=running",
        "state in (paused,running)",
        "kind=*",
        "label:tier=front",
        "pod-label:app=web",
        r"label:odd\,key=a\*b",
        r"label:odd\,key=a*b",
    ];
    let no = [
        "name=we",
        "name=WEB",
        "name!=web",
        "name=web,name=db",
        "name in (db)",
        "name notin (web)",
        "!name",
        "label:absent",
        "label:absent=",
        "label:tier=",
        r"name=\*",
        "id=?",
        "kind=sandbox",
        "state!=running",
        "pod-label:tier",
    ];
    for text in yes {
        assert!(Selector::parse(text).unwrap().matches(&web()), "{text}");
    }
    for text in no {
        assert!(!Selector::parse(text).unwrap().matches(&web()), "{text}");
    }
}

#[test]
fn errors_point_at_their_column() {
    #[track_caller]
    fn check(text: &str, column: usize, problem: Problem) {
        let error = Selector::parse(text).unwrap_err();
        assert_eq!((error.column(), error.problem()), (column, &problem), "{text}");
    }
    check("nme=web", 1, Problem::UnknownKey);
    check("name=web,", 10, Problem::KeyExpected);
    check(",", 1, Problem::KeyExpected);
    check("=web", 1, Problem::KeyExpected);
    check("name=web id=7", 10, Problem::EndExpected);
    check("name is web", 6, Problem::OperatorExpected);
    check("name!web", 6, Problem::OperatorExpected);
    check("name in web", 9, Problem::ListExpected);
    check("name in ()", 10, Problem::ValueExpected);
    check("name in (a,)", 12, Problem::ValueExpected);
    check("name in (a b)", 12, Problem::ListEndExpected);
    check("name in (a", 11, Problem::ListEndExpected);
    check("!name=web", 6, Problem::EndExpected);
    check("label:=x", 7, Problem::LabelKeyExpected);
    check("name=a\\", 8, Problem::EscapeExpected);
    check("name=ä,nme", 8, Problem::UnknownKey);
    const STATES: &[&str] = &["provisional", "created", "running", "paused", "exited", "aborted"];
    check("state=runing", 7, Problem::ImpossibleValue { possible: STATES });
    check(&"a".repeat(Selector::MAX_LEN + 1), 1, Problem::TooLong);
}

#[test]
fn an_error_shows_the_text_with_a_caret_and_nothing_that_a_terminal_obeys() {
    let error = Selector::parse("name=\u{1b}[2Jweb,nme").unwrap_err();
    let lines: Vec<_> = error.to_string().lines().map(str::to_owned).collect();
    assert_eq!(lines[1], "  name=\u{fffd}[2Jweb,nme");
    assert_eq!(lines[2], "               ^");
}

#[test]
fn a_selector_is_a_string_in_json() {
    let selector: Selector = serde_json::from_str(r#""label:app in (a,b)""#).unwrap();
    assert_eq!(serde_json::to_string(&selector).unwrap(), r#""label:app in (a,b)""#);
    serde_json::from_str::<Selector>(r#""nme""#).unwrap_err();
}

#[test]
fn wildcards_that_invite_backtracking_end_soon() {
    let selector = Selector::parse(&format!("name={}b", "a*".repeat(1000))).unwrap();
    let container = Container { name: Some("a".repeat(4096).into()), ..web() };
    assert!(!selector.matches(&container));
}

/// The obvious definition, exponential in the number of `*`.
fn glob(pattern: &[char], text: &[char]) -> bool {
    match pattern {
        [] => text.is_empty(),
        ['*', rest @ ..] => (0..=text.len()).any(|taken| glob(rest, &text[taken..])),
        [first, rest @ ..] => {
            text.split_first().is_some_and(|(c, text)| (first == c || *first == '?') && glob(rest, text))
        }
    }
}

fn any_selector() -> impl Strategy<Value = Selector> {
    let plain = prop::sample::select(PLAIN_KEYS.iter().map(|(_, key)| key.clone()).collect::<Vec<_>>());
    let label = "\\PC{1,6}".prop_map(|key| Key::Label(key.as_str().into()));
    let pod_label = any::<String>()
        .prop_filter("a label has a key", |key| !key.is_empty())
        .prop_map(|key| Key::PodLabel(key.as_str().into()));
    let token = prop_oneof![
        4 => any::<char>().prop_map(glob::Token::Literal),
        2 => prop::sample::select(vec![',', '(', ')', ' ', '=', '!', '\\', '*', '?']).prop_map(glob::Token::Literal),
        1 => Just(glob::Token::AnyOne),
        1 => Just(glob::Token::AnyText),
    ];
    let pattern = prop::collection::vec(token, 1..8).prop_map(Pattern::new);
    let patterns = prop::collection::vec(pattern, 1..4).prop_map(Vec::into_boxed_slice);
    let test = prop_oneof![
        Just(Test::Known),
        Just(Test::Unknown),
        patterns.clone().prop_map(Test::In),
        patterns.prop_map(Test::NotIn),
    ];
    let term = (prop_oneof![plain, label, pod_label], test).prop_map(|(key, test)| {
        let takes_any = key.closed_list().is_none();
        Term { key, test: if takes_any { test } else { Test::Known } }
    });
    prop::collection::vec(term, 0..5).prop_map(|terms| Selector { terms: terms.into() })
}

proptest! {
    #[test]
    fn any_text_parses_or_points_into_itself(text in "\\PC*|[a-z!=,() *?\\\\:]{0,40}") {
        match Selector::parse(&text) {
            Ok(selector) => { selector.matches(&web()); }
            Err(error) => prop_assert!(error.column() <= text.chars().count() + 1),
        }
    }

    #[test]
    fn what_is_printed_parses_to_the_same(selector in any_selector()) {
        prop_assert_eq!(Selector::parse(&selector.to_string()).unwrap(), selector);
    }

    #[test]
    fn wildcards_match_as_defined(pattern in "[ab*?]{0,8}", text in "[ab]{0,10}") {
        let selector = Selector::parse(&format!("name={pattern}")).unwrap();
        let container = Container { name: Some(text.as_str().into()), ..web() };
        let chars = |text: &str| text.chars().collect::<Vec<_>>();
        prop_assert_eq!(selector.matches(&container), glob(&chars(&pattern), &chars(&text)));
    }
}
