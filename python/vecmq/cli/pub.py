"""``vecmq pub``."""

from __future__ import annotations

import io
import json as json_text
import sys
from typing import TYPE_CHECKING, Annotated, Any, Final

import numpy as np
from cyclopts import Parameter

from vecmq.cli.base import ANYWHERE, Codec, UsageError, Where, app, examples, print_line

if TYPE_CHECKING:
    from vecmq import Receipt

__all__ = ["pub"]

NPY_MAGIC: Final = b"\x93NUMPY"
ROWS_MAX: Final = 1_000_000
NAMES: Final = (
    "route",
    "seq",
    "rows_count",
    "level",
    "id",
    "duplicate",
    "frames_count",
    "payload_bytes",
    "wire_bytes",
    "codec",
    "codec_why",
)
HEAD: Final = (
    f"{'route':<6}{'seq':>12}{'rows':>9}  {'level':<8}{'frames':>7}"
    f"{'payload bytes':>15}{'wire bytes':>13}  codec"
)


@app.command(
    help_epilogue=examples(
        "vecmq pub vectors embeddings.npy --path data",
        "vecmq pub vectors embeddings.npy --rows 1000 --path data    # a message a row",
        'echo \'{"op": "flush"}\' | vecmq pub vectors - --path data --header kind=control',
        "NATS_TOKEN=$(cat token) vecmq pub vectors a.npy --nats nats://127.0.0.1:4222 --json",
    )
)
def pub(
    topic: str,
    file: Annotated[str, Parameter(allow_leading_hyphen=True)],
    *,
    where: Where = ANYWHERE,
    rows: int | None = None,
    codec: Codec = "raw",
    codec_level: int | None = None,
    header: Annotated[tuple[str, ...], Parameter(show_default=False)] = (),
    json: bool = False,
) -> int:
    """Publish a file as one message, or an array as a message a row; print the receipts.

    A file that starts as .npy does is published as an array, anything else as bytes.

    Args:
        topic: The topic; it is made where it does not exist.
        file: Path, or - for stdin.
        where: Where messages are stored.
        rows: Publish every row of the array as a message of its own, in blocks of this many rows.
        codec: Codec of the frames.
        codec_level: Level of codec zstd, 1 to 19.
        header: KEY=VALUE; may be given several times.
        json: Print one JSON object a receipt.
    """
    headers = dict(_header(text) for text in header)
    payload = _read_payload(file)
    if rows is not None:
        if not isinstance(payload, np.ndarray) or payload.ndim < 2:
            raise UsageError(f"--rows: expected an array of rows (n x d) in {file}")
        if not 1 <= rows <= ROWS_MAX:
            raise UsageError(f"--rows: expected 1 to {ROWS_MAX} rows a block, got {rows}")
    with where.open() as mq:
        publisher = mq.publisher(topic, codec=codec, codec_level=codec_level)
        if not json:
            print_line(HEAD)
        if rows is None:
            _print_receipt(publisher.publish(payload, headers), as_json=json)
        else:
            assert isinstance(payload, np.ndarray)
            for start in range(0, len(payload), rows):
                block = payload[start : start + rows]
                _print_receipt(publisher.publish_rows(block, headers), as_json=json)
    return 0


def _header(text: str) -> tuple[str, str]:
    key, sign, value = text.partition("=")
    if not sign:
        raise UsageError(f"--header: expected KEY=VALUE, got {text!r}")
    return key, value


def _read_payload(file: str) -> Any:
    try:
        if file == "-":
            data = sys.stdin.buffer.read()
            is_npy = data.startswith(NPY_MAGIC)
            return np.load(io.BytesIO(data), allow_pickle=False) if is_npy else data
        with open(file, "rb") as stream:
            if stream.read(len(NPY_MAGIC)) != NPY_MAGIC:
                stream.seek(0)
                return stream.read()
        return np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UsageError(f"cannot read {file}: {error}") from None


def _print_receipt(receipt: Receipt, *, as_json: bool) -> None:
    if as_json:
        print_line(json_text.dumps({name: getattr(receipt, name) for name in NAMES}))
    else:
        print_line(
            f"{receipt.route:<6}{receipt.seq:>12}{receipt.rows_count:>9}  {receipt.level:<8}"
            f"{receipt.frames_count:>7}{receipt.payload_bytes:>15}{receipt.wire_bytes:>13}"
            f"  {receipt.codec}"
        )
