//! A module on its way in, checked against what was said of it before.

use bytes::{Bytes, BytesMut};
use sha2::{Digest as _, Sha256};

use super::error::Error;
use crate::config::limits;
use crate::types::ModuleDigest;

/// A module on its way in. **Invariant:** never longer than was said, which is within the limit.
pub(in crate::api) struct Upload {
    digest: ModuleDigest,
    length: usize,
    bytes: BytesMut,
}

impl Upload {
    /// A module that has this SHA-256 and length.
    pub(in crate::api) fn begin(digest: &[u8], length: u64) -> Result<Self, Error> {
        let digest = ModuleDigest::from_slice(digest)
            .ok_or_else(|| Error::invalid("the digest must be a SHA-256, 32 bytes"))?;
        let bytes = usize::try_from(length).unwrap_or(usize::MAX);
        if bytes > limits::MODULE_BYTES_MAX {
            let limit = limits::MODULE_BYTES_MAX as u64;
            return Err(Error::too_large("the module", length, limit));
        }
        Ok(Self { digest, length: bytes, bytes: BytesMut::new() })
    }

    /// Its next bytes.
    pub(in crate::api) fn append(&mut self, chunk: &[u8]) -> Result<(), Error> {
        if self.bytes.len() + chunk.len() > self.length {
            return Err(Error::invalid("the module is longer than its header says"));
        }
        self.bytes.extend_from_slice(chunk);
        Ok(())
    }

    /// The module, whole.
    pub(in crate::api) fn finish(self) -> Result<Bytes, Error> {
        if self.bytes.len() != self.length {
            return Err(Error::invalid("the module is shorter than its header says"));
        }
        if Sha256::digest(&self.bytes)[..] != self.digest.0 {
            return Err(Error::invalid("the module does not have the digest that its header says"));
        }
        Ok(self.bytes.freeze())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A module comes in whole, as was said, or not at all.
    #[test]
    fn uploads_are_checked() {
        let digest = Sha256::digest(b"module");
        let check = |digest: &[u8], length: usize, chunks: &[&[u8]]| {
            let mut upload = Upload::begin(digest, length as u64)?;
            chunks.iter().try_for_each(|chunk| upload.append(chunk))?;
            upload.finish()
        };
        assert_eq!(check(&digest, 6, &[b"mod", b"", b"ule"]).unwrap(), "module");
        assert!(check(&digest, 6, &[b"mod"]).is_err());
        assert!(check(&digest, 6, &[b"module", b"x"]).is_err());
        assert!(check(&digest, 6, &[b"moduLe"]).is_err());
        assert!(check(b"short", 6, &[]).is_err());
        assert!(check(&digest, limits::MODULE_BYTES_MAX + 1, &[]).is_err());
    }
}
