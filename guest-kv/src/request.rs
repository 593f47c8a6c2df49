//! Reads a request: exactly one RESP2 array of bulk strings.
//!
//! Stricter than Redis, which reads a stream: here the request is all there, so what is cut short,
//! left over, or not closed by CRLF is an error. Inline commands are none.

use lockstep_guest_sdk::Rejection;

use crate::error;

/// A request that was read to its end.
#[derive(Clone, Debug)]
pub(crate) struct Request<'a> {
    /// The command's name.
    pub(crate) name: &'a [u8],
    /// What follows it.
    pub(crate) arguments: Arguments<'a>,
}

/// Bulk strings that were checked, read again as they are asked for.
#[derive(Clone, Debug)]
pub struct Arguments<'a> {
    rest: &'a [u8],
    count: usize,
}

impl<'a> Request<'a> {
    /// Reads the request that `bytes` are.
    pub(crate) fn parse(bytes: &'a [u8]) -> Result<Self, Rejection> {
        let Some((&kind, rest)) = bytes.split_first() else {
            return Err(error::protocol("empty command"));
        };
        if kind != b'*' {
            return Err(error::protocol("expected an array of bulk strings"));
        }
        let wrong_count = || error::protocol("invalid multibulk length");
        let (count, rest) = line(rest).ok_or_else(wrong_count)?;
        let count = number(count).filter(|&count| count <= i64::from(i32::MAX));
        // Redis waits in silence for more after an array without elements; here none is to come.
        let count = usize::try_from(count.ok_or_else(wrong_count)?).unwrap_or(0);
        if count == 0 {
            return Err(error::protocol("empty command"));
        }
        check(rest, count)?;
        let mut arguments = Arguments { rest, count };
        let name = arguments.next().unwrap_or_default();
        Ok(Self { name, arguments })
    }
}

impl<'a> Iterator for Arguments<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        self.count = self.count.checked_sub(1)?;
        let (argument, rest) = bulk(self.rest).ok()?;
        self.rest = rest;
        Some(argument)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.count, Some(self.count))
    }
}

impl ExactSizeIterator for Arguments<'_> {}

/// Checks that `bytes` are `count` bulk strings and nothing else.
fn check(bytes: &[u8], count: usize) -> Result<(), Rejection> {
    let mut rest = bytes;
    for _ in 0..count {
        (_, rest) = bulk(rest)?;
    }
    if rest.is_empty() { Ok(()) } else { Err(error::protocol("bytes follow the command")) }
}

/// Reads one bulk string, and returns it with what follows.
fn bulk(bytes: &[u8]) -> Result<(&[u8], &[u8]), Rejection> {
    let ends_early = || error::protocol("the command ends early");
    let (&kind, rest) = bytes.split_first().ok_or_else(ends_early)?;
    if kind != b'$' {
        return Err(error::expected_bulk(kind));
    }
    let wrong_length = || error::protocol("invalid bulk length");
    let (length, rest) = line(rest).ok_or_else(wrong_length)?;
    let length = number(length).and_then(|length| usize::try_from(length).ok());
    let (string, rest) =
        rest.split_at_checked(length.ok_or_else(wrong_length)?).ok_or_else(ends_early)?;
    match rest.split_first_chunk::<2>() {
        Some((b"\r\n", rest)) => Ok((string, rest)),
        Some(_) => Err(error::protocol("expected CRLF after a bulk string")),
        None => Err(ends_early()),
    }
}

/// Splits a line from what follows it. A line here is a number, so a long one is none.
fn line(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.iter().take(24).position(|&byte| byte == b'\r')?;
    let rest = bytes[end..].strip_prefix(b"\r\n")?;
    Some((&bytes[..end], rest))
}

/// Reads a number as Redis's `string2ll` does: no sign but minus, no leading zeros or blanks.
pub(crate) fn number(text: &[u8]) -> Option<i64> {
    let digits = text.strip_prefix(b"-").unwrap_or(text);
    let negative = digits.len() < text.len();
    match digits {
        [b'0'] if !negative => return Some(0),
        [b'1'..=b'9', ..] => {}
        _ => return None,
    }
    digits.iter().try_fold(0_i64, |number, byte| {
        let digit = i64::from(byte.checked_sub(b'0').filter(|digit| *digit < 10)?);
        let number = number.checked_mul(10)?;
        if negative { number.checked_sub(digit) } else { number.checked_add(digit) }
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn reason(bytes: &[u8]) -> String {
        String::from_utf8(Request::parse(bytes).unwrap_err().0.into_owned()).unwrap()
    }

    /// Every way of being malformed has its reply.
    #[test]
    fn malformed_requests_say_why() {
        let rows: [(&[u8], &str); 18] = [
            (b"", "empty command"),
            (b"PING\r\n", "expected an array of bulk strings"),
            (b"*0\r\n", "empty command"),
            (b"*-1\r\n", "empty command"),
            (b"*1", "invalid multibulk length"),
            (b"*1\n$4\nPING\n", "invalid multibulk length"),
            (b"*+1\r\n$4\r\nPING\r\n", "invalid multibulk length"),
            (b"*01\r\n$4\r\nPING\r\n", "invalid multibulk length"),
            (b"*2147483648\r\n", "invalid multibulk length"),
            (b"*99999999999999999999999999\r\n", "invalid multibulk length"),
            (b"*1\r\n", "the command ends early"),
            (b"*1\r\n:4\r\n", "expected '$', got ':'"),
            (b"*1\r\n\r\n", "expected '$', got ' '"),
            (b"*1\r\n$-1\r\n", "invalid bulk length"),
            (b"*1\r\n$4 \r\nPING\r\n", "invalid bulk length"),
            (b"*1\r\n$5\r\nPING\r\n", "the command ends early"),
            (b"*1\r\n$4\r\nPINGxx", "expected CRLF after a bulk string"),
            (b"*1\r\n$4\r\nPING\r\nx", "bytes follow the command"),
        ];
        for (bytes, expected) in rows {
            assert_eq!(reason(bytes), format!("-ERR Protocol error: {expected}\r\n"), "{bytes:?}");
        }
    }

    /// Numbers are read as `string2ll` reads them.
    #[test]
    fn numbers_are_strict() {
        let limits = [i64::MIN.to_string(), i64::MAX.to_string()];
        assert_eq!(
            limits.each_ref().map(|n| number(n.as_bytes())),
            [Some(i64::MIN), Some(i64::MAX)]
        );
        for text in ["", "-", "-0", "00", "01", "+1", " 1", "1 ", "1a", "9223372036854775808"] {
            assert_eq!(number(text.as_bytes()), None, "{text:?}");
        }
        assert_eq!(number(b"0"), Some(0));
    }

    proptest! {
        /// What was encoded comes back, whatever the bytes.
        #[test]
        fn requests_come_back(words in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20), 1..10)) {
            let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
            for word in &words {
                bytes.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
                bytes.extend_from_slice(word);
                bytes.extend_from_slice(b"\r\n");
            }
            let request = Request::parse(&bytes).unwrap();
            prop_assert_eq!(request.name, &words[0]);
            prop_assert_eq!(request.arguments.len(), words.len() - 1);
            prop_assert_eq!(request.arguments.collect::<Vec<_>>(), &words[1..]);
            for end in 0..bytes.len() {
                prop_assert!(Request::parse(&bytes[..end]).is_err());
            }
        }

        /// Any bytes are read or refused, never a panic.
        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(prop::sample::select(b"*$:-0129\r\nPING\0\xff".to_vec()), 0..40)) {
            if let Ok(request) = Request::parse(&bytes) {
                prop_assert_eq!(request.arguments.len(), request.arguments.clone().count());
            }
        }
    }
}
