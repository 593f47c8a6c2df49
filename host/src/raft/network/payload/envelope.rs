//! What stands around the fields of every payload: a version before them, a checksum after them.

use bytes::{BufMut as _, Bytes};

use crate::codec::{Error, Reader};

/// Version of all payloads; a change of any layout is a new one.
const VERSION: u8 = 1;
const CHECKSUM_BYTES: usize = 4;

/// The beginning of a payload; the fields follow.
pub(super) fn begin(capacity: usize) -> Vec<u8> {
    let mut payload = Vec::with_capacity(capacity + 1 + CHECKSUM_BYTES);
    payload.put_u8(VERSION);
    payload
}

/// Ends a payload with the CRC32C of it, continued over `attached` parts that travel beside.
pub(super) fn finish(mut payload: Vec<u8>, attached: &[Bytes]) -> Bytes {
    let checksum = checksum(&payload, attached);
    payload.put_u32_le(checksum);
    payload.into()
}

fn checksum(payload: &[u8], attached: &[Bytes]) -> u32 {
    attached.iter().fold(crc32c::crc32c(payload), |sum, part| crc32c::crc32c_append(sum, part))
}

/// The fields of a payload, once version and checksum are found right.
pub(super) fn open<'a>(payload: &'a [u8], attached: &[Bytes]) -> Result<Reader<'a>, Error> {
    let (body, sum) = payload.split_last_chunk::<CHECKSUM_BYTES>().ok_or(Error::Length)?;
    let (version, fields) = body.split_first().ok_or(Error::Length)?;
    if *version != VERSION {
        return Err(Error::Version(*version));
    }
    if checksum(body, attached) != u32::from_le_bytes(*sum) {
        return Err(Error::Checksum);
    }
    Ok(Reader::new(fields))
}
