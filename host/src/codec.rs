//! The bytes of what goes both to disk and to peers: log ids, votes, memberships and entries
//! (docs/formats.md, "Fields"). Records of the log, headers of snapshots and messages of peers are
//! put together from these fields, so that one value has the same bytes everywhere.
//!
//! It knows no file, no message and no openraft: checksums, versions and lengths around the fields
//! are of whoever puts them there.
//!
//! **Invariant:** what is encoded decodes to the same value, and to nothing else.
//! **Invariant:** what decodes is sane by itself: terms and indexes are below [`POSITION_MAX`], a
//! flag is 0 or 1, and nothing follows what should be the last. Decoding never panics.

use bytes::{BufMut as _, Bytes};

use crate::types::{LogId, Membership, NodeId, Vote};

/// Terms and indexes are below this. A real cluster never gets near it, and arithmetic on what is
/// below never overflows.
pub const POSITION_MAX: u64 = 1 << 62;

/// An encoded membership, at most, in bytes.
pub const MEMBERSHIP_BYTES_MAX: usize = 1 << 20;

/// Bytes of a log id: term, node, index.
pub const LOG_ID_BYTES: usize = 24;

/// Bytes of a vote: term, node, whether it is granted.
pub const VOTE_BYTES: usize = 17;

/// Kinds of entries.
const BLANK: u8 = 0;
const PROPOSAL: u8 = 1;
const MEMBERSHIP: u8 = 2;

/// Why bytes are none that an encoder of this version writes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// They end early, or more follows than belongs to them.
    #[error("the length is wrong")]
    Length,
    /// They were written by another version of their format, or are of no such format.
    #[error("version {0} is not known")]
    Version(u8),
    /// Bits have changed.
    #[error("the checksum does not match")]
    Checksum,
    /// A value is none that an encoder writes.
    #[error("impossible {0}")]
    Value(&'static str),
    /// Of what there are several kinds, this is none that this version knows.
    #[error("unknown kind {found} of {what}")]
    Kind {
        /// What there are several kinds of.
        what: &'static str,
        /// Its number.
        found: u8,
    },
    /// There is more of something than may be.
    #[error("{what}: {count}, and {limit} are allowed")]
    TooMany {
        /// What there is too much of.
        what: &'static str,
        /// How much there is.
        count: usize,
        /// How much may be.
        limit: usize,
    },
}

/// Writes a flag.
pub fn put_flag(buffer: &mut Vec<u8>, value: bool) {
    buffer.put_u8(u8::from(value));
}

/// Writes a log id.
pub fn put_log_id(buffer: &mut Vec<u8>, id: LogId) {
    assert!(id.term < POSITION_MAX && id.index < POSITION_MAX, "{id} is a place of no log");
    buffer.put_u64_le(id.term);
    buffer.put_u64_le(id.node.0);
    buffer.put_u64_le(id.index);
}

/// Writes a vote.
pub fn put_vote(buffer: &mut Vec<u8>, vote: Vote) {
    assert!(vote.term < POSITION_MAX, "no cluster comes to term {}", vote.term);
    buffer.put_u64_le(vote.term);
    buffer.put_u64_le(vote.node.0);
    put_flag(buffer, vote.committed);
}

/// Writes a text behind its length.
pub fn put_text(buffer: &mut Vec<u8>, text: &str) {
    buffer.put_u32_le(u32::try_from(text.len()).expect("a text is short"));
    buffer.put_slice(text.as_bytes());
}

/// Writes an option: a flag, and the value if there is one.
pub fn put_option<T>(buffer: &mut Vec<u8>, value: Option<T>, put: impl FnOnce(&mut Vec<u8>, T)) {
    put_flag(buffer, value.is_some());
    if let Some(value) = value {
        put(buffer, value);
    }
}

/// Writes a membership, behind which nothing may follow.
pub fn put_membership(buffer: &mut Vec<u8>, membership: &Membership) {
    let config = bincode::config::standard();
    let encoded = bincode::serde::encode_into_std_write(membership, buffer, config);
    encoded.expect("a membership is plain data, and a Vec takes all of it");
}

/// Takes fields apart, one after the other.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// Reads all of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// Nothing may be left.
    pub fn finish(self) -> Result<(), Error> {
        if self.0.is_empty() { Ok(()) } else { Err(Error::Length) }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        let (value, rest) = self.0.split_first_chunk::<N>().ok_or(Error::Length)?;
        self.0 = rest;
        Ok(*value)
    }

    /// The next bytes as they are.
    pub fn take(&mut self, count: usize) -> Result<&'a [u8], Error> {
        let (value, rest) = self.0.split_at_checked(count).ok_or(Error::Length)?;
        self.0 = rest;
        Ok(value)
    }

    /// One byte.
    pub fn u8(&mut self) -> Result<u8, Error> {
        self.array::<1>().map(|[value]| value)
    }

    /// Four bytes.
    pub fn u32(&mut self) -> Result<u32, Error> {
        self.array().map(u32::from_le_bytes)
    }

    /// Eight bytes.
    pub fn u64(&mut self) -> Result<u64, Error> {
        self.array().map(u64::from_le_bytes)
    }

    /// Reverse of [`put_flag`].
    pub fn flag(&mut self) -> Result<bool, Error> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Error::Value("flag")),
        }
    }

    /// A term.
    pub fn term(&mut self) -> Result<u64, Error> {
        position(self.u64()?, "term")
    }

    /// Reverse of [`put_log_id`].
    pub fn log_id(&mut self) -> Result<LogId, Error> {
        let term = self.term()?;
        let node = NodeId(self.u64()?);
        Ok(LogId { term, node, index: position(self.u64()?, "index")? })
    }

    /// Reverse of [`put_vote`].
    pub fn vote(&mut self) -> Result<Vote, Error> {
        let term = self.term()?;
        let node = NodeId(self.u64()?);
        Ok(Vote { term, node, committed: self.flag()? })
    }

    /// Reverse of [`put_text`].
    pub fn text(&mut self) -> Result<String, Error> {
        let length = usize::try_from(self.u32()?).map_err(|_| Error::Length)?;
        let bytes = self.take(length)?.to_vec();
        String::from_utf8(bytes).map_err(|_| Error::Value("text"))
    }

    /// Reverse of [`put_option`].
    pub fn option<T>(
        &mut self,
        get: impl FnOnce(&mut Self) -> Result<T, Error>,
    ) -> Result<Option<T>, Error> {
        if self.flag()? { get(self).map(Some) } else { Ok(None) }
    }

    /// Reverse of [`put_membership`]: it takes all that is left.
    pub fn membership(&mut self) -> Result<Membership, Error> {
        let bytes = self.take(self.0.len())?;
        let config = bincode::config::standard().with_limit::<MEMBERSHIP_BYTES_MAX>();
        match bincode::serde::decode_from_slice(bytes, config) {
            Ok((membership, length)) if length == bytes.len() => Ok(membership),
            _ => Err(Error::Value("membership")),
        }
    }
}

fn position(value: u64, what: &'static str) -> Result<u64, Error> {
    if value < POSITION_MAX { Ok(value) } else { Err(Error::Value(what)) }
}

/// What an entry of the log holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EntryBody {
    /// Nothing: the first entry of a new leader.
    Blank,
    /// A proposal in its own envelope, which is not looked into here.
    Proposal(Bytes),
    /// The membership from this entry on.
    Membership(Membership),
}

impl EntryBody {
    /// Its kind, and its bytes. Those of a proposal are shared, not copied.
    pub fn encode(self) -> (u8, Bytes) {
        match self {
            Self::Blank => (BLANK, Bytes::new()),
            Self::Proposal(bytes) => (PROPOSAL, bytes),
            Self::Membership(membership) => {
                let mut bytes = Vec::new();
                put_membership(&mut bytes, &membership);
                (MEMBERSHIP, bytes.into())
            }
        }
    }

    /// Reverse of [`EntryBody::encode`].
    pub fn decode(kind: u8, bytes: Bytes) -> Result<Self, Error> {
        match kind {
            BLANK if bytes.is_empty() => Ok(Self::Blank),
            BLANK => Err(Error::Value("blank entry: it has bytes")),
            PROPOSAL => Ok(Self::Proposal(bytes)),
            MEMBERSHIP => Reader::new(&bytes).membership().map(Self::Membership),
            found => Err(Error::Kind { what: "an entry", found }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::collection::vec;
    use proptest::option;
    use proptest::prelude::*;

    use super::*;
    use crate::types::Member;

    fn any_log_id() -> impl Strategy<Value = LogId> {
        (0..POSITION_MAX, any::<u64>(), 0..POSITION_MAX).prop_map(|(term, node, index)| LogId {
            term,
            node: NodeId(node),
            index,
        })
    }

    fn any_membership() -> impl Strategy<Value = Membership> {
        vec((any::<u64>(), ".{0,20}", any::<[u8; 16]>()), 0..5).prop_map(|nodes| {
            let voters: BTreeSet<NodeId> = nodes.iter().map(|(id, ..)| NodeId(*id)).collect();
            let members = nodes.into_iter().map(|(id, name, incarnation)| {
                let (peer_addr, client_addr) = (name.clone(), name);
                (NodeId(id), Member { peer_addr, client_addr, incarnation })
            });
            Membership { voters: vec![voters], members: members.collect() }
        })
    }

    /// What is read of all fields, in the order in which the test below writes them.
    type Fields = (bool, LogId, Option<LogId>, Vote, String, Membership);

    fn read(bytes: &[u8]) -> Result<Fields, Error> {
        let mut reader = Reader::new(bytes);
        let fields = (
            reader.flag()?,
            reader.log_id()?,
            reader.option(Reader::log_id)?,
            reader.vote()?,
            reader.text()?,
            reader.membership()?,
        );
        reader.finish()?;
        Ok(fields)
    }

    proptest! {
        /// Fields come back as they were written; without their last byte, or with one more, they
        /// are refused.
        #[test]
        fn fields_come_back(
            flag in any::<bool>(),
            id in any_log_id(),
            other in option::of(any_log_id()),
            committed in any::<bool>(),
            text in ".{0,20}",
            membership in any_membership(),
        ) {
            let vote = Vote { term: id.term, node: id.node, committed };
            let mut bytes = Vec::new();
            put_flag(&mut bytes, flag);
            put_log_id(&mut bytes, id);
            put_option(&mut bytes, other, put_log_id);
            put_vote(&mut bytes, vote);
            put_text(&mut bytes, &text);
            put_membership(&mut bytes, &membership);
            prop_assert_eq!(read(&bytes), Ok((flag, id, other, vote, text, membership)));
            prop_assert!(read(&bytes[..bytes.len() - 1]).is_err());
            bytes.push(0);
            prop_assert!(read(&bytes).is_err());
        }

        /// No bytes make the decoder panic, and what it takes is what would be written for it.
        #[test]
        fn garbage_never_panics(
            kind in 0..4u8,
            bytes in vec(prop_oneof![0..3u8, any::<u8>()], 0..200),
        ) {
            let _ = read(&bytes);
            if let Ok(body) = EntryBody::decode(kind, bytes.clone().into()) {
                // Bincode takes a number in a longer form than it writes: same value, other bytes.
                let (kind_again, again) = body.clone().encode();
                prop_assert_eq!(EntryBody::decode(kind_again, again), Ok(body));
            }
        }
    }

    /// Bodies of entries come back; what is none is refused, and says why.
    #[test]
    fn bodies_of_entries_come_back() {
        let member = Member::default();
        let membership = Membership {
            voters: vec![BTreeSet::from([NodeId(1)])],
            members: BTreeMap::from([(NodeId(1), member)]),
        };
        let proposal = EntryBody::Proposal(Bytes::from_static(b"proposal"));
        for body in [EntryBody::Blank, proposal, EntryBody::Membership(membership)] {
            let (kind, bytes) = body.clone().encode();
            assert_eq!(EntryBody::decode(kind, bytes), Ok(body));
        }
        let rows = [
            (BLANK, &b"x"[..], "blank entry: it has bytes"),
            (MEMBERSHIP, b"", "membership"),
            (MEMBERSHIP, &[0, 0, 0], "membership"),
        ];
        for (kind, bytes, what) in rows {
            let bytes = Bytes::from_static(bytes);
            assert_eq!(EntryBody::decode(kind, bytes), Err(Error::Value(what)), "{kind}");
        }
        let unknown = Err(Error::Kind { what: "an entry", found: 9 });
        assert_eq!(EntryBody::decode(9, Bytes::new()), unknown);
    }

    /// Impossible values are refused by name.
    #[test]
    fn impossible_values_are_refused() {
        let id = |term: u64, index: u64| [term, 1, index].map(u64::to_le_bytes).concat();
        let read = |bytes: &[u8]| Reader::new(bytes).log_id().map(drop);
        assert_eq!(read(&id(POSITION_MAX - 1, POSITION_MAX - 1)), Ok(()));
        assert_eq!(read(&id(POSITION_MAX, 0)), Err(Error::Value("term")));
        assert_eq!(read(&id(0, u64::MAX)), Err(Error::Value("index")));
        assert_eq!(Reader::new(&[2]).flag(), Err(Error::Value("flag")));
        assert_eq!(Reader::new(&[1, 0, 0, 0, 0xff]).text(), Err(Error::Value("text")));
        assert_eq!(Reader::new(&[0xff; 4]).text(), Err(Error::Length));
        let mut vote = id(1, 0)[..16].to_vec();
        vote.push(2);
        assert_eq!(Reader::new(&vote).vote(), Err(Error::Value("flag")));
    }

    /// What no reader takes is not written: it would be found only when it is read back.
    #[test]
    fn places_of_no_log_are_not_written() {
        let (node, committed) = (NodeId(1), false);
        for (term, index) in [(POSITION_MAX, 0), (0, POSITION_MAX)] {
            let put = || put_log_id(&mut Vec::new(), LogId { term, node, index });
            assert!(std::panic::catch_unwind(put).is_err(), "{term} {index}");
        }
        let put = || put_vote(&mut Vec::new(), Vote { term: POSITION_MAX, node, committed });
        assert!(std::panic::catch_unwind(put).is_err());
    }
}
