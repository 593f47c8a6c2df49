//! The error replies, in Redis 7.0's words where Redis has the error.

use lockstep_guest_sdk::Rejection;

/// Bytes of a name or of arguments that an error repeats.
const REPEATED_BYTES_MAX: usize = 128;

/// A request that is not one RESP array of bulk strings.
pub(crate) fn protocol(reason: &str) -> Rejection {
    Rejection::from(format!("-ERR Protocol error: {reason}\r\n"))
}

/// A bulk string was due, and this byte came.
pub(crate) fn expected_bulk(byte: u8) -> Rejection {
    let mut reply = b"-ERR Protocol error: expected '$', got '".to_vec();
    reply.push(if byte == b'\r' || byte == b'\n' { b' ' } else { byte });
    reply.extend_from_slice(b"'\r\n");
    Rejection::from(reply)
}

pub(crate) fn arity(command: &str) -> Rejection {
    Rejection::from(format!("-ERR wrong number of arguments for '{command}' command\r\n"))
}

pub(crate) fn syntax() -> Rejection {
    Rejection::from("-ERR syntax error\r\n")
}

pub(crate) fn not_an_integer() -> Rejection {
    Rejection::from("-ERR value is not an integer or out of range\r\n")
}

pub(crate) fn expire_time() -> Rejection {
    Rejection::from("-ERR invalid expire time in 'set' command\r\n")
}

/// A command that writes came as a query. Redis has no such thing; the code is that of its
/// replicas, which clients know.
pub(crate) fn not_a_query(command: &str) -> Rejection {
    Rejection::from(format!("-READONLY '{command}' writes: send it as a command, not a query\r\n"))
}

/// A name that is no command. Redis repeats name and arguments as C strings, cut.
pub(crate) fn unknown<'a>(name: &[u8], arguments: impl Iterator<Item = &'a [u8]>) -> Rejection {
    let mut repeated = Vec::new();
    for argument in arguments {
        if repeated.len() >= REPEATED_BYTES_MAX {
            break;
        }
        let argument = cut(c_string(argument), REPEATED_BYTES_MAX - repeated.len());
        repeated.push(b'\'');
        repeated.extend_from_slice(argument);
        repeated.extend_from_slice(b"' ");
    }
    let mut reply = b"-ERR unknown command '".to_vec();
    reply.extend_from_slice(cut(c_string(name), REPEATED_BYTES_MAX));
    reply.extend_from_slice(b"', with args beginning with: ");
    reply.extend_from_slice(&repeated);
    // A line break from the client would end the reply early.
    reply.iter_mut().filter(|byte| matches!(byte, b'\r' | b'\n')).for_each(|byte| *byte = b' ');
    reply.extend_from_slice(b"\r\n");
    Rejection::from(reply)
}

/// The bytes before the first zero, which is where Redis's C functions stop.
pub(crate) fn c_string(bytes: &[u8]) -> &[u8] {
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    &bytes[..end]
}

fn cut(bytes: &[u8], length_max: usize) -> &[u8] {
    &bytes[..bytes.len().min(length_max)]
}
