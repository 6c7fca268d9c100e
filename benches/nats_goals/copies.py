"""Publishes with a client and prints how often the payloads were copied: see copy_rows.py.

    python copies.py CLIENT WORKERS URL TOKEN BYTES MESSAGES

Runs in the client's own environment, with the counter preloaded. Standard library and that client.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
NAME, WARM = "copies", "copies-warm"
MODULES = {
    "vecmq": ("ours_nats", "Many"),
    "nats-py": ("worker_nats_py", "NatsPy"),
    "natsio": ("worker_natsio", "Natsio"),
    "natsrpy": ("worker_natsrpy", "Natsrpy"),
}


async def main(arguments: list[str]) -> None:
    """Publishes.

    Args:
        arguments: Of the command line.
    """
    client_name, workers, url, token, size, count = arguments
    sys.path[:0] = [workers, str(HERE)]
    from memcount import counted_bytes

    module, name = MODULES[client_name]
    client = getattr(__import__(module), name)()
    await client.connect(url, token, int(count))
    payloads = [bytes([number % 256]) * int(size) for number in range(int(count))]
    # What is made once, on the way of the first message.
    await client.make_stream(WARM)
    await client.publish_all(WARM, payloads[:1], 1, None)
    await client.make_stream(NAME)
    before = counted_bytes()
    await client.publish_all(NAME, payloads[1:], 4, None)
    copied = counted_bytes() - before
    await client.delete_stream(WARM)
    await client.delete_stream(NAME)
    await client.close()
    # The counter counts, or nothing above means anything.
    before = counted_bytes()
    bytearray(payloads[0])
    if counted_bytes() - before != len(payloads[0]):
        sys.exit("the counter does not see a copy that was made on purpose")
    print(copied / sum(map(len, payloads[1:])), flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
    # natsrpy aborts now and then while the interpreter ends, which is after what is counted.
    os._exit(0)
