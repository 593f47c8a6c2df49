//! The cache of compiled code: kept for one engine profile, and given out only where nobody else
//! can have written it.

#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

use std::fs::Permissions;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use lockstep_host::storage::code::CodeStore;
use lockstep_host::types::ModuleDigest;

const PROFILE: &str = "aaaa";
const DIGEST: ModuleDigest = ModuleDigest([0x11; 32]);

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

/// A store that holds code for `DIGEST`, its folder, and the file.
fn filled(folder: &tempfile::TempDir) -> (CodeStore, PathBuf, PathBuf) {
    let path = folder.path().join("cache");
    let store = CodeStore::open(&path, PROFILE).unwrap();
    store.put(DIGEST, b"code").unwrap();
    let file = path.join(format!("{PROFILE}-{DIGEST}.code"));
    (store, path, file)
}

/// What was kept is there at the next start, closed to all others.
#[test]
fn code_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let (store, path, file) = filled(&folder);
    assert_eq!(store.get(DIGEST).unwrap().unwrap(), b"code");
    assert_eq!((mode(&path), mode(&file)), (0o700, 0o600));
    let again = CodeStore::open(&path, PROFILE).unwrap();
    assert_eq!(again.get(DIGEST).unwrap().unwrap(), b"code");
    assert_eq!(again.get(ModuleDigest([0x22; 32])).unwrap(), None);
    again.put(DIGEST, b"other").unwrap();
    assert_eq!(store.get(DIGEST).unwrap().unwrap(), b"other");
}

/// Another engine's start removes the code of this one, and what was left half written; files by
/// other names stay.
#[test]
fn code_of_other_engines_is_removed() {
    let folder = tempfile::tempdir().unwrap();
    let (_, path, file) = filled(&folder);
    std::fs::write(path.join("temporary-x"), b"half").unwrap();
    std::fs::write(path.join("note"), b"mine").unwrap();
    let other = CodeStore::open(&path, "bbbb").unwrap();
    assert!(!file.exists() && !path.join("temporary-x").exists());
    assert!(path.join("note").exists());
    assert_eq!(other.get(DIGEST).unwrap(), None);
}

/// A file that others could have written, or that lies elsewhere, is refused with the repair.
#[test]
fn files_open_to_others_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _, file) = filled(&folder);
    for wrong in [0o640, 0o606, 0o700, 0o4600] {
        set_mode(&file, wrong);
        let reason = store.get(DIGEST).unwrap_err().to_string();
        let said = format!("and mode {wrong:o}, and must be this user's with mode 600: remove it");
        assert!(reason.ends_with(&said), "{reason}");
    }
    store.put(DIGEST, b"new").unwrap();
    assert_eq!(store.get(DIGEST).unwrap().unwrap(), b"new", "it is replaced");
    let elsewhere = folder.path().join("elsewhere");
    std::fs::rename(&file, &elsewhere).unwrap();
    symlink(&elsewhere, &file).unwrap();
    store.get(DIGEST).expect_err("it is a link");
    std::fs::remove_file(&file).unwrap();
    std::fs::create_dir(&file).unwrap();
    store.get(DIGEST).expect_err("it is a folder");
}

/// A folder that others could write to is not used: neither for reading nor for writing.
#[test]
fn a_folder_open_to_others_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (store, path, _) = filled(&folder);
    for wrong in [0o755, 0o770, 0o1700] {
        set_mode(&path, wrong);
        let said = format!("and mode {wrong:o}, and must be this user's with mode 700: remove it");
        for error in [
            store.get(DIGEST).unwrap_err(),
            store.put(DIGEST, b"x").unwrap_err(),
            CodeStore::open(&path, PROFILE).unwrap_err(),
        ] {
            assert!(error.to_string().ends_with(&said), "{error}");
        }
    }
    set_mode(&path, 0o700);
    assert_eq!(store.get(DIGEST).unwrap().unwrap(), b"code");
    let link = folder.path().join("link");
    symlink(&path, &link).unwrap();
    CodeStore::open(&link, PROFILE).expect_err("it is a link");
    CodeStore::open(&folder.path().join("no").join("folder"), PROFILE)
        .expect_err("it has no place");
}
