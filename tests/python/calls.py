"""A client that is no friend of ours: plain grpcio, at full speed, with no throttle of its own.

usage: calls.py streams ADDRESS COMMANDS | calls.py cancels ADDRESS CALLS ROUNDS

It prints what it did and exits with 0, or says what went wrong and exits with 1. Messages are
written by hand, so that nothing but grpcio is needed.
"""

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


def cancels(address, calls, rounds):
    """Begins many calls, cancels all of them together, and then makes one."""
    connection = Connection(address)
    call = connection.channel.unary_unary(EXECUTE)
    for _ in range(rounds):
        futures = [call.future(execute_request(b"c"), timeout=60) for _ in range(calls)]
        for future in futures:
            future.cancel()
        call(execute_request(b"c"), timeout=60)
        connection.check()
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
