//! RESP2, the Redis protocol (https://redis.io/docs/latest/develop/reference/protocol-spec/), as
//! far as a client of the guest `kv` needs it: encoding a command, and printing a reply the way
//! `redis-cli` does on a terminal. It is not a general Redis client.

use std::fmt::Write as _;

/// Arrays within arrays, at most; deeper replies are refused rather than overflow the stack.
const DEPTH_MAX: usize = 32;

/// Encodes a command: an array of bulk strings.
pub fn encode_command<A: AsRef<[u8]>>(arguments: &[A]) -> Vec<u8> {
    let mut out = format!("*{}\r\n", arguments.len()).into_bytes();
    for argument in arguments {
        let argument = argument.as_ref();
        out.extend_from_slice(format!("${}\r\n", argument.len()).as_bytes());
        out.extend_from_slice(argument);
        out.extend_from_slice(b"\r\n");
    }
    out
}

/// A reply of the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// `+OK`
    Simple(Vec<u8>),
    /// `-ERR ...`
    Error(Vec<u8>),
    /// `:1`
    Integer(i64),
    /// `$1 v`
    Bulk(Vec<u8>),
    /// `$-1` or `*-1`
    Nil,
    /// `*2 ...`
    Array(Vec<Reply>),
}

/// The bytes are not one RESP2 reply.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a RESP2 reply: {0}")]
pub struct Malformed(&'static str);

impl Reply {
    /// Reads bytes that must hold exactly one reply.
    pub fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut rest = bytes;
        let reply = parse_one(&mut rest, 0)?;
        if rest.is_empty() { Ok(reply) } else { Err(Malformed("bytes follow it")) }
    }

    /// True for an error reply.
    pub fn is_error(&self) -> bool {
        matches!(self, Self::Error(_))
    }

    /// What `redis-cli` prints on a terminal, without the last line's end.
    pub fn print(&self) -> String {
        let mut out = String::new();
        self.print_to(&mut out, 0);
        out
    }

    fn print_to(&self, out: &mut String, indent: usize) {
        match self {
            Self::Simple(text) => out.push_str(&String::from_utf8_lossy(text)),
            Self::Error(text) => {
                out.push_str("(error) ");
                out.push_str(&String::from_utf8_lossy(text));
            }
            Self::Integer(value) => write!(out, "(integer) {value}").expect("a String grows"),
            Self::Bulk(bytes) => print_quoted(out, bytes),
            Self::Nil => out.push_str("(nil)"),
            Self::Array(items) if items.is_empty() => out.push_str("(empty array)"),
            Self::Array(items) => print_array(out, items, indent),
        }
    }
}

/// Items are numbered from 1, the numbers aligned right; what follows the first line of an item
/// that is an array stands under it.
fn print_array(out: &mut String, items: &[Reply], indent: usize) {
    let width = items.len().to_string().len();
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            out.push('\n');
            out.push_str(&" ".repeat(indent));
        }
        write!(out, "{:>width$}) ", index + 1).expect("a String grows");
        item.print_to(out, indent + width + 2);
    }
}

fn print_quoted(out: &mut String, bytes: &[u8]) {
    out.push('"');
    for &byte in bytes {
        match byte {
            b'\\' | b'"' => out.extend(['\\', char::from(byte)]),
            b'\n' => out.push_str("\\n"),
            b'\r' => out.push_str("\\r"),
            b'\t' => out.push_str("\\t"),
            0x07 => out.push_str("\\a"),
            0x08 => out.push_str("\\b"),
            b' '..=b'~' => out.push(char::from(byte)),
            _ => write!(out, "\\x{byte:02x}").expect("a String grows"),
        }
    }
    out.push('"');
}

fn parse_one(rest: &mut &[u8], depth: usize) -> Result<Reply, Malformed> {
    if depth > DEPTH_MAX {
        return Err(Malformed("arrays are nested too deep"));
    }
    let (&kind, tail) = rest.split_first().ok_or(Malformed("it is cut short"))?;
    *rest = tail;
    let line = take_line(rest)?;
    match kind {
        b'+' => Ok(Reply::Simple(line.to_vec())),
        b'-' => Ok(Reply::Error(line.to_vec())),
        b':' => parse_integer(line).map(Reply::Integer),
        b'$' => parse_length(line)?.map_or(Ok(Reply::Nil), |length| take_bulk(rest, length)),
        b'*' => parse_length(line)?.map_or(Ok(Reply::Nil), |length| {
            let items = (0..length).map(|_| parse_one(rest, depth + 1));
            items.collect::<Result<_, _>>().map(Reply::Array)
        }),
        _ => Err(Malformed("its first byte is none of + - : $ *")),
    }
}

fn take_line<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], Malformed> {
    let end =
        rest.windows(2).position(|pair| pair == b"\r\n").ok_or(Malformed("it is cut short"))?;
    let line = &rest[..end];
    *rest = &rest[end + 2..];
    Ok(line)
}

fn take_bulk(rest: &mut &[u8], length: usize) -> Result<Reply, Malformed> {
    let (bytes, tail) = rest.split_at_checked(length).ok_or(Malformed("it is cut short"))?;
    *rest = tail.strip_prefix(b"\r\n").ok_or(Malformed("a string is not ended"))?;
    Ok(Reply::Bulk(bytes.to_vec()))
}

fn parse_integer(line: &[u8]) -> Result<i64, Malformed> {
    let text = std::str::from_utf8(line).map_err(|_| Malformed("a number has other bytes"))?;
    text.parse().map_err(|_| Malformed("a number is malformed"))
}

/// `None` for -1, which stands for nil.
fn parse_length(line: &[u8]) -> Result<Option<usize>, Malformed> {
    match parse_integer(line)? {
        -1 => Ok(None),
        length => usize::try_from(length).map(Some).map_err(|_| Malformed("a length is negative")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Replies are printed as redis-cli 7 prints them on a terminal.
    #[test]
    fn replies_print_like_redis_cli() {
        let check = |reply: &[u8], expected: &str| {
            assert_eq!(Reply::parse(reply).unwrap().print(), expected);
        };
        check(b"+OK\r\n", "OK");
        check(b"-ERR unknown command 'x'\r\n", "(error) ERR unknown command 'x'");
        check(b":1\r\n", "(integer) 1");
        check(b":-7\r\n", "(integer) -7");
        check(b"$1\r\nv\r\n", "\"v\"");
        check(b"$0\r\n\r\n", "\"\"");
        check(b"$-1\r\n", "(nil)");
        check(b"*-1\r\n", "(nil)");
        check(b"*0\r\n", "(empty array)");
        check(b"$8\r\na\"b\\\n\r\t\x07\r\n", "\"a\\\"b\\\\\\n\\r\\t\\a\"");
        check("$3\r\n\u{e9}\x00\r\n".as_bytes(), "\"\\xc3\\xa9\\x00\"");
        check(b"*2\r\n$1\r\na\r\n:2\r\n", "1) \"a\"\n2) (integer) 2");
        check(b"*2\r\n*2\r\n+a\r\n+b\r\n+c\r\n", "1) 1) a\n   2) b\n2) c");
        let ten = [b"*10\r\n".as_slice(), &b"+x\r\n".repeat(9), b"*2\r\n+y\r\n+z\r\n"].concat();
        let lines: Vec<String> = (1..10).map(|n| format!(" {n}) x")).collect();
        check(&ten, &format!("{}\n10) 1) y\n    2) z", lines.join("\n")));
    }

    /// A command is an array of bulk strings, whatever bytes it holds.
    #[test]
    fn commands_are_encoded() {
        assert_eq!(encode_command(&["GET", "k"]), b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n");
        assert_eq!(encode_command(&[&b"\r\n\x00"[..]]), b"*1\r\n$3\r\n\r\n\x00\r\n");
    }

    /// What is not one whole reply is refused, without a panic and without a deep recursion.
    #[test]
    fn malformed_replies_are_refused() {
        let deep = b"*1\r\n".repeat(100_000);
        let rows: [&[u8]; 10] = [
            b"",
            b"+OK",
            b"$5\r\nab\r\n",
            b"$2\r\nabc\r\n",
            b":x\r\n",
            b"?\r\n",
            b"$-2\r\n",
            b"*2\r\n+a\r\n",
            b"+OK\r\n+OK\r\n",
            &deep,
        ];
        for row in rows {
            assert!(Reply::parse(row).is_err(), "{:?}", String::from_utf8_lossy(row));
        }
        assert!(Reply::parse(b"*9223372036854775807\r\n").is_err());
    }
}
