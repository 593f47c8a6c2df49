//! What the header of a snapshot says beside its log id (docs/formats.md, "Snapshot sections"), and
//! what openraft and this build make of it.

use crate::codec::{self, Reader, put_log_id, put_membership, put_option, put_text};
use crate::machine::{HostFailure, Sealed, Source};
use crate::raft::store::convert::{
    log_id_from_raft, log_id_to_raft, membership_from_raft, membership_to_raft,
};
use crate::raft::type_config::{RaftSnapshotMeta, RaftStoredMembership};
use crate::storage::snapshot::Snapshot;
use crate::types::{LogId, Membership};

/// The description of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    membership_log: Option<LogId>,
    membership: Membership,
    /// The engine profile that its state came about with, once that was in the log.
    engine_profile: Option<String>,
    /// The engine profile that the cluster was sealed for by then.
    sealed_for: Option<String>,
}

/// What a build of some engine profile can make of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fit {
    /// It goes on from this.
    From(Source),
    /// Nothing: its state came about with this other profile.
    OfAnother(String),
}

impl Description {
    /// Describes a state.
    pub fn new(
        membership: &RaftStoredMembership,
        profile: Option<&str>,
        sealed: Option<&Sealed>,
    ) -> Self {
        Self {
            membership_log: membership.log_id().as_ref().map(log_id_from_raft),
            membership: membership_from_raft(membership.membership()),
            engine_profile: profile.map(str::to_owned),
            sealed_for: sealed.map(|sealed| sealed.to.clone()),
        }
    }

    /// Reads the description of a snapshot.
    ///
    /// # Errors
    /// When it is none that this version writes: the node stops, naming the file.
    fn read(snapshot: &Snapshot) -> Result<Self, HostFailure> {
        Self::decode(snapshot.meta()).map_err(|error| malformed(snapshot, &error.to_string()))
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        put_option(&mut bytes, self.membership_log, put_log_id);
        put_option(&mut bytes, self.engine_profile.as_deref(), put_text);
        put_option(&mut bytes, self.sealed_for.as_deref(), put_text);
        put_membership(&mut bytes, &self.membership);
        bytes
    }

    fn decode(bytes: &[u8]) -> Result<Self, codec::Error> {
        let mut fields = Reader::new(bytes);
        let membership_log = fields.option(Reader::log_id)?;
        let engine_profile = fields.option(Reader::text)?;
        let sealed_for = fields.option(Reader::text)?;
        let membership = fields.membership()?;
        fields.finish()?;
        Ok(Self { membership_log, membership, engine_profile, sealed_for })
    }
}

/// What openraft must know of a snapshot.
pub fn meta_to_raft(snapshot: &Snapshot) -> Result<RaftSnapshotMeta, HostFailure> {
    let description = Description::read(snapshot)?;
    let membership = membership_to_raft(description.membership)
        .map_err(|reason| malformed(snapshot, &reason))?;
    Ok(RaftSnapshotMeta {
        last_log_id: snapshot.id().last.map(log_id_to_raft),
        last_membership: RaftStoredMembership::new(
            description.membership_log.map(log_id_to_raft),
            membership,
        ),
    })
}

/// What a build of this engine profile can make of a snapshot.
pub fn fit(snapshot: &Snapshot, profile: &str) -> Result<Fit, HostFailure> {
    let Description { engine_profile, sealed_for, .. } = Description::read(snapshot)?;
    Ok(match engine_profile {
        Some(theirs) if theirs != profile && sealed_for.as_deref() == Some(profile) => {
            Fit::From(Source::Exports)
        }
        Some(theirs) if theirs != profile => Fit::OfAnother(theirs),
        _ => Fit::From(Source::Images),
    })
}

fn malformed(snapshot: &Snapshot, reason: &str) -> HostFailure {
    let path = snapshot.path().display();
    HostFailure::Stop(format!("{path}: its description is damaged: {reason}"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::types::{Member, NodeId};

    /// A description comes back as it was; one that is cut, or longer, is refused.
    #[test]
    fn a_description_comes_back_or_is_refused() {
        let description = Description {
            membership_log: Some(LogId { term: 3, node: NodeId(2), index: 9 }),
            membership: Membership {
                voters: vec![BTreeSet::from([NodeId(2)])],
                members: [(NodeId(2), Member::default())].into(),
            },
            engine_profile: Some("ab".repeat(32)),
            sealed_for: None,
        };
        let mut bytes = description.encode();
        assert_eq!(Description::decode(&bytes), Ok(description));
        for length in 0..bytes.len() {
            assert!(Description::decode(&bytes[..length]).is_err(), "{length} bytes");
        }
        bytes.push(0);
        assert_eq!(Description::decode(&bytes), Err(codec::Error::Value("membership")));
    }
}
