//! What goes wrong around routes: each has an answer that says so, and nothing wrong is kept.

use std::ffi::OsStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};

use anyhow::Result;
use tracker::route::{Config, Found, Interface, Kind, Place, RouteError, Routes};
use tracker_tests::daemon::Daemon;
use tracker_tests::net::{Net, veth};
use tracker_tests::require;
use tracker_tests::requirement::{program, root, tracker};
use tracker_tests::routes::{Listened, to};
use tracker_tests::wait::{PATIENCE, eventually};

fn pair() -> Result<(Net, Net)> {
    let (inner, outer) = (Net::new("inner")?, Net::new("outer")?);
    veth(&inner, "eth0", &outer, "veth0")?;
    inner.ip("addr add 10.60.0.2/24 dev eth0")?;
    inner.ip("route add default via 10.60.0.1")?;
    outer.ip("addr add 10.60.0.1/24 dev veth0")?;
    Ok((inner, outer))
}

#[test]
fn an_exchange_that_is_held_up_holds_up_nobody_else() -> Result<()> {
    require!(root(), program("ip"));
    let ((slow, _hidden), (quick, outer)) = (pair()?, pair()?);
    // To find the other end of `slow`'s veth, somebody is asked for ways who does not answer until told.
    let (tell, told) = mpsc::sync_channel::<()>(1);
    let (entered, has_entered) = mpsc::sync_channel::<()>(1);
    let told = Mutex::new(told);
    let ways = Box::new(move || {
        let _ = entered.try_send(());
        let _ = told.lock().expect("nobody panics").recv_timeout(PATIENCE);
        Vec::new()
    });
    let house = Listened::start_with(Config { directories: Vec::new(), ..Config::default() }, Some(ways))?;
    // The other's other end is known, so that nobody is asked for a way to it.
    house.netns(&outer)?;
    let (held, calm) = (house.netns(&slow)?, house.netns(&quick)?);
    house.until_kept(&calm, &to("8.8.8.8"));
    assert!(has_entered.try_recv().is_err());
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| house.routes.lookup_blocking(&held, &to("8.8.8.8")));
        has_entered.recv_timeout(PATIENCE).expect("the exchange is held up");
        assert!(house.routes.ask_blocking(&calm, &to("8.8.8.9")).is_ok(), "a miss of another key");
        house.until_kept(&calm, &to("8.8.8.8"));
        assert!(!asking.is_finished());
        tell.send(()).expect("it is waiting");
        asking.join().expect("no panic").map(drop)
    })?;
    Ok(())
}

#[test]
fn lost_messages_make_everything_unknown_and_it_is_found_again() -> Result<()> {
    require!(root(), program("ip"));
    let (inner, _outer) = pair()?;
    // Nobody reads while more is said than the socket can hold.
    let (routes, listening) = Routes::start(Config::default(), None, Arc::default())?;
    let netns = routes.netns(&Place::Path(inner.path()))?;
    for round in 0..10 {
        let verb = ["add", "del"][round % 2];
        let line = |n: u32| format!("route {verb} 10.{}.{}.0/24 via 10.60.0.1\n", 100 + n / 250, n % 250);
        inner.batch(&(0..10_000).map(line).collect::<String>())?;
    }
    let found = routes.ask_blocking(&netns, &to("8.8.8.8"));
    assert!(routes.stats().overruns.load(Ordering::Relaxed) > 0, "the socket ran over");
    assert!(matches!(found, Err(RouteError::Gone { .. } | RouteError::Unsettled { .. })), "{found:?}");
    assert!(netns.is_gone());
    let again = routes.netns(&Place::Path(inner.path()))?;
    assert_eq!(again.identity(), netns.identity());
    assert_eq!(routes.ask_blocking(&again, &to("8.8.8.8"))?.hops[0].gateway, Some("10.60.0.1".parse()?));
    drop(listening);
    Ok(())
}

#[test]
fn a_hundred_thousand_routes_are_as_good_as_two() -> Result<()> {
    require!(root(), program("ip"));
    let (inner, _outer) = pair()?;
    let line = |n: u32| format!("route add {}.{}.{}.0/24 via 10.60.0.100\n", 11 + n / 65_536, n / 256 % 256, n % 256);
    inner.batch(&(0..100_000).map(line).collect::<String>())?;
    let house = Listened::start()?;
    let found = house.ask(&inner, &to("11.200.7.9"))?;
    assert_eq!(found.hops[0].gateway, Some("10.60.0.100".parse()?));
    assert_eq!(found.hops[0].prefix.map(|prefix| prefix.to_string()).as_deref(), Some("11.200.7.0/24"));
    Ok(())
}

#[test]
fn changes_all_the_while_give_right_answers_or_none() -> Result<()> {
    require!(root(), program("ip"));
    let (inner, outer) = pair()?;
    outer.ip("addr add 10.60.0.3/24 dev veth0")?;
    let house = Listened::start()?;
    let netns = house.netns(&inner)?;
    let is_done = AtomicBool::new(false);
    std::thread::scope(|scope| -> Result<()> {
        let asking = scope.spawn(|| {
            let mut answers = 0;
            while !is_done.load(Ordering::Relaxed) {
                match house.routes.lookup_blocking(&netns, &to("8.8.8.8")) {
                    Ok(found) => {
                        let gateway = found.hops[0].gateway.map(|gateway| gateway.to_string());
                        assert!(matches!(gateway.as_deref(), Some("10.60.0.1" | "10.60.0.3") | None), "{found:?}");
                        // All of it is of one moment.
                        assert_eq!(found.hops[0].kind == Kind::Unicast, found.hops[0].interface.is_some(), "{found:?}");
                        answers += 1;
                    }
                    Err(RouteError::Unsettled { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
            }
            answers
        });
        let changes = "route replace default via 10.60.0.3\nlink set eth0 down\nlink set eth0 up\n\
                       route replace default via 10.60.0.1\n";
        let changed = inner.batch(&changes.repeat(100)).and_then(|()| inner.ip("link del eth0"));
        is_done.store(true, Ordering::Relaxed);
        assert!(asking.join().expect("no wrong answer") > 0);
        changed
    })?;
    let last = house.routes.ask_blocking(&netns, &to("8.8.8.8"))?;
    assert_eq!(last.hops[0].kind, Kind::NoRoute);
    Ok(())
}

#[test]
fn a_later_hop_whose_device_comes_and_goes_is_told_as_it_was_or_not_at_all() -> Result<()> {
    require!(root(), program("ip"));
    let ((inner, outer), world) = (pair()?, Net::new("world")?);
    outer.run("sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.veth0.rp_filter=0")?;
    let house = Listened::start()?;
    let (netns, query) = (house.netns(&inner)?, to("8.8.8.8"));
    let name = |interface: &Option<Interface>| interface.as_ref().map(|interface| interface.name.to_string());
    // What of the second hop may be seen: all of it, or that there is no way.
    let check = |found: &Found| {
        let [first, second, ..] = &found.hops[..] else { panic!("two hops: {found:#?}") };
        assert_eq!((first.kind, name(&first.interface)), (Kind::Unicast, Some("eth0".into())), "{found:#?}");
        let there = (second.kind == Kind::Unicast).then(|| ("ens0".to_owned(), "10.77.0.1".to_owned()));
        let seen = name(&second.interface).zip(second.gateway.map(|gateway| gateway.to_string()));
        assert_eq!(seen, there, "{found:#?}");
        second.kind == Kind::Unicast
    };
    let comes = format!(
        "link add ens0 type veth peer name w0 netns {}\nlink set ens0 up\naddr add 10.77.0.5/24 dev ens0\n\
         route add default via 10.77.0.1\n",
        world.name()
    );
    let is_done = AtomicBool::new(false);
    let (there, gone) = std::thread::scope(|scope| -> Result<(u64, u64)> {
        let asking = scope.spawn(|| {
            let (mut there, mut gone) = (0, 0);
            while !is_done.load(Ordering::Relaxed) {
                match house.routes.lookup_blocking(&netns, &query) {
                    Ok(found) if check(&found) => there += 1,
                    Ok(_) => gone += 1,
                    Err(RouteError::Unsettled { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
            }
            (there, gone)
        });
        let changed = (0..50).try_for_each(|_| {
            outer.batch(&comes)?;
            assert!(check(&house.routes.lookup_blocking(&netns, &query)?), "seen as soon as it is there");
            outer.ip("link del ens0")?;
            assert!(!check(&house.routes.lookup_blocking(&netns, &query)?), "and as soon as it is gone");
            Ok(())
        });
        is_done.store(true, Ordering::Relaxed);
        let seen = asking.join().expect("no wrong answer");
        changed.map(|()| seen)
    })?;
    assert!(there > 0 && gone > 0, "{there} {gone}");
    Ok(())
}

#[test]
fn no_more_sockets_are_open_than_allowed_and_none_in_the_end() -> Result<()> {
    require!(root(), program("ip"));
    let house = Listened::start()?;
    let nets: Vec<Net> = (0..270).map(|_| Net::new("many")).collect::<Result<_>>()?;
    for net in &nets {
        let netns = house.netns(net)?;
        assert_eq!(house.routes.lookup_blocking(&netns, &to("8.8.8.8"))?.hops[0].kind, Kind::NoRoute);
        assert!(house.stats.open.load(Ordering::Relaxed) <= 256);
    }
    assert!(house.stats.open.load(Ordering::Relaxed) >= 1);
    eventually("all sockets are closed", || (house.stats.open.load(Ordering::Relaxed) == 0).then_some(()));
    assert_eq!(house.stats.known.load(Ordering::Relaxed), 271, "and all are known, with the host's own");
    Ok(())
}

#[test]
fn without_a_capability_it_is_said_which_and_the_rest_works() -> Result<()> {
    require!(root(), tracker(), program("setpriv"));
    let net = Net::new("unasked")?;
    let path = net.path();
    let path = path.to_str().expect("text");
    let directory = tempfile::tempdir()?;
    let config = format!(
        "[barrier]\nenabled = false\n[proc]\nroots = [{:?}]\nusual-roots = false\n[containerd]\nenabled = false\n",
        directory.path(),
    );
    for (missing, asked) in
        [("-sys_admin", &["route", "127.0.0.1"][..]), ("-net_admin", &["route", "127.0.0.1", "--netns", path])]
    {
        let wrapper = ["setpriv", "--bounding-set", missing].map(OsStr::new);
        let daemon = Daemon::start_by(&wrapper, &config)?;
        let said = daemon.ask(asked)?;
        assert_eq!(said.code, 1, "{missing}: {} {}", said.out, said.err);
        assert!(said.err.contains("net ns") && said.err.contains("not permitted"), "{missing}: {}", said.err);
        assert!(
            said.err.contains("remedy: run the tracker as root") && said.err.contains("CAP_NET_ADMIN"),
            "{}",
            said.err
        );
        assert_eq!(daemon.ask(&["ps"])?.code, 0);
    }
    Ok(())
}
