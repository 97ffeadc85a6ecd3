//! Images that sandboxes are made of, for containers of which nothing better tells.
//!
//! What a pod's sandbox is, its runtime says, by a label or by its bundle's annotations. Where neither is there
//! (a sandbox that somebody made by hand, or a runtime that is not asked), the image tells: nothing but sandboxes is made
//! of these. A container that is known to be of a pod and not its sandbox is never taken for one.

use crate::selector::glob::Pattern;

/// Patterns of images' names, as configured.
#[derive(Clone, Debug, Default)]
pub(crate) struct PauseImages {
    patterns: Vec<Named>,
}

#[derive(Clone, Debug)]
struct Named {
    name: Pattern,
    /// Any, where there is none.
    tag: Option<Pattern>,
}

/// Kubernetes' own, and where clouds and distributions keep their copies.
pub(crate) const KNOWN: [&str; 10] = [
    "registry.k8s.io/pause",
    "k8s.gcr.io/pause",
    "gcr.io/google_containers/pause*",
    "registry.aliyuncs.com/google_containers/pause",
    "mcr.microsoft.com/oss/kubernetes/pause",
    "*.amazonaws.com/eks/pause",
    "public.ecr.aws/eks-distro/kubernetes/pause",
    "*rancher/mirrored-pause",
    "*amazon/amazon-ecs-pause",
    // A mirror of somebody's. All versions that anybody runs begin so; other programs may be called `pause`, too.
    "*/pause:3.*",
];

impl PauseImages {
    pub(crate) fn new(patterns: &[String]) -> Self {
        let named = |text: &String| {
            let (name, tag) = split(text);
            Named { name: Pattern::wild(name), tag: tag.map(Pattern::wild) }
        };
        Self { patterns: patterns.iter().map(named).collect() }
    }

    /// Whether sandboxes are made of the image with this name.
    pub(crate) fn contain(&self, image: &str) -> bool {
        let (name, tag) = split(image);
        self.patterns.iter().any(|pattern| {
            pattern.name.matches(name)
                && pattern.tag.as_ref().is_none_or(|wanted| tag.is_some_and(|tag| wanted.matches(tag)))
        })
    }
}

/// An image's name and its tag. A digest behind it names no other image.
fn split(image: &str) -> (&str, Option<&str>) {
    let image = image.split_once('@').map_or(image, |(image, _)| image);
    // A colon before the last slash is that of a registry's port.
    match image.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (image, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sandboxes_images_are_known_wherever_they_are_copied_to() {
        let known = PauseImages::new(&KNOWN.map(str::to_owned));
        for image in [
            "registry.k8s.io/pause:3.9",
            "registry.k8s.io/pause@sha256:7031",
            "k8s.gcr.io/pause",
            "gcr.io/google_containers/pause-amd64:3.0",
            "docker.io/rancher/mirrored-pause:3.6",
            "rancher/mirrored-pause:3.6",
            "602401143452.dkr.ecr.us-west-2.amazonaws.com/eks/pause:3.5",
            "amazon/amazon-ecs-pause:0.1.0",
            "mirror.corp:5000/k8s/pause:3.10",
        ] {
            assert!(known.contain(image), "{image}");
        }
        for image in [
            "docker.io/library/pause:test",
            "pause",
            "shop/pause",
            "shop/pause:latest",
            "shop/paused:3.1",
            "registry.k8s.io/pause-button:3.9",
            "mirror.corp:5000/pause",
            "",
            "@",
            ":",
        ] {
            assert!(!known.contain(image), "{image}");
        }
        assert!(!PauseImages::new(&[]).contain("registry.k8s.io/pause:3.9"));
    }

    #[test]
    fn a_pattern_of_one_s_own_may_name_a_tag() {
        let own = PauseImages::new(&["docker.io/library/pause:te?t".to_owned()]);
        assert!(own.contain("docker.io/library/pause:test"));
        assert!(!own.contain("docker.io/library/pause:latest") && !own.contain("docker.io/library/pause"));
    }
}
