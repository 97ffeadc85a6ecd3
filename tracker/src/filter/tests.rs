//! Rules, through the door: a configuration and a subject in, a decision out.

use proptest::prelude::*;

use super::*;
use crate::container::{Domain, Kind, Labels};

fn texts(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

fn config(include: &[&str], exclude: &[&str]) -> Config {
    Config { include: texts(include), exclude: texts(exclude), ..Config::default() }
}

fn filter(include: &[&str], exclude: &[&str]) -> Filter {
    Filter::new(&config(include, exclude)).unwrap()
}

fn web<'a>(annotations: &'a Labels) -> Subject<'a> {
    Subject {
        domain: Domain::Host,
        kind: Kind::Container,
        name: Some("web-1"),
        image: Some("docker.io/library/nginx:1.25"),
        pod_namespace: Some("prod"),
        pod_annotations: None,
        annotations,
        is_awaited: false,
    }
}

/// What becomes of the container as a word and the rule.
fn told(filter: &Filter, subject: Subject<'_>) -> String {
    match filter.decide(&subject) {
        Decision::Excluded(rule) => format!("excluded: {rule}"),
        Decision::Kept(Why::Included(rule)) => format!("kept: {rule}"),
        Decision::Kept(Why::Undecided(rule)) => format!("undecided: {rule}"),
        Decision::Kept(Why::NoRule) => "kept".into(),
        Decision::Kept(Why::NotTheHosts) => "not the host's".into(),
    }
}

#[test]
fn the_first_rule_that_matches_is_named_and_includes_are_asked_first() {
    let none = Labels::default();
    let check = |include: &[&str], exclude: &[&str], expected: &str| {
        assert_eq!(told(&filter(include, exclude), web(&none)), expected, "{include:?} {exclude:?}");
    };
    check(&[], &[], "kept");
    check(&["name:^db"], &[], "kept");
    check(&[], &["name:^db", "image:nginx", "name:web"], "excluded: exclude `image:nginx`");
    check(&[], &["pod-namespace:^prod$"], "excluded: exclude `pod-namespace:^prod$`");
    check(&["name:^web"], &["name:.*"], "kept: include `name:^web`");
    check(&["name:^db"], &["name:.*"], "excluded: exclude `name:.*`");
    // A colon belongs to the pattern after the first one.
    check(&[], &["image:nginx:1.25$"], "excluded: exclude `image:nginx:1.25$`");
}

#[test]
fn nothing_is_matched_by_one_pattern_alone() {
    let none = Labels::default();
    let without = Subject { pod_namespace: None, ..web(&none) };
    for (rule, expected) in [
        ("pod-namespace:.*", "kept"),
        ("pod-namespace:^", "kept"),
        ("pod-namespace:^.*$", "kept"),
        ("pod-namespace:^$", "excluded: exclude `pod-namespace:^$`"),
    ] {
        for strict in [false, true] {
            let filter = Filter::new(&Config { strict, ..config(&[], &[rule]) }).unwrap();
            assert_eq!(told(&filter, without), expected, "{rule} {strict}");
            let stated = Subject { pod_namespace: Some(""), ..without };
            assert_eq!(told(&filter, stated), expected, "{rule} {strict}");
        }
    }
    assert_eq!(told(&filter(&[], &["pod-namespace:^$"]), web(&none)), "kept");
}

#[test]
fn what_is_not_known_yet_is_kept() {
    let none = Labels::default();
    let awaited = Subject { name: None, is_awaited: true, ..web(&none) };
    // Nobody says yet that there is no name, and a name may come that keeps it.
    assert_eq!(told(&filter(&[], &["name:^$"]), awaited), "kept");
    assert_eq!(told(&filter(&["name:^web"], &["image:nginx"]), awaited), "undecided: include `name:^web`");
    assert_eq!(
        told(&filter(&["name:^web", "pod-namespace:prod"], &["image:nginx"]), awaited),
        "kept: include `pod-namespace:prod`"
    );
    assert_eq!(told(&filter(&[], &["image:nginx"]), awaited), "excluded: exclude `image:nginx`");
    let settled = Subject { is_awaited: false, ..awaited };
    assert_eq!(told(&filter(&["name:^web"], &["image:nginx"]), settled), "excluded: exclude `image:nginx`");
    // Nobody will ever say what it is called.
    let unmanaged = Subject { kind: Kind::Unmanaged, name: None, image: None, pod_namespace: None, ..web(&none) };
    assert_eq!(told(&filter(&[], &["name:^$", "image:^$", "name:.*"]), unmanaged), "kept");
}

#[test]
fn only_the_hosts_word_takes_a_container_out_of_sight() {
    let none = Labels::default();
    let all = Filter::new(&Config { exclude_sandboxes: true, annotations: true, ..config(&[], &["name:.*"]) }).unwrap();
    for kind in [Kind::Container, Kind::Sandbox] {
        let of_user = Subject { domain: Domain::User(1000), kind, ..web(&none) };
        assert_eq!(told(&all, of_user), "not the host's");
    }
}

#[test]
fn strict_patterns_match_the_whole_value() {
    let none = Labels::default();
    for (rule, loose, strict) in [
        ("name:web", true, false),
        ("name:web-.", true, true),
        ("name:web|web-1", true, true),
        ("name:^web-1$", true, true),
        ("name:b-1|w", true, false),
        // A comment must not hide the anchor.
        ("name:(?x) web-1 # the front", true, true),
        ("name:(?x) web # the front", true, false),
        // A flag of the pattern's own must not change what the anchor means.
        ("name:(?m)^web", true, false),
    ] {
        for (is_strict, expected) in [(false, loose), (true, strict)] {
            let filter = Filter::new(&Config { strict: is_strict, ..config(&[], &[rule]) }).unwrap();
            let excluded = filter.decide(&web(&none)).excluded_by().is_some();
            assert_eq!(excluded, expected, "{rule} strict: {is_strict}");
        }
    }
}

#[test]
fn sandboxes_are_decided_on_before_includes() {
    let none = Labels::default();
    let filter = Filter::new(&Config { exclude_sandboxes: true, ..config(&["name:.*"], &[]) }).unwrap();
    let sandbox = Subject { kind: Kind::Sandbox, ..web(&none) };
    assert_eq!(told(&filter, sandbox), "excluded: exclude-sandboxes");
    assert_eq!(told(&filter, web(&none)), "kept: include `name:.*`");
    assert_eq!(told(&Filter::new(&config(&[], &["name:x"])).unwrap(), sandbox), "kept");
}

#[test]
fn annotations_are_rules_where_that_is_configured() {
    let check = |annotations: &[(&str, &str)], exclude: &[&str], expected: &str| {
        let annotations: Labels = annotations.iter().copied().collect();
        let none = Labels::default();
        let filter = Filter::new(&Config { annotations: true, ..config(&["name:^db"], exclude) }).unwrap();
        let of_pod = Subject { pod_annotations: Some(&annotations), ..web(&none) };
        for subject in [of_pod, web(&annotations)] {
            assert_eq!(told(&filter, subject), expected, "{annotations:?}");
        }
        let off = Filter::new(&config(&["name:^db"], &[])).unwrap();
        assert_eq!(told(&off, of_pod), "kept");
    };
    check(&[("tracker.io/exclude", "true")], &[], "excluded: annotation `tracker.io/exclude`");
    check(&[("tracker.io/web-1.exclude", "true")], &[], "excluded: annotation `tracker.io/web-1.exclude`");
    check(&[("tracker.io/db.exclude", "true")], &[], "kept");
    check(&[("tracker.io/exclude", "yes")], &[], "kept");
    check(&[("tracker.io/include", "true")], &["name:web"], "kept: annotation `tracker.io/include`");
    let both = [("tracker.io/exclude", "true"), ("tracker.io/web-1.include", "true")];
    check(&both, &[], "kept: annotation `tracker.io/web-1.include`");
}

#[test]
fn every_bad_pattern_is_told_with_its_place() {
    let long = format!("name:{}", "a".repeat(5_000));
    let bad = Config {
        ..config(
            &["name:ok", "image:a(b"],
            &["name:x{2,1}", "name:", "color:(", "name:ok", "name:a{1000}{1000}", "name:a)|(b", &long],
        )
    };
    let BadPatterns(bad) = Filter::new(&bad).unwrap_err();
    let told: Vec<_> = bad.iter().map(|bad| (bad.list.to_string(), bad.position, bad.column)).collect();
    let expected = [
        ("include", 2, Some(8)),
        ("exclude", 1, Some(7)),
        ("exclude", 2, None),
        ("exclude", 5, None),
        ("exclude", 6, Some(7)),
        ("exclude", 7, None),
    ];
    assert_eq!(told, expected.map(|(list, position, column)| (list.to_owned(), position, column)));
    assert_eq!(bad[0].problem, "unclosed group");
    assert!(bad.iter().all(|bad| !bad.remedy.is_empty()));
    let text = BadPatterns(bad).to_string();
    assert!(
        text.starts_with("the filter has 6 bad patterns\n  include, rule 2 `image:a(b`, column 8: unclosed group (")
    );
    assert_eq!(text.lines().count(), 7, "{text}");
}

#[test]
fn an_unknown_field_is_a_warning_and_its_rule_is_left_aside() {
    let colourful = filter(&[], &["color:.*", "nginx", "namespace:^prod$", "name:^db"]);
    let warned: Vec<_> = colourful.warnings().iter().map(ToString::to_string).collect();
    assert_eq!(warned.len(), 3);
    for (warning, expected) in warned.iter().zip(["no field `color`", "names no field", "say `pod-namespace:`"]) {
        assert!(warning.contains(expected), "{warning}");
    }
    assert!(warned[1].starts_with("exclude, rule 2 `nginx`"), "{}", warned[1]);
    assert_eq!(told(&colourful, web(&Labels::default())), "kept");
}

#[test]
fn there_is_an_end_to_a_list() {
    let many = Config { exclude: vec!["name:a".into(); Filter::MAX_RULES + 2], ..Config::default() };
    let BadPatterns(bad) = Filter::new(&many).unwrap_err();
    assert_eq!((bad.len(), bad[0].position), (1, Filter::MAX_RULES + 1));
}

#[test]
fn what_keeps_everything_is_known_to() {
    let is = |config: Config| Filter::new(&config).unwrap().keeps_everything();
    assert!(is(Config::default()));
    assert!(is(config(&["name:web"], &[])), "an include alone excludes nobody");
    assert!(is(config(&[], &["colour:web"])));
    assert!(!is(config(&[], &["name:web"])));
    assert!(!is(Config { exclude_sandboxes: true, ..Config::default() }));
    assert!(!is(Config { annotations: true, ..Config::default() }));
}

fn rule() -> impl Strategy<Value = String> {
    "(name|image|pod-namespace):(\\^?[a-c]{1,2}\\$?|[a-c]?\\.\\*|\\^\\$)"
}

fn value() -> impl Strategy<Value = Option<String>> {
    proptest::option::of("[a-c]{0,3}")
}

proptest! {
    #[test]
    fn no_rule_and_no_value_panics(rules in proptest::collection::vec("\\PC{0,20}", 0..4), name in "\\PC{0,20}", strict: bool) {
        let config = Config { strict, exclude: rules.iter().map(|rule| format!("name:{rule}")).collect(), include: rules, ..Config::default() };
        if let Ok(filter) = Filter::new(&config) {
            let none = Labels::default();
            filter.decide(&Subject { name: Some(&name), ..web(&none) });
        }
    }

    #[test]
    fn decisions_obey_the_order_of_the_lists(
        include in proptest::collection::vec(rule(), 0..4),
        exclude in proptest::collection::vec(rule(), 0..4),
        (name, image, pod_namespace) in (value(), value(), value()),
        is_awaited: bool,
    ) {
        let made = |include: &[String], exclude: &[String]| {
            Filter::new(&Config { include: include.to_vec(), exclude: exclude.to_vec(), ..Config::default() }).unwrap()
        };
        let none = Labels::default();
        let subject = Subject {
            name: name.as_deref(), image: image.as_deref(), pod_namespace: pod_namespace.as_deref(), is_awaited, ..web(&none)
        };
        let both = made(&include, &exclude).decide(&subject);
        // Include beats exclude: whatever would be excluded by the same rules as excludes is kept by them as includes.
        if made(&[], &include).decide(&subject).excluded_by().is_some() {
            prop_assert!(matches!(both, Decision::Kept(Why::Included(_))), "{both:?}");
        }
        // Includes never take a container away, and one that is excluded is so by the excludes alone.
        let alone = made(&[], &exclude).decide(&subject);
        if let Decision::Excluded(rule) = &both {
            prop_assert_eq!(&alone, &Decision::Excluded(rule.clone()));
        }
        // More knowledge never excludes what was settled as included, and a known container is never undecided.
        if !is_awaited {
            prop_assert!(!matches!(both, Decision::Kept(Why::Undecided(_))));
        }
        // A rule is the crate's own idea of it: an oracle of three lines.
        let says = |rule: &String| {
            let (field, pattern) = rule.split_once(':').unwrap();
            let value = match field { "name" => &name, "image" => &image, _ => &pod_namespace };
            match value.as_deref() {
                Some("") => pattern == "^$",
                Some(value) => regex::Regex::new(pattern).unwrap().is_match(value),
                None => pattern == "^$" && !is_awaited,
            }
        };
        prop_assert_eq!(alone.excluded_by().is_some(), exclude.iter().any(says));
    }
}
