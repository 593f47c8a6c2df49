//! The layout of requests and replies: bytes end to end, and where each ends.
//!
//! One pass and two allocations a call whatever the number of requests. It does not know what the
//! bytes mean.
//!
//! Invariants: `ends` never falls and its last is the length of `data`, on both sides; there are
//! no more replies than requests.

use std::borrow::Cow;
use std::fmt;

/// Requests that were checked to lie within their bytes.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    data: &'a [u8],
    ends: &'a [u32],
}

/// Why bytes and ends are no batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BatchError {
    /// This end comes before the one ahead of it.
    Falls {
        /// Position of the end.
        request: usize,
    },
    /// The last end is not the length of the bytes.
    Length {
        /// The last end, 0 without requests.
        end: u64,
        /// Length of the bytes.
        length: usize,
    },
}

impl fmt::Display for BatchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Falls { request } => {
                write!(f, "request {request} ends before the one ahead of it")
            }
            Self::Length { end, length } => {
                write!(f, "the last request ends at {end} of {length} bytes")
            }
        }
    }
}

impl std::error::Error for BatchError {}

impl<'a> Batch<'a> {
    /// Takes bytes and ends, and checks that they fit.
    ///
    /// # Errors
    /// When they don't; see [`BatchError`].
    pub fn new(data: &'a [u8], ends: &'a [u32]) -> Result<Self, BatchError> {
        if let Some(fall) = ends.windows(2).position(|pair| pair[1] < pair[0]) {
            return Err(BatchError::Falls { request: fall + 1 });
        }
        let end = ends.last().copied().unwrap_or(0);
        if usize::try_from(end) != Ok(data.len()) {
            return Err(BatchError::Length { end: u64::from(end), length: data.len() });
        }
        Ok(Self { data, ends })
    }

    /// Number of requests.
    pub fn count(&self) -> usize {
        self.ends.len()
    }

    /// The requests, in order.
    pub fn requests(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let data = self.data;
        let mut start = 0;
        self.ends.iter().map(move |&end| {
            let end = usize::try_from(end).expect("an end within a slice fits usize");
            let request = &data[start..end];
            start = end;
            request
        })
    }
}

/// Replies as they are gathered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Replies {
    /// The bytes of all replies.
    pub data: Vec<u8>,
    /// Where each ends.
    pub ends: Vec<u32>,
    /// Positions of those that say no.
    pub rejected: Vec<u32>,
}

impl Replies {
    /// Replies with room for `count` of them.
    pub fn with_capacity(count: usize) -> Self {
        // Most replies are short words or one value; a guess that is wrong costs one more copy.
        let data = Vec::with_capacity(count.saturating_mul(16));
        Self { data, ends: Vec::with_capacity(count), rejected: Vec::new() }
    }

    /// Adds the reply that `answer` writes, or the rejection that it returns.
    ///
    /// # Panics
    /// When all replies together are 4 GiB, which no guest's memory holds beside the rest.
    pub fn push(&mut self, answer: impl FnOnce(&mut Reply<'_>) -> Result<(), Rejection>) {
        let start = self.data.len();
        if let Err(Rejection(text)) = answer(&mut Reply { data: &mut self.data }) {
            self.data.truncate(start);
            self.data.extend_from_slice(&text);
            let position = u32::try_from(self.ends.len()).expect("as many ends as fit a u32");
            self.rejected.push(position);
        }
        self.ends.push(u32::try_from(self.data.len()).expect("replies are below 4 GiB"));
    }
}

/// Where the reply to one request is written. Nothing written is an empty reply.
#[derive(Debug)]
pub struct Reply<'a> {
    data: &'a mut Vec<u8>,
}

impl Reply<'_> {
    /// Adds bytes to the reply.
    pub fn push(&mut self, bytes: &[u8]) {
        self.data.extend_from_slice(bytes);
    }

    /// Adds formatted text to the reply, for `write!(reply, ..)`. Unlike other writers it can't
    /// fail, so that there is no result to look at.
    pub fn write_fmt(&mut self, text: fmt::Arguments<'_>) {
        match text.as_str() {
            Some(text) => self.push(text.as_bytes()),
            None => std::io::Write::write_fmt(self.data, text).expect("a Vec takes every byte"),
        }
    }
}

/// The reply to a request that was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection(pub Cow<'static, [u8]>);

impl From<&'static str> for Rejection {
    fn from(text: &'static str) -> Self {
        Self(Cow::Borrowed(text.as_bytes()))
    }
}

impl From<String> for Rejection {
    fn from(text: String) -> Self {
        Self(Cow::Owned(text.into_bytes()))
    }
}

impl From<Vec<u8>> for Rejection {
    fn from(bytes: Vec<u8>) -> Self {
        Self(Cow::Owned(bytes))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn laid_out(requests: &[Vec<u8>]) -> (Vec<u8>, Vec<u32>) {
        let mut data = Vec::new();
        let mut ends = Vec::new();
        for request in requests {
            data.extend_from_slice(request);
            ends.push(u32::try_from(data.len()).unwrap());
        }
        (data, ends)
    }

    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(any::<u8>(), 0..40)
    }

    proptest! {
        /// What was laid out comes back, request by request.
        #[test]
        fn requests_come_back(requests in prop::collection::vec(bytes(), 0..40)) {
            let (data, ends) = laid_out(&requests);
            let batch = Batch::new(&data, &ends).unwrap();
            prop_assert_eq!(batch.count(), requests.len());
            prop_assert_eq!(batch.requests().collect::<Vec<_>>(), requests);
        }

        /// Any bytes and ends are read or refused, never a panic; what is read covers all bytes.
        #[test]
        fn any_input_is_read_or_refused(
            data in bytes(),
            ends in prop::collection::vec(0_u32..45, 0..8),
        ) {
            let fits = ends.is_sorted() && ends.last().map_or(0, |end| *end as usize) == data.len();
            match Batch::new(&data, &ends) {
                Ok(batch) => {
                    prop_assert!(fits);
                    prop_assert_eq!(batch.requests().collect::<Vec<_>>().concat(), data);
                }
                Err(_) => prop_assert!(!fits),
            }
        }

        /// Replies are laid out as requests are, and the refused ones are listed.
        #[test]
        fn replies_are_a_batch(
            replies in prop::collection::vec((any::<bool>(), bytes()), 0..40),
        ) {
            let mut gathered = Replies::with_capacity(replies.len());
            for (accepted, bytes) in &replies {
                gathered.push(|reply| {
                    reply.push(bytes);
                    if *accepted { Ok(()) } else { Err(Rejection::from(bytes.clone())) }
                });
            }
            let batch = Batch::new(&gathered.data, &gathered.ends).unwrap();
            let expected: Vec<_> = replies.iter().map(|(_, bytes)| bytes.as_slice()).collect();
            prop_assert_eq!(batch.requests().collect::<Vec<_>>(), expected);
            let refused = replies.iter().enumerate().filter(|(_, (accepted, _))| !accepted);
            let refused: Vec<_> = refused.map(|(at, _)| u32::try_from(at).unwrap()).collect();
            prop_assert_eq!(gathered.rejected, refused);
        }
    }

    /// Errors name the request or the length that is wrong.
    #[test]
    fn errors_say_where() {
        assert_eq!(Batch::new(b"abc", &[2, 1, 3]).unwrap_err(), BatchError::Falls { request: 1 });
        let short = Batch::new(b"abc", &[2]).unwrap_err();
        assert_eq!(short, BatchError::Length { end: 2, length: 3 });
        assert_eq!(short.to_string(), "the last request ends at 2 of 3 bytes");
    }
}
