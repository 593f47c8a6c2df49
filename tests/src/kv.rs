//! Commands and replies of the reference guest, in the Redis protocol. Written here once more,
//! so that the client's own encoder is tested against another.

use bytes::Bytes;

/// The name that tests give its machine.
pub const MACHINE: &str = "kv";

/// A command: an array of bulk strings.
pub fn command(words: &[&[u8]]) -> Bytes {
    let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        bytes.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        bytes.extend_from_slice(word);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.into()
}

/// A command of words without blanks: `text("SET k v")`.
pub fn text(line: &str) -> Bytes {
    let words: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
    command(&words)
}

/// The reply that holds this value.
pub fn bulk(value: &str) -> Bytes {
    format!("${}\r\n{value}\r\n", value.len()).into()
}

/// The reply that says that there is no such key.
pub fn nil() -> Bytes {
    Bytes::from_static(b"$-1\r\n")
}

/// The value of a bulk reply, or `None` for a nil.
///
/// # Panics
/// When the reply is neither.
pub fn value(reply: &[u8]) -> Option<String> {
    if reply == b"$-1\r\n" {
        return None;
    }
    let text = std::str::from_utf8(reply).expect("values of tests are text");
    let (head, rest) = text.split_once("\r\n").expect("a reply has lines");
    let length: usize = head.strip_prefix('$').and_then(|n| n.parse().ok()).unwrap_or_else(|| {
        panic!("not a bulk reply: {text:?}");
    });
    assert_eq!(rest.len(), length + 2, "the length of {text:?}");
    Some(rest[..length].to_owned())
}

/// The number of an integer reply.
///
/// # Panics
/// When the reply is another.
pub fn integer(reply: &[u8]) -> i64 {
    let text = std::str::from_utf8(reply).expect("an integer is text");
    let number = text.strip_prefix(':').and_then(|rest| rest.strip_suffix("\r\n"));
    number.and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("no integer: {text:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is written is the Redis protocol, and what is read is what it said.
    #[test]
    fn commands_and_replies() {
        assert_eq!(text("GET k"), "*2\r\n$3\r\nGET\r\n$1\r\nk\r\n");
        assert_eq!(value(&bulk("v")), Some("v".to_owned()));
        assert_eq!(value(&nil()), None);
        assert_eq!(integer(b":-3\r\n"), -3);
    }
}
