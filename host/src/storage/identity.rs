//! The identity file: which node and which cluster a data folder belongs to.
//!
//! It is text, so that an operator can read it, and strict: the file must be exactly what this
//! module would write for the values in it, checksum included (docs/formats.md, "Identity").
//! Written once at the first start and once more when the node joins a cluster; whole or not at
//! all.

use std::fmt::Write as _;
use std::io;
use std::path::Path;

use super::blocking::may_block;
use super::{Error, durable};
use crate::types::{ClusterId, Incarnation, NodeId};

const FIRST_LINE: &str = "lockstep identity 1";

/// Who a data folder is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The node that it belongs to.
    pub node_id: NodeId,
    /// Random; tells this folder from an earlier one of the same node.
    pub incarnation: Incarnation,
    /// The cluster, once the node has joined one.
    pub cluster: Option<ClusterId>,
}

impl Identity {
    /// A new identity outside any cluster.
    pub(super) fn create(node_id: NodeId) -> io::Result<Self> {
        let mut incarnation = [0; 16];
        getrandom::fill(&mut incarnation)?;
        Ok(Self { node_id, incarnation: Incarnation(incarnation), cluster: None })
    }

    /// Reads the file; `None` when there is none.
    pub(super) fn load(path: &Path) -> Result<Option<Self>, Error> {
        may_block();
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io(path, error)),
        };
        let identity = parse(&bytes).ok_or_else(|| {
            Error::damaged(path, 0, "a line is missing, added or not as it was written")
        })?;
        let written = identity.to_text();
        if written.as_bytes() == bytes {
            return Ok(Some(identity));
        }
        let differs = written.bytes().zip(&bytes).position(|(ours, theirs)| ours != *theirs);
        let offset = differs.unwrap_or(written.len().min(bytes.len()));
        let offset = u64::try_from(offset).expect("a usize fits");
        Err(Error::damaged(path, offset, "not what was written: the checksum differs"))
    }

    /// Writes the file, whole or not at all.
    pub(super) fn store(&self, path: &Path) -> Result<(), Error> {
        let text = self.to_text();
        assert_eq!(parse(text.as_bytes()), Some(*self), "what is written can be read");
        durable::write_whole(path, text.as_bytes())
    }

    fn to_text(self) -> String {
        let cluster = self.cluster.map_or("none".to_owned(), |cluster| cluster.to_string());
        let mut text = format!(
            "{FIRST_LINE}\nnode {}\nincarnation {}\ncluster {cluster}\n",
            self.node_id, self.incarnation
        );
        let checksum = crc32c::crc32c(text.as_bytes());
        writeln!(text, "crc32c {checksum:08x}").expect("a String takes all that is written");
        text
    }
}

/// Takes the values from the lines; whether they are as written is for the caller to check.
fn parse(bytes: &[u8]) -> Option<Identity> {
    let mut lines = std::str::from_utf8(bytes).ok()?.lines();
    if lines.next()? != FIRST_LINE {
        return None;
    }
    let mut value = |key: &str| lines.next()?.strip_prefix(key)?.strip_prefix(' ');
    let node_id = NodeId(value("node")?.parse().ok()?);
    let incarnation = Incarnation(parse_hex(value("incarnation")?)?);
    let cluster = match value("cluster")? {
        "none" => None,
        id => Some(ClusterId(parse_hex(id)?)),
    };
    Some(Identity { node_id, incarnation, cluster })
}

fn parse_hex(text: &str) -> Option<[u8; 16]> {
    let mut bytes = [0; 16];
    hex::decode_to_slice(text, &mut bytes).ok()?;
    Some(bytes)
}
