"""Clients that are no friends of ours, at full speed, with no throttle of their own: plain grpcio
for streams, and frames of HTTP/2 written by hand for calls that are cancelled. grpcio would do for
those as well, but now and then it resets a stream that it has not begun (grpc/grpc, issue 19655),
and a server must end a connection for that (RFC 9113, section 6.4).

usage: calls.py streams ADDRESS COMMANDS | calls.py cancels ADDRESS CALLS ROUNDS

It prints what it did and exits with 0, or says what went wrong and exits with 1. Messages are
written by hand, so that nothing but grpcio is needed.
"""

import socket
import struct
import sys

import grpc

EXECUTE = "/lockstep.v1.Client/Execute"
EXECUTE_STREAM = "/lockstep.v1.Client/ExecuteStream"


def varint(number):
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def field(number, payload):
    """A field of length-delimited bytes."""
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def command(*words):
    parts = [b"*%d\r\n" % len(words)]
    parts += [b"$%d\r\n%s\r\n" % (len(word), word) for word in words]
    return b"".join(parts)


def execute_request(key):
    return field(1, b"kv") + field(2, command(b"SET", key, b"v"))


def stream_request(number):
    return varint(1 << 3) + varint(number) + field(2, execute_request(b"k%d" % (number % 100)))


class Connection:
    """A connection of its own, as every program has, which must not be lost."""

    def __init__(self, address):
        options = [("grpc.use_local_subchannel_pool", 1)]
        self.channel = grpc.insecure_channel(address, options=options)
        grpc.channel_ready_future(self.channel).result(timeout=60)
        self.states = []
        self.channel.subscribe(self.states.append)

    def check(self):
        lost = [state for state in self.states if state != grpc.ChannelConnectivity.READY]
        if lost:
            sys.exit(f"the connection was lost: {lost}")


def streams(address, count):
    """Sends all commands as fast as the library takes them, and counts the replies: each command
    has one, though a node that has too much to do may answer that."""
    connection = Connection(address)
    call = connection.channel.stream_stream(EXECUTE_STREAM)
    requests = (stream_request(number) for number in range(1, count + 1))
    replies, good = 0, 0
    for reply in call(requests, timeout=300):
        replies += 1
        good += b"+OK" in reply
    connection.check()
    if replies != count or good == 0:
        sys.exit(f"{replies} of {count} commands were answered, {good} with OK")
    print(f"{count} commands were answered, {good} with OK")


# Frames of HTTP/2 and their flags (RFC 9113, section 6).
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
ACK, END_STREAM, END_HEADERS = 1, 1, 4
CANCEL = struct.pack(">I", 8)


def frame(kind, flags, stream, payload=b""):
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def header(name, value):
    """A header that is spelled out (RFC 7541, section 6.2.2)."""
    return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value


class Frames:
    """A connection of HTTP/2 that sends what it is told to, all of it together."""

    def __init__(self, address):
        host, port = address.rsplit(":", 1)
        self.socket = socket.create_connection((host, int(port)), timeout=60)
        self.input = self.socket.makefile("rb")
        window = frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", 1 << 30))
        self.socket.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, 0, 0) + window)
        self.stream = -1
        self.headers = b"".join(
            header(name, value)
            for name, value in [
                (b":method", b"POST"),
                (b":scheme", b"http"),
                (b":path", EXECUTE.encode()),
                (b":authority", address.encode()),
                (b"content-type", b"application/grpc"),
                (b"te", b"trailers"),
            ]
        )

    def begin(self, message):
        """The frames of one more call."""
        self.stream += 2
        data = struct.pack(">BI", 0, len(message)) + message
        headers = frame(HEADERS, END_HEADERS, self.stream, self.headers)
        return headers + frame(DATA, END_STREAM, self.stream, data)

    def begin_and_cancel(self, message):
        """The same, with the end that comes before the server can have accepted the call."""
        return self.begin(message) + frame(RST_STREAM, 0, self.stream, CANCEL)

    def answer(self):
        """The reply to the call that was begun last."""
        reply = b""
        while True:
            head = self.input.read(9)
            if len(head) < 9:
                sys.exit("the connection was lost")
            length = int.from_bytes(head[:3], "big")
            kind, flags, stream = struct.unpack(">BBI", head[3:])
            payload = self.input.read(length)
            if kind == GOAWAY:
                error = int.from_bytes(payload[4:8], "big")
                sys.exit(f"the connection was ended: error {error}, {payload[8:]}")
            if kind in (SETTINGS, PING) and not flags & ACK:
                self.socket.sendall(frame(kind, ACK, 0, payload if kind == PING else b""))
            if stream != self.stream:
                continue
            if kind == RST_STREAM:
                sys.exit(f"the call was reset: {payload}")
            if kind == DATA:
                reply += payload
            if kind in (DATA, HEADERS) and flags & END_STREAM:
                return reply


def cancels(address, calls, rounds):
    """Begins and cancels many calls, all of them together, and then makes one."""
    connection = Frames(address)

    def answered(frames):
        connection.socket.sendall(frames)
        reply = connection.answer()
        if b"+OK" not in reply:
            sys.exit(f"a call was answered by {reply}")

    # By then the node takes replies to be short, and has room for all of the calls at once.
    for _ in range(64):
        answered(connection.begin(execute_request(b"c")))
    for _ in range(rounds):
        cancelled = [connection.begin_and_cancel(execute_request(b"c")) for _ in range(calls)]
        answered(b"".join([*cancelled, connection.begin(execute_request(b"c"))]))
    print(f"{calls} calls were cancelled together, {rounds} times")


def main():
    try:
        match sys.argv[1:]:
            case ["streams", address, count]:
                streams(address, int(count))
            case ["cancels", address, calls, rounds]:
                cancels(address, int(calls), int(rounds))
            case _:
                sys.exit(__doc__)
    except grpc.RpcError as error:
        sys.exit(f"a call failed: {error.code()} {error.details()}")


main()
