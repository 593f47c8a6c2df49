//! A snapshot of this node's own state on its way to disk.
//!
//! A file that cannot be opened for want of descriptors or of room is tried again, with the alarm
//! standing, until a later checkpoint takes the place of this one: the log still has everything.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::Snapshots;
use super::content::{PIECES_AHEAD, SECTION_DIGEST};
use super::description::Description;
use crate::machine::snapshot::content::Piece;
use crate::machine::{ContentDigest, FrozenState, HostFailure};
use crate::storage::snapshot::{Snapshot, SnapshotWriter};
use crate::storage::{Error, is_no_room};
use crate::types::LogId;

/// Wait before a file that could not be opened is tried again; it doubles up to the longest.
const REOPEN_PAUSE_MIN: Duration = Duration::from_millis(100);
const REOPEN_PAUSE_MAX: Duration = Duration::from_secs(5);

/// A snapshot under way.
pub struct Capture {
    /// What comes of it.
    pub task: JoinHandle<Captured>,
    /// Ends the tries to open the file.
    pub give_up: CancellationToken,
}

/// What came of a capture.
pub struct Captured {
    /// The file, once it is whole and synced.
    pub written: Result<Snapshot, Error>,
    /// What became of sending the state, if that was begun: sentences about guests that could not
    /// export theirs.
    pub sent: Option<Result<Vec<String>, HostFailure>>,
}

impl Capture {
    /// Begins to write a frozen state, as of `last`.
    pub fn begin(
        snapshots: Arc<Snapshots>,
        last: LogId,
        description: &Description,
        frozen: FrozenState,
    ) -> Self {
        let meta = description.encode();
        let give_up = CancellationToken::new();
        let opened = opened(snapshots, last, meta.into(), give_up.clone());
        let task = tokio::spawn(async move {
            let writer = match opened.await {
                Ok(writer) => writer,
                Err(error) => return Captured { written: Err(error), sent: None },
            };
            // Not before: what is sent needs descriptors as well, to read modules.
            let (pieces, receiver) = mpsc::channel(PIECES_AHEAD);
            let sent = frozen.send(pieces);
            let written = blocking(move || write(writer, receiver)).await;
            Captured { written, sent: sent.await.ok() }
        });
        Self { task, give_up }
    }
}

/// Opens the file; see the top of this one.
async fn opened(
    snapshots: Arc<Snapshots>,
    last: LogId,
    meta: Arc<[u8]>,
    give_up: CancellationToken,
) -> Result<SnapshotWriter, Error> {
    let mut pause = REOPEN_PAUSE_MIN;
    loop {
        let (dir, meta) = (snapshots.dir.clone(), Arc::clone(&meta));
        let error = match blocking(move || dir.begin(Some(last), &meta)).await {
            Ok(writer) => return Ok(writer),
            Err(error) => error,
        };
        let Some(reason) = passing(&error) else { return Err(error) };
        snapshots.alarms.set_unwritten(reason);
        tokio::select! {
            () = tokio::time::sleep(pause) => pause = (pause * 2).min(REOPEN_PAUSE_MAX),
            () = give_up.cancelled() => return Err(error),
        }
    }
}

/// Disk work, off the async workers.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}

/// What an alarm says of a snapshot that cannot be written for a reason that may pass: the disk is
/// full, or the process, or the system, has no descriptor left.
pub fn passing(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    let mut cause = Some(error);
    while let Some(this) = cause {
        // The errors of storage share theirs.
        let shared = || this.downcast_ref::<Arc<io::Error>>().map(Arc::as_ref);
        if let Some(io) = this.downcast_ref::<io::Error>().or_else(shared) {
            if is_no_room(io.kind()) {
                return Some(format!("no room for a snapshot: {error}"));
            }
            if matches!(io.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)) {
                return Some(format!("no file for a snapshot can be opened: {error}"));
            }
        }
        cause = this.source();
    }
    None
}

/// Writes pieces to a file until they end; a capture that is broken off leaves none.
fn write(mut writer: SnapshotWriter, mut pieces: mpsc::Receiver<Piece>) -> Result<Snapshot, Error> {
    let mut digest = ContentDigest::default();
    while let Some(piece) = pieces.blocking_recv() {
        digest.add(&piece);
        match piece {
            Piece::Begin(kind) => writer.section(kind)?,
            Piece::Chunk(bytes) => writer.chunk(&bytes)?,
            Piece::End => {
                writer.section(SECTION_DIGEST)?;
                writer.chunk(&digest.finish().0)?;
                return writer.finish();
            }
        }
    }
    Err(Error::Refused("the capture of a snapshot was broken off".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk without room and a process without descriptors pass, as storage says them and as
    /// openraft is told; what may be a fault of the disk does not.
    #[test]
    fn what_may_pass_is_known() {
        let rows = [
            (libc::EMFILE, Some("no file for a snapshot can be opened")),
            (libc::ENFILE, Some("no file for a snapshot can be opened")),
            (libc::ENOSPC, Some("no room for a snapshot")),
            (libc::EDQUOT, Some("no room for a snapshot")),
            (libc::EIO, None),
            (libc::EACCES, None),
        ];
        for (code, expected) in rows {
            let source = Arc::new(io::Error::from_raw_os_error(code));
            let error = Error::Io { path: "snapshots".into(), source };
            let said = passing(&error);
            assert_eq!(said.is_some(), expected.is_some(), "{error}");
            assert!(said.unwrap_or_default().starts_with(expected.unwrap_or_default()));
            assert_eq!(passing(&error.clone().into_io()).is_some(), expected.is_some());
        }
    }
}
