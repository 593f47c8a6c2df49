//! Compiles staged modules off the apply path and reports, through the log, whether this node can
//! run them, each under the limit on its work that stands in the tables.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::config::limits;
use crate::machine::entry::proposal::ModuleReport;
use crate::machine::{Environment, Proposal, View};
use crate::raft::duties::courier::Courier;
use crate::types::{LogIndex, ModuleDigest};

/// Characters of a reason that are reported: a report must fit what a peer may propose.
const REASON_CHARACTERS_MAX: usize = 1_000;

/// Compiles each staged module once and reports on it.
pub struct ModuleTask {
    /// Brings reports into the log.
    pub courier: Courier,
    /// The sandbox and what is compiled.
    pub environment: Environment,
}

/// Modules that were seen to, and the entry that touched each last before that.
type Seen = BTreeMap<ModuleDigest, LogIndex>;

/// A module that is to be seen to, the entry that touched it last, and the work that compiling it
/// may take.
type Due = (ModuleDigest, LogIndex, u64);

/// A module whose bytes are all there and that was not seen to yet.
fn due(view: &View, seen: &mut Seen) -> Option<Due> {
    seen.retain(|digest, _| view.modules.get(digest).is_some_and(|module| !module.is_partial()));
    let whole = view.modules.iter().filter(|(_, module)| !module.is_partial());
    whole
        .map(|(digest, module)| (*digest, module.touched, module.compile_work_max))
        .find(|(digest, touched, _)| seen.get(digest) != Some(touched))
}

impl ModuleTask {
    /// Runs until the apply path is gone.
    pub async fn run(self) {
        let mut views = self.environment.directory.watch();
        let mut seen = Seen::new();
        loop {
            let view = Arc::clone(&views.borrow_and_update());
            let Some((digest, touched, work_max)) = due(&view, &mut seen) else {
                if views.changed().await.is_err() {
                    return;
                }
                continue;
            };
            seen.insert(digest, touched);
            let mut failure = self.compile(digest, work_max).await;
            if let Some(reason) = &mut failure {
                cut(reason, limits::MODULE_FAILURE_BYTES_MAX);
            }
            if let Some(reason) = &failure {
                tracing::error!(%digest, %reason, "a staged module cannot be compiled here");
            }
            if !self.is_reported(&digest) {
                let cut = |reason: String| reason.chars().take(REASON_CHARACTERS_MAX).collect();
                let failure = failure.map(cut);
                let report = ModuleReport { digest, node: self.courier.node, failure };
                let entry = Proposal::ModuleReady(report).encode();
                self.courier.bring(&entry, || self.is_reported(&digest)).await;
            }
        }
    }

    async fn compile(&self, digest: ModuleDigest, work_max: u64) -> Option<String> {
        match self.environment.compile(digest, work_max).await {
            Ok(compiled) => compiled.err(),
            Err(error) => Some(format!("compiling it panicked: {error}")),
        }
    }

    fn is_reported(&self, digest: &ModuleDigest) -> bool {
        let view = self.environment.directory.view();
        view.modules
            .get(digest)
            .is_none_or(|module| module.reports.contains_key(&self.courier.node))
    }
}

/// Cuts a text to so many bytes, between two characters.
fn cut(text: &mut String, bytes_max: usize) {
    let end = (0..=bytes_max.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    text.truncate(end.unwrap_or(0));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::ModuleRecord;

    /// Each module is seen to once its bytes are all there, and again when it was touched since.
    #[test]
    fn whole_modules_are_due() {
        let record = |staged, touched| ModuleRecord {
            length: 2,
            staged,
            reports: BTreeMap::new(),
            touched,
            compile_work_max: 7_000,
        };
        let digest = |number| ModuleDigest([number; 32]);
        let modules = [(digest(1), record(1, 5)), (digest(2), record(2, 6))].into();
        let mut view = View { modules, ..View::default() };
        let mut seen = Seen::new();
        assert_eq!(due(&view, &mut seen), Some((digest(2), 6, 7_000)));
        seen.insert(digest(2), 6);
        assert_eq!(due(&view, &mut seen), None);
        view.modules.insert(digest(1), record(2, 7));
        assert_eq!(due(&view, &mut seen), Some((digest(1), 7, 7_000)));
        seen.insert(digest(1), 7);
        view.modules.insert(digest(2), record(2, 9));
        assert_eq!(due(&view, &mut seen), Some((digest(2), 9, 7_000)), "it was uploaded again");
        view.modules.clear();
        assert_eq!(due(&view, &mut seen), None);
        assert_eq!(seen, Seen::new());
    }

    /// A text is cut between two characters, and a short one not at all.
    #[test]
    fn texts_are_cut() {
        for (text, expected) in [("abcd", "abc"), ("ab\u{e9}", "ab"), ("ab", "ab"), ("", "")] {
            let mut text = text.to_owned();
            cut(&mut text, 3);
            assert_eq!(text, expected);
        }
    }
}
