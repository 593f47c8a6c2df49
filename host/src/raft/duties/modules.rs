//! Compiles staged modules off the apply path and reports, through the log, whether this node can
//! run them.

use tokio::sync::mpsc;

use crate::config::limits;
use crate::machine::entry::proposal::ModuleReport;
use crate::machine::{Environment, Proposal};
use crate::raft::duties::courier::Courier;
use crate::types::ModuleDigest;

/// Characters of a reason that are reported: a report must fit what a peer may propose.
const REASON_CHARACTERS_MAX: usize = 1_000;

/// Compiles each staged module once and reports on it.
pub struct ModuleTask {
    /// Brings reports into the log.
    pub courier: Courier,
    /// The sandbox and what is compiled.
    pub environment: Environment,
    /// Modules whose bytes are all there.
    pub staged: mpsc::UnboundedReceiver<ModuleDigest>,
}

impl ModuleTask {
    /// Runs until the apply path is gone.
    pub async fn run(mut self) {
        while let Some(digest) = self.staged.recv().await {
            let mut failure = self.compile(digest).await;
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

    async fn compile(&self, digest: ModuleDigest) -> Option<String> {
        match self.environment.compile(digest).await {
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
