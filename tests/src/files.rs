//! Damage to the files of a node, done while it does not run, as a failing disk, a power cut or
//! an operator would do it.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// The files in a folder, by name; no folders.
///
/// # Panics
/// When the folder cannot be read.
pub fn list(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder)
        .unwrap_or_else(|error| panic!("cannot list {}: {error}", folder.display()));
    let mut files: Vec<PathBuf> = entries
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.is_file())
        .collect();
    files.sort();
    files
}

/// Length of the head with which a segment of a log begins.
const SEGMENT_HEAD: u64 = 64;

/// The last file of a folder by name in which something stands: of a log, the segment in use.
///
/// # Panics
/// When there is none.
pub fn last(folder: &Path) -> PathBuf {
    let newest = list(folder).into_iter().rfind(|path| written(path) > SEGMENT_HEAD);
    newest.unwrap_or_else(|| panic!("no file in {}", folder.display()))
}

/// Where the zeros begin that a file ends with: of a segment of a log, where its records end.
///
/// # Panics
/// When it cannot be read.
pub fn written(file: &Path) -> u64 {
    let bytes = std::fs::read(file).expect("the file can be read");
    let written = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    u64::try_from(written).expect("files are shorter than that")
}

fn open(file: &Path) -> File {
    let opened = OpenOptions::new().read(true).write(true).open(file);
    opened.unwrap_or_else(|error| panic!("cannot open {}: {error}", file.display()))
}

/// Length of a file in bytes.
///
/// # Panics
/// When it is not there.
pub fn length(file: &Path) -> u64 {
    open(file).metadata().expect("an open file has a length").len()
}

/// Flips one bit of the byte at this offset.
///
/// # Panics
/// When there is no such byte.
pub fn flip_bit(file: &Path, offset: u64) {
    let opened = open(file);
    let mut byte = [0];
    opened.read_exact_at(&mut byte, offset).expect("the offset lies in the file");
    opened.write_all_at(&[byte[0] ^ 0x10], offset).expect("the file can be written");
}

/// Overwrites bytes in place.
///
/// # Panics
/// When they cannot be written.
pub fn overwrite(file: &Path, offset: u64, bytes: &[u8]) {
    open(file).write_all_at(bytes, offset).expect("the file can be written");
}

/// Overwrites a file with zeros from this offset to its end.
///
/// # Panics
/// When it cannot be written.
pub fn clear_from(file: &Path, offset: u64) {
    let left = length(file).checked_sub(offset).expect("the offset lies in the file");
    overwrite(file, offset, &vec![0; usize::try_from(left).expect("test files are short")]);
}

/// Cuts this many bytes off the end.
///
/// # Panics
/// When the file is shorter than that.
pub fn cut_off(file: &Path, bytes: u64) {
    end_at(file, length(file).checked_sub(bytes).expect("the file is long enough"));
}

/// Ends a file at this offset.
///
/// # Panics
/// When it cannot be written.
pub fn end_at(file: &Path, offset: u64) {
    open(file).set_len(offset).expect("the file can be cut");
}

/// Where these bytes stand in a file for the last time.
///
/// # Panics
/// When they are not in it.
pub fn find_last(file: &Path, wanted: &[u8]) -> u64 {
    let bytes = std::fs::read(file).expect("the file can be read");
    let place = bytes.windows(wanted.len()).rposition(|window| window == wanted);
    let place = place.unwrap_or_else(|| panic!("{wanted:?} is not in {}", file.display()));
    u64::try_from(place).expect("files are shorter than that")
}

/// The content of every file below a folder, to show that nothing changed.
///
/// # Panics
/// When it cannot be read.
pub fn snapshot(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("the folder can be listed") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let content = std::fs::read(&path).expect("the file can be read");
                found.push((path, content));
            }
        }
    }
    found.sort();
    found
}
