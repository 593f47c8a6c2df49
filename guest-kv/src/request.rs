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

/// What is wrong with a request. It becomes a reply only once it leaves this module, so that
/// reading passes no allocation around.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Malformed {
    NoArray,
    Count,
    Empty,
    NotBulk(u8),
    Length,
    Unclosed,
    EndsEarly,
    LeftOver,
}

impl From<Malformed> for Rejection {
    fn from(malformed: Malformed) -> Self {
        error::protocol(match malformed {
            Malformed::NoArray => "expected an array of bulk strings",
            Malformed::Count => "invalid multibulk length",
            Malformed::Empty => "empty command",
            Malformed::NotBulk(byte) => return error::expected_bulk(byte),
            Malformed::Length => "invalid bulk length",
            Malformed::Unclosed => "expected CRLF after a bulk string",
            Malformed::EndsEarly => "the command ends early",
            Malformed::LeftOver => "bytes follow the command",
        })
    }
}

impl<'a> Request<'a> {
    /// Reads the request that `bytes` are.
    pub(crate) fn parse(bytes: &'a [u8]) -> Result<Self, Rejection> {
        Ok(Self::read(bytes)?)
    }

    fn read(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let (&kind, rest) = bytes.split_first().ok_or(Malformed::Empty)?;
        if kind != b'*' {
            return Err(Malformed::NoArray);
        }
        let (count, rest) = length(rest).ok_or(Malformed::Count)?;
        // Redis waits in silence for more after an array without elements; here none is to come.
        if count == 0 {
            return Err(Malformed::Empty);
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
fn check(bytes: &[u8], count: usize) -> Result<(), Malformed> {
    let mut rest = bytes;
    for _ in 0..count {
        (_, rest) = bulk(rest)?;
    }
    if rest.is_empty() { Ok(()) } else { Err(Malformed::LeftOver) }
}

/// Reads one bulk string, and returns it with what follows.
fn bulk(bytes: &[u8]) -> Result<(&[u8], &[u8]), Malformed> {
    let (&kind, rest) = bytes.split_first().ok_or(Malformed::EndsEarly)?;
    if kind != b'$' {
        return Err(Malformed::NotBulk(kind));
    }
    let (length, rest) = length(rest).ok_or(Malformed::Length)?;
    let (string, rest) = rest.split_at_checked(length).ok_or(Malformed::EndsEarly)?;
    match rest {
        [b'\r', b'\n', rest @ ..] => Ok((string, rest)),
        [_, _, ..] => Err(Malformed::Unclosed),
        _ => Err(Malformed::EndsEarly),
    }
}

/// Reads a line that is a length, and returns it with what follows. This is most of what reading
/// costs, and nearly all lengths have one, two or three digits: they go without a loop, each turn
/// of which is metered in the sandbox.
fn length(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let digit = |byte: &u8| u32::from(byte.wrapping_sub(b'0'));
    let (length, rest, least) = match bytes {
        [a, b'\r', b'\n', rest @ ..] => ([0, 0, digit(a)], rest, 0),
        [a, b, b'\r', b'\n', rest @ ..] => ([0, digit(a), digit(b)], rest, 10),
        [a, b, c, b'\r', b'\n', rest @ ..] => ([digit(a), digit(b), digit(c)], rest, 100),
        _ => return long_length(bytes),
    };
    let [a, b, c] = length;
    let length = a * 100 + b * 10 + c;
    // The first digit is not 0, unless it is the only one.
    (a.max(b).max(c) < 10 && length >= least).then_some((length as usize, rest))
}

/// The same, of any number of digits.
#[cold]
fn long_length(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let mut length: u32 = 0;
    for (position, &byte) in bytes.iter().enumerate().take(LENGTH_DIGITS_MAX + 1) {
        let digit = u32::from(byte.wrapping_sub(b'0'));
        if digit < 10 && position < LENGTH_DIGITS_MAX {
            length = length * 10 + digit;
        } else {
            let leads_with_zero = bytes[0] == b'0' && position > 1;
            let rest = bytes[position..].strip_prefix(b"\r\n")?;
            return (position > 0 && !leads_with_zero).then_some((length as usize, rest));
        }
    }
    None
}

/// Digits of a length: what has more is longer than any request.
const LENGTH_DIGITS_MAX: usize = 9;

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
            (b"*-1\r\n", "invalid multibulk length"),
            (b"*1", "invalid multibulk length"),
            (b"*1\n$4\nPING\n", "invalid multibulk length"),
            (b"*+1\r\n$4\r\nPING\r\n", "invalid multibulk length"),
            (b"*01\r\n$4\r\nPING\r\n", "invalid multibulk length"),
            (b"*1000000000\r\n", "invalid multibulk length"),
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

    fn words() -> impl Strategy<Value = Vec<Vec<u8>>> {
        prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20), 1..10)
    }

    /// A byte that is likely to mean something.
    fn byte() -> impl Strategy<Value = u8> {
        prop::sample::select(b"*$:-0129\r\nPING\0\xff".to_vec())
    }

    proptest! {
        /// What was encoded comes back, whatever the bytes.
        #[test]
        fn requests_come_back(words in words()) {
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
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(byte(), 0..40)) {
            if let Ok(request) = Request::parse(&bytes) {
                prop_assert_eq!(request.arguments.len(), request.arguments.clone().count());
            }
        }
    }
}
