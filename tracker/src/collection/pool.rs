//! Equal texts lie in memory once: several sources describe one container in the same words, and replicas of one
//! workload share most of theirs.

use std::collections::HashSet;
use std::hash::Hash;
use std::sync::Arc;

use crate::container::{Labels, Str};
use crate::fact::Statement;

/// Texts and maps of texts that statements use. What none uses any more is dropped from time to time.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    texts: Kept<Str>,
    labels: Kept<Labels>,
}

#[derive(Debug)]
struct Kept<T> {
    known: HashSet<T>,
    /// As many make it worth looking which of them are still used.
    look_at: usize,
}

/// Fewer than this are never looked through.
const MIN_LOOK: usize = 1_024;

trait Shared: Hash + Eq + Clone {
    /// Whether somebody but the pool has it.
    fn is_used(&self) -> bool;
}

impl Shared for Str {
    fn is_used(&self) -> bool {
        Arc::strong_count(self) > 1
    }
}

impl Shared for Labels {
    fn is_used(&self) -> bool {
        self.is_shared()
    }
}

impl<T: Shared> Default for Kept<T> {
    fn default() -> Self {
        Kept { known: HashSet::new(), look_at: MIN_LOOK }
    }
}

impl<T: Shared> Kept<T> {
    /// Replaces `value` by the equal one that is known, if there is; else it is known from now on.
    fn share(&mut self, value: &mut T) {
        if let Some(known) = self.known.get(value) {
            *value = known.clone();
            return;
        }
        if self.known.len() >= self.look_at {
            self.known.retain(T::is_used);
            self.look_at = MIN_LOOK.max(2 * self.known.len());
        }
        self.known.insert(value.clone());
    }
}

impl Pool {
    /// Lets a statement use what is known already.
    pub(crate) fn share(&mut self, statement: &mut Statement) {
        let Statement { name, runtime, image, pod, labels, annotations, cgroup, bundle, .. } = statement;
        let runtime = runtime.iter_mut().flat_map(|of| [&mut of.name, &mut of.namespace, &mut of.handler, &mut of.oci]);
        let image = image.iter_mut().flat_map(|of| [&mut of.name, &mut of.id, &mut of.digest]);
        let cgroup = cgroup.iter_mut().flat_map(|of| [&mut of.path, &mut of.v1_path]);
        let (mut of_pod, mut pod_labels) = (Vec::new(), None);
        if let Some(pod) = pod {
            of_pod.extend([&mut pod.name, &mut pod.namespace, &mut pod.uid, &mut pod.sandbox_id]);
            pod_labels = pod.labels.as_mut();
        }
        let texts = [name, bundle].into_iter().chain(runtime).chain(image).chain(cgroup).chain(of_pod);
        for text in texts.flatten() {
            self.texts.share(text);
        }
        for labels in [labels.as_mut(), annotations.as_mut(), pod_labels].into_iter().flatten() {
            // Values are seldom used by others than these labels, keys often.
            labels.keys_mut().for_each(|key| self.texts.share(key));
            self.labels.share(labels);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::Image;

    fn statement(n: usize) -> Statement {
        Statement {
            name: Some(format!("web-{n}").into()),
            image: Some(Image { name: Some("app:1".into()), ..Image::default() }),
            labels: Some([("app", n.to_string())].into_iter().collect()),
            ..Statement::default()
        }
    }

    #[test]
    fn equal_texts_are_the_same_and_nothing_else_changes() {
        let mut pool = Pool::default();
        let mut statements = [statement(1), statement(1), statement(2)];
        statements.iter_mut().for_each(|statement| pool.share(statement));
        assert_eq!(statements, [statement(1), statement(1), statement(2)]);

        let name = |n: usize| statements[n].name.clone().unwrap();
        let image = |n: usize| statements[n].image.clone().unwrap().name.unwrap();
        let key = |n: usize| statements[n].labels.as_ref().unwrap().iter().next().unwrap().0.clone();
        assert!(Arc::ptr_eq(&name(0), &name(1)));
        assert!(Arc::ptr_eq(&image(0), &image(2)));
        assert!(Arc::ptr_eq(&key(0), &key(2)));
    }

    #[test]
    fn what_nobody_uses_any_more_is_dropped() {
        let mut pool = Pool::default();
        let mut kept = statement(0);
        pool.share(&mut kept);
        for n in 1..20 * MIN_LOOK {
            pool.share(&mut statement(n));
        }
        assert!(pool.texts.known.len() <= MIN_LOOK && pool.labels.known.len() <= MIN_LOOK);
        let mut same = statement(0);
        pool.share(&mut same);
        assert!(Arc::ptr_eq(&same.name.unwrap(), &kept.name.unwrap()));
    }
}
