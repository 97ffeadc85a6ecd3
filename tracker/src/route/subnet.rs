//! Names that a cloud has for subnets, and for how long they are believed.
//!
//! A name belongs to an interface: its index and its hardware address together, so that a reused index is asked anew. It
//! does not change as long as the interface exists. That there is none is believed for a while, and then asked again by
//! the very look-up that finds the time over.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use super::answer::{Interface, Mac};
use super::clock::Millis;
use super::ec2::{Config, Ec2};
use super::stats::Stats;
use crate::container::Str;

/// Interfaces that are remembered; beyond, all are asked for anew.
const MAX_KNOWN: usize = 1_024;

/// Whoever knows names.
#[derive(Debug)]
pub(super) struct SubnetNames {
    source: Option<Ec2>,
    retry: Millis,
    // Protects what is known; held for a look.
    known: Mutex<HashMap<(u32, Mac), Name>>,
    // One asks at a time; the others find what it has learnt. Each wait ends with the source's own deadline.
    asking: Mutex<()>,
    stats: Arc<Stats>,
}

/// What is known of one interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Name {
    /// Its subnet's name.
    pub(super) name: Option<Str>,
    /// Until when that is believed; for ever where there is a name.
    pub(super) until: Option<Millis>,
}

impl SubnetNames {
    pub(super) fn new(config: Config, stats: Arc<Stats>) -> Self {
        let retry = Millis(config.retry_ms);
        let source = config.enabled.then(|| Ec2::new(config));
        Self { source, retry, known: Mutex::default(), asking: Mutex::new(()), stats }
    }

    /// The name of the subnet that an interface of the host is in; `None` where nobody is asked.
    pub(super) fn of(&self, interface: &Interface) -> Option<Name> {
        let (source, mac) = (self.source.as_ref()?, interface.mac?);
        let key = (interface.index, mac);
        let known = || self.known(&key, Millis::now());
        known().or_else(|| {
            let _one_at_a_time = self.asking.lock().unwrap_or_else(PoisonError::into_inner);
            known().or_else(|| Some(self.ask(source, key)))
        })
    }

    fn known(&self, key: &(u32, Mac), now: Millis) -> Option<Name> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let name = known.get(key).filter(|name| name.until.is_none_or(|until| now < until)).cloned()?;
        self.stats.subnets.cached.fetch_add(1, Ordering::Relaxed);
        Some(name)
    }

    fn ask(&self, source: &Ec2, key: (u32, Mac)) -> Name {
        let count = &self.stats.subnets;
        let (name, counter) = match source.subnet_of(key.1) {
            Ok(Some(name)) => (Some(name), &count.found),
            Ok(None) => (None, &count.none),
            Err(error) => {
                tracing::debug!(%error, "the cloud's name of a subnet is not known");
                (None, &count.failed)
            }
        };
        counter.fetch_add(1, Ordering::Relaxed);
        let until = name.is_none().then(|| Millis(Millis::now().0.saturating_add(self.retry.0)));
        let name = Name { name, until };
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MAX_KNOWN {
            known.clear();
        }
        known.insert(key, name.clone());
        name
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::super::ec2::tests::{MAC, Stand};
    use super::*;

    fn interface(index: u32, mac: Mac) -> Interface {
        Interface { index, name: "ens5".into(), mac: Some(mac), mtu: None }
    }

    fn names(config: Config) -> (SubnetNames, Arc<Stats>) {
        let stats = Arc::<Stats>::default();
        (SubnetNames::new(config, Arc::clone(&stats)), stats)
    }

    fn name(names: &SubnetNames, index: u32, mac: Mac) -> Option<Str> {
        names.of(&interface(index, mac)).unwrap().name
    }

    #[test]
    fn nobody_is_asked_unless_it_is_wanted() {
        let stand = Stand::start();
        let (names, _) = names(Config { enabled: false, ..stand.config.clone() });
        assert_eq!(names.of(&interface(2, MAC)), None);
        assert_eq!(stand.service.asked.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn a_name_is_asked_once_and_a_reused_index_anew() {
        let stand = Stand::start();
        let (names, stats) = names(stand.config.clone());
        for _ in 0..3 {
            assert_eq!(name(&names, 2, MAC).as_deref(), Some("subnet-0a1b2c"));
        }
        assert_eq!(stand.service.asked.load(Ordering::SeqCst), 1);
        assert_eq!(name(&names, 2, Mac([2, 0, 0, 0, 0, 2])), None);
        assert_eq!(stand.service.asked.load(Ordering::SeqCst), 2);
        let counts = [&stats.subnets.found, &stats.subnets.none, &stats.subnets.cached];
        assert_eq!(counts.map(|count| count.load(Ordering::Relaxed)), [1, 1, 2]);
    }

    #[test]
    fn what_was_not_known_is_asked_again_by_the_look_up_that_finds_the_time_over() {
        let stand = Stand::start();
        *stand.service.name.lock().unwrap() = None;
        let (names, _) = names(Config { retry_ms: 200, ..stand.config.clone() });
        assert_eq!(name(&names, 2, MAC), None);
        let until = names.of(&interface(2, MAC)).unwrap().until;
        *stand.service.name.lock().unwrap() = Some("subnet-1");
        let deadline = Instant::now() + Duration::from_secs(20);
        let mut answer = name(&names, 2, MAC);
        while answer.is_none() && Instant::now() < deadline {
            std::thread::yield_now();
            answer = name(&names, 2, MAC);
        }
        assert_eq!(answer.as_deref(), Some("subnet-1"));
        assert!(Some(Millis::now()) >= until, "not before its time");
        assert_eq!(stand.service.asked.load(Ordering::SeqCst), 2, "once at first, once when the time was over");
    }

    #[test]
    fn many_wait_for_one_who_asks() {
        let stand = Stand::start();
        stand.service.delay.store(50, Ordering::SeqCst);
        let (names, _) = names(stand.config.clone());
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| assert!(name(&names, 2, MAC).is_some()));
            }
        });
        assert_eq!(stand.service.asked.load(Ordering::SeqCst), 1);
    }
}
