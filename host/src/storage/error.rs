//! What can go wrong on disk, named by what the operator or the caller can do about it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::blocking::may_block;
use crate::types::{ClusterId, NodeId};

/// Why storage could not do what it was asked. Nothing is ever acknowledged after one.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The system refused a file operation.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said; shared, because the first error is kept for every later call.
        source: Arc<io::Error>,
    },
    /// A file is not what was written: the node must not vote, serve or acknowledge from it.
    #[error("{file} is damaged at byte {offset}: {reason}", file = file.display())]
    Damaged {
        /// The file.
        file: PathBuf,
        /// Where in the file, in bytes from its start.
        offset: u64,
        /// What does not hold there.
        reason: String,
    },
    /// Another process holds the data folder.
    #[error("data folder already in use: {path} is locked by {holder}", path = path.display())]
    Locked {
        /// The data folder.
        path: PathBuf,
        /// The process that holds it, as far as it says so.
        holder: String,
    },
    /// The data folder belongs to another node.
    #[error(
        "{path} belongs to node {found}, and this is node {asked}: start with --node-id {found}, \
         or give node {asked} a data folder of its own",
        path = path.display()
    )]
    WrongNode {
        /// The data folder.
        path: PathBuf,
        /// The node that owns it.
        found: NodeId,
        /// The node that wants to start on it.
        asked: NodeId,
    },
    /// The data folder belongs to another cluster.
    #[error(
        "{path} belongs to cluster {found}, and this is cluster {asked}: to move the node, remove \
         it from the old cluster and start it on an empty data folder",
        path = path.display()
    )]
    WrongCluster {
        /// The data folder.
        path: PathBuf,
        /// The cluster that owns it.
        found: ClusterId,
        /// The cluster that it was asked to join.
        asked: ClusterId,
    },
    /// The folder has an identity and its log is gone: the node has forgotten what it promised.
    #[error(
        "{path} is missing or empty although the node took part in a cluster: it must not vote \
         again from a forgotten log. Repair: `lockstep cluster remove` this node, empty its \
         data folder, start it under a new id, and `lockstep cluster add` it",
        path = path.display()
    )]
    LogMissing {
        /// The folder of the log.
        path: PathBuf,
    },
    /// An earlier call failed. Its error stays until restart, since after it nobody knows what
    /// the disk holds.
    #[error("the log failed earlier and stays closed until restart: {first}")]
    Latched {
        /// The first error.
        first: String,
    },
    /// The caller asked for what storage does not hold, or handed over what it may not.
    #[error("{0}")]
    Refused(String),
}

/// What to do about a damaged snapshot. It depends on what lies beside it: names of snapshots are
/// in the order of their indexes.
pub(crate) fn snapshot_repair(file: &Path) -> String {
    may_block();
    let folder = file.parent().unwrap_or(Path::new("."));
    let beside = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path());
    let beside: Vec<PathBuf> = beside
        .filter(|path| path.extension() == file.extension() && path.as_path() != file)
        .collect();
    let name = |path: &PathBuf| {
        path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
    };
    let newer = beside.iter().filter(|path| path.as_path() > file).max();
    let older = beside.iter().filter(|path| path.as_path() < file).max();
    match (newer, older) {
        (Some(newer), _) => format!(
            "Repair: removing {} is enough, since {} beside it is newer",
            file.display(),
            name(newer)
        ),
        (None, Some(older)) => format!(
            "Repair: remove {}; the log leads on from {} beside it",
            file.display(),
            name(older)
        ),
        (None, None) => format!(
            "Repair: no other snapshot is in {}: remove this node from the cluster and add it \
             again, under a new id, on an empty data folder",
            folder.display()
        ),
    }
}

impl Error {
    /// An I/O error on `path`.
    pub(crate) fn io(path: &Path, source: io::Error) -> Self {
        Self::Io { path: path.to_owned(), source: Arc::new(source) }
    }

    /// Damage at `offset` of `file`.
    pub(crate) fn damaged(file: &Path, offset: u64, reason: impl Into<String>) -> Self {
        Self::Damaged { file: file.to_owned(), offset, reason: reason.into() }
    }

    /// Adds the repair to damage of what only this node holds: its log, vote and identity.
    pub(crate) fn with_repair(self) -> Self {
        match self {
            Self::Damaged { file, offset, reason } => {
                let reason = format!(
                    "{reason}. Repair: keep the folder for a look at the disk, and never edit or \
                     cut the file; `lockstep cluster remove` this node, start it under a new id \
                     on an empty data folder, and `lockstep cluster add` it"
                );
                Self::Damaged { file, offset, reason }
            }
            other => other,
        }
    }

    /// Adds the repair to damage of a snapshot, of which others may be there.
    pub(crate) fn with_snapshot_repair(self) -> Self {
        match self {
            Self::Damaged { file, offset, reason } => {
                let reason = format!("{reason}. {}", snapshot_repair(&file));
                Self::Damaged { file, offset, reason }
            }
            other => other,
        }
    }

    /// Whether the disk, or what this process may have of it, has no room: no bytes, no quota, no
    /// inodes (which the system reports as no bytes), or no more in one file. Such an error is no
    /// fault of the disk, and goes by itself once there is room.
    pub fn is_no_room(&self) -> bool {
        matches!(self, Self::Io { source, .. } if is_no_room(source.kind()))
    }

    /// Whether this is no fault of the disk and may pass by itself: there is no room, or no
    /// descriptor to open a file with.
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Io { source, .. } if is_no_room(source.kind()) || is_no_file(source))
    }

    /// Whether there is no such file.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }

    /// The same as an I/O error, for interfaces that carry no other.
    pub fn into_io(self) -> io::Error {
        let kind = match &self {
            Self::Io { source, .. } => source.kind(),
            Self::Damaged { .. } => io::ErrorKind::InvalidData,
            Self::Refused(_) => io::ErrorKind::InvalidInput,
            _ => io::ErrorKind::Other,
        };
        io::Error::new(kind, self)
    }
}

/// Whether an I/O error of this kind says that there is no room; see [`Error::is_no_room`].
fn is_no_room(kind: io::ErrorKind) -> bool {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(kind, StorageFull | QuotaExceeded | FileTooLarge)
}

/// Whether this process, or the system, has no descriptor left to open a file with.
fn is_no_file(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}
