//! Compiled code as bytes, for a cache: sealed with what it was made from, and opened only where
//! that is so.
//!
//! It knows no files: who keeps the bytes sees to it that nobody else writes them
//! (docs/formats.md, "Compiled code").

use sha2::{Digest as _, Sha256};
use wasmtime::component::Component;

use super::Error;
use crate::types::ModuleDigest;

/// Name and version of the format.
const MAGIC: &[u8; 8] = b"LSCODE\0\x01";
/// Length of an engine profile, in bytes: hexadecimal digits of a SHA-256.
const PROFILE_BYTES: usize = 64;
/// Length of a SHA-256, in bytes.
const HASH_BYTES: usize = 32;
/// Length of all before the code, in bytes.
const HEADER_BYTES: usize = MAGIC.len() + PROFILE_BYTES + HASH_BYTES + 8 + HASH_BYTES;

/// The code of a component, sealed.
pub(super) fn seal(
    component: &Component,
    profile: &str,
    digest: &ModuleDigest,
) -> Result<Vec<u8>, Error> {
    let code = component.serialize().map_err(|error| Error::Code(format!("{error:#}")))?;
    let mut sealed = head(profile, digest, code.len());
    let hash = hash(&sealed, &code);
    sealed.extend_from_slice(&hash);
    debug_assert_eq!(sealed.len(), HEADER_BYTES);
    sealed.extend_from_slice(&code);
    Ok(sealed)
}

/// The component whose code was sealed by this engine profile for this module.
pub(super) fn open(
    engine: &wasmtime::Engine,
    sealed: &[u8],
    profile: &str,
    digest: &ModuleDigest,
) -> Result<Component, Error> {
    let code = unseal(sealed, profile, digest).map_err(|what| Error::Code(what.to_owned()))?;
    // SAFETY: `deserialize` must be given bytes that `Component::serialize` gave, unchanged, on an
    // engine that fits. That these are such bytes, nothing in them can prove; it follows from:
    // - `seal` is the one function that writes this header, and it seals what `serialize` gave;
    // - header and code are covered by a SHA-256 that was just compared, so the bytes are those
    //   that were sealed, whatever the disk did to them: a torn, swapped or decayed file fails;
    // - the profile was just compared, and hashes `precompile_compatibility_hash` of the engine:
    //   compiler, version, target, settings, features. Wasmtime compares its own header again;
    // - who could forge all of that can write files of this user that only this user can open
    //   (`storage::code` checks owner and modes on each read), and could as well replace the
    //   daemon. The bytes never come from the network.
    #[expect(unsafe_code, reason = "compiled code can't be loaded otherwise; see the proof above")]
    let component = unsafe { Component::deserialize(engine, code) };
    component.map_err(|error| Error::Code(format!("{error:#}")))
}

/// The code in `sealed`, if it was sealed for this profile and module, and is whole.
fn unseal<'a>(
    sealed: &'a [u8],
    profile: &str,
    digest: &ModuleDigest,
) -> Result<&'a [u8], &'static str> {
    if !sealed.starts_with(MAGIC) {
        return Err("it is not compiled code of this version");
    }
    let (header, code) = sealed.split_at_checked(HEADER_BYTES).ok_or("it is cut short")?;
    let (found, found_hash) = header.split_at(HEADER_BYTES - HASH_BYTES);
    if found != head(profile, digest, code.len()) {
        return Err("it belongs to another engine or module, or is cut short");
    }
    if found_hash != hash(found, code) {
        return Err("it is damaged");
    }
    Ok(code)
}

/// The header, but for the hash.
fn head(profile: &str, digest: &ModuleDigest, code_bytes: usize) -> Vec<u8> {
    assert_eq!(profile.len(), PROFILE_BYTES, "a profile is a SHA-256 in hexadecimal");
    let code_bytes = u64::try_from(code_bytes).expect("a length in memory fits");
    [MAGIC, profile.as_bytes(), &digest.0, &code_bytes.to_le_bytes()].concat()
}

fn hash(head: &[u8], code: &[u8]) -> [u8; HASH_BYTES] {
    Sha256::new().chain_update(head).chain_update(code).finalize().into()
}

#[cfg(test)]
mod tests {
    use super::super::tests::{ENGINE, component};
    use super::*;

    const DIGEST: ModuleDigest = ModuleDigest([7; 32]);

    fn sealed() -> Vec<u8> {
        let component = Component::from_binary(ENGINE.inner(), &component("counter")).unwrap();
        seal(&component, ENGINE.profile(), &DIGEST).unwrap()
    }

    /// Sealed code opens again, and only for its engine and its module.
    #[test]
    fn code_opens_where_it_belongs() {
        let sealed = sealed();
        open(ENGINE.inner(), &sealed, ENGINE.profile(), &DIGEST).unwrap();
        let belongs = "it belongs to another engine or module, or is cut short";
        let other = "0".repeat(PROFILE_BYTES);
        assert_eq!(unseal(&sealed, &other, &DIGEST), Err(belongs));
        assert_eq!(unseal(&sealed, ENGINE.profile(), &ModuleDigest([8; 32])), Err(belongs));
    }

    /// No byte of it can be changed, cut off or added.
    #[test]
    fn damage_is_noticed() {
        let whole = sealed();
        let check = |bytes: &[u8]| unseal(bytes, ENGINE.profile(), &DIGEST).map(drop);
        check(&whole).unwrap();
        let places = (0..HEADER_BYTES).chain((HEADER_BYTES..whole.len()).step_by(997));
        for place in places.chain([whole.len() - 1]) {
            let mut flipped = whole.clone();
            flipped[place] ^= 1;
            check(&flipped).expect_err("a byte is another");
        }
        for length in [0, 1, MAGIC.len(), HEADER_BYTES - 1, HEADER_BYTES, whole.len() - 1] {
            check(&whole[..length]).expect_err("it is cut short");
        }
        check(&[&whole[..], &[0]].concat()).expect_err("there is more");
    }
}
