//! The data folder: its layout, its lock and its identity (docs/formats.md, "Data folder").
//!
//! **Invariant:** while a `DataDir` is open, no other process has the folder, and the folder
//! belongs to the node that opened it.
//! **Invariant:** a node that took part in a cluster never starts on an empty log: it would vote
//! again in terms in which it has voted.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::blocking::may_block;
use super::identity::Identity;
use super::lock::Lock;
use super::log::LogPlace;
use super::quarantine::Quarantine;
use super::{Error, durable};
use crate::types::{ClusterId, NodeId};

/// Name of the mark of a quarantined node.
const QUARANTINE: &str = "quarantine";

/// Why the locks of what is in memory are never poisoned.
const HOLDS: &str = "nothing panics while it holds it";

/// A data folder that is this process's alone.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    identity: Mutex<Identity>,
    quarantine: Mutex<Option<Quarantine>>,
    /// Held by whoever writes to the folder, for as long as the disk takes.
    writing: Mutex<()>,
    _lock: Lock,
}

impl DataDir {
    /// Takes the folder at `path` for `node_id`, creating it at the first start.
    ///
    /// # Errors
    /// `Locked` when another process has it, `WrongNode` when it belongs to another node,
    /// `LogMissing` when it has joined a cluster and its log is gone, `Damaged` when its identity
    /// is unreadable or gone, or its mark of a quarantine is unreadable.
    pub fn open(path: &Path, node_id: NodeId) -> Result<Self, Error> {
        durable::create_folder(path)?;
        let lock = Lock::take(path)?;
        durable::remove_temporaries(path)?;
        let identity_path = path.join("identity");
        let identity = match Identity::load(&identity_path).map_err(Error::with_repair)? {
            Some(identity) => identity,
            None => first_start(path, &identity_path, node_id)?,
        };
        if identity.node_id != node_id {
            let (found, asked) = (identity.node_id, node_id);
            return Err(Error::WrongNode { path: path.to_owned(), found, asked });
        }
        let quarantine = Mutex::new(Quarantine::load(&path.join(QUARANTINE))?);
        let (identity_now, writing) = (Mutex::new(identity), Mutex::default());
        let path = path.to_owned();
        let data_dir = Self { path, identity: identity_now, quarantine, writing, _lock: lock };
        let log = data_dir.log().folder;
        if identity.cluster.is_some() && !has_file(&log, "wal")? {
            return Err(Error::LogMissing { path: log });
        }
        Ok(data_dir)
    }

    /// Takes the folder at `path` for the node that it belongs to.
    ///
    /// # Errors
    /// As [`DataDir::open`], and `Refused` when there is none.
    pub fn open_existing(path: &Path) -> Result<Self, Error> {
        match Identity::load(&path.join("identity"))? {
            Some(identity) => Self::open(path, identity.node_id),
            None => Err(Error::Refused(format!("{} is no node's data folder", path.display()))),
        }
    }

    /// Who this folder is.
    pub fn identity(&self) -> Identity {
        *self.identity.lock().expect(HOLDS)
    }

    /// Binds the folder to `cluster`, durably, once. Again with the same cluster does nothing.
    /// The log must be open by then: from here on its absence is an error.
    ///
    /// # Errors
    /// `WrongCluster` when the folder belongs to another cluster.
    pub fn join_cluster(&self, cluster: ClusterId) -> Result<(), Error> {
        let _turn = self.turn_to_write();
        let identity = self.identity();
        match identity.cluster {
            Some(found) if found == cluster => Ok(()),
            Some(found) => {
                Err(Error::WrongCluster { path: self.path.clone(), found, asked: cluster })
            }
            None => {
                let joined = Identity { cluster: Some(cluster), ..identity };
                joined.store(&self.path.join("identity"))?;
                *self.identity.lock().expect(HOLDS) = joined;
                Ok(())
            }
        }
    }

    /// Why this node must not apply anything, if its state turned out to be another than the
    /// cluster's.
    pub fn quarantine(&self) -> Option<Quarantine> {
        self.quarantine.lock().expect(HOLDS).clone()
    }

    /// Marks this node, durably, until a repair. The first mark stays: it is the evidence.
    pub fn set_quarantine(&self, found: &Quarantine) -> Result<(), Error> {
        let _turn = self.turn_to_write();
        if self.quarantine().is_some() {
            return Ok(());
        }
        found.store(&self.path.join(QUARANTINE))?;
        *self.quarantine.lock().expect(HOLDS) = Some(found.clone());
        Ok(())
    }

    /// Waits until nobody else writes to the folder.
    fn turn_to_write(&self) -> MutexGuard<'_, ()> {
        may_block();
        // Whoever panicked has left the files as a crash would.
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a repaired snapshot, which lies elsewhere in this folder, in the place of all that are
    /// here, and removes the mark; both go to a folder of evidence, which is returned. The mark
    /// goes last, so that a repair that is broken off is run again.
    pub fn put_in_place(&self, repaired: &Path, mark: &Quarantine) -> Result<PathBuf, Error> {
        let (snapshots, evidence) = (self.snapshots(), self.path.join("evidence"));
        assert_eq!(self.quarantine().as_ref(), Some(mark), "what is repaired is marked");
        assert_ne!(repaired.parent(), Some(&*snapshots), "it comes from elsewhere");
        durable::create_folder(&evidence)?;
        let evidence = evidence.join(format!("checkpoint-{}", mark.index));
        durable::create_folder(&evidence)?;
        durable::create_folder(&snapshots)?;
        for entry in std::fs::read_dir(&snapshots).map_err(|error| Error::io(&snapshots, error))? {
            let entry = entry.map_err(|error| Error::io(&snapshots, error))?;
            // What an earlier attempt put in place is the evidence of nothing.
            durable::move_into(&entry.path(), &evidence)?;
        }
        durable::sync_folder(&snapshots)?;
        durable::move_into(repaired, &snapshots)?;
        durable::move_into(&self.path.join(QUARANTINE), &evidence)?;
        durable::sync_folder(&self.path)?;
        *self.quarantine.lock().expect(HOLDS) = None;
        let staging = repaired.parent().expect("a file lies in a folder");
        std::fs::remove_dir_all(staging).map_err(|error| Error::io(staging, error))?;
        Ok(evidence)
    }

    /// Puts a snapshot, which lies elsewhere in this folder, beside those that are here, so that
    /// the node goes on from it if it is the newest.
    pub fn add_snapshot(&self, snapshot: &Path) -> Result<(), Error> {
        let snapshots = self.snapshots();
        durable::create_folder(&snapshots)?;
        durable::move_into(snapshot, &snapshots)?;
        let staging = snapshot.parent().expect("a file lies in a folder");
        std::fs::remove_dir_all(staging).map_err(|error| Error::io(staging, error))
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the log and the vote lie, for [`super::Log::open`].
    pub fn log(&self) -> LogPlace {
        let owner = self.identity().incarnation;
        LogPlace { folder: self.path.join("log"), ledger: self.path.join("log-ledger"), owner }
    }

    /// Folder of the snapshots, for [`super::snapshot::SnapshotDir::open`].
    pub fn snapshots(&self) -> PathBuf {
        self.path.join("snapshots")
    }

    /// Folder of the modules, for [`super::modules::ModuleStore::open`].
    pub fn modules(&self) -> PathBuf {
        self.path.join("modules")
    }

    /// Folder of compiled code, for [`super::code::CodeStore::open`].
    pub fn cache(&self) -> PathBuf {
        self.path.join("cache")
    }
}

/// Writes the identity of an empty folder. One that holds data has lost its identity, and must
/// not get another: its peers know it by the old one.
fn first_start(path: &Path, identity: &Path, node_id: NodeId) -> Result<Identity, Error> {
    if has_file(&path.join("log"), "wal")? || has_file(&path.join("snapshots"), "snapshot")? {
        let reason = "it is missing, although the folder holds data";
        return Err(Error::damaged(identity, 0, reason).with_repair());
    }
    let created = Identity::create(node_id).map_err(|error| Error::io(identity, error))?;
    created.store(identity)?;
    Ok(created)
}

/// Whether a folder has a file with this extension.
fn has_file(folder: &Path, extension: &str) -> Result<bool, Error> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(Error::io(folder, error)),
    };
    for entry in entries {
        let name = entry.map_err(|error| Error::io(folder, error))?.file_name();
        if Path::new(&name).extension().is_some_and(|found| found == extension) {
            return Ok(true);
        }
    }
    Ok(false)
}
