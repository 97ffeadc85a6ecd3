//! Which containers a list or a watch is about.

use clap::Args;

/// Options that pick containers.
#[derive(Clone, Debug, Args)]
pub(crate) struct Picked {
    /// Every kind: also sandboxes, and what nobody vouches for.
    #[arg(short, long)]
    all: bool,
    /// Only this kind: container, sandbox, unmanaged, sandboxed-process.
    #[arg(long)]
    kind: Option<String>,
    /// Only what this selector picks, for example `label:app=web,state in (running,paused)`.
    #[arg(short = 'l', long)]
    selector: Option<String>,
}

impl Picked {
    /// The same as parameters of a request. The tracker says what is wrong with them.
    pub(crate) fn query(&self) -> Vec<(&'static str, &str)> {
        let all = self.all.then_some(("all", "true"));
        let kind = self.kind.as_deref().map(|kind| ("kind", kind));
        let selector = self.selector.as_deref().map(|selector| ("selector", selector));
        [all, kind, selector].into_iter().flatten().collect()
    }
}
