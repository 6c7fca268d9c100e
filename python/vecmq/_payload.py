"""Any payload as (bytes, dtype name, shape), and back: the one place that knows array libraries.

numpy, ml_dtypes, torch, jax and pyarrow are never imported before a payload of theirs is seen.
A dtype travels by *name* because ml_dtypes lose themselves in ``dtype.str`` (bfloat16 is ``<V2``
there). Only protocols that hand out memory are taken (buffer, DLPack, Arrow arrays): ``__array__``
may convert values on the way, so its owners are asked to convert themselves.
"""

from __future__ import annotations

import math
import re
import sys
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from vecmq.errors import CorruptError, PayloadError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    Array: TypeAlias = NDArray[Any]

# ruff: noqa: SIM905 - a list would take a line for each of 34 names
_NUMPY_NAMES = frozenset(
    "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 "
    "float16 float32 float64 complex64 complex128".split()
)
_ML_NAMES = frozenset(
    "bfloat16 bcomplex32 complex32 float4_e2m1fn float6_e2m3fn float6_e3m2fn float8_e3m4 "
    "float8_e4m3 float8_e4m3b11fnuz float8_e4m3fn float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz "
    "float8_e8m0fnu int1 int2 int4 uint1 uint2 uint4".split()
)
# numpy's units differ by case only ("M" month, "m" minute), names on the wire are lower case.
_UNIT_WORDS = {"Y": "year", "M": "month", "W": "week", "D": "day"}
_UNIT_CODES = {word: code for code, word in _UNIT_WORDS.items()}
_TIME_NAME = re.compile(
    r"(datetime64|timedelta64)_([1-9][0-9]{0,8})?"
    r"(year|month|week|day|h|m|s|ms|us|ns|ps|fs|as)"
)

_DIMS_MAX = 32  # numpy has 64

# DLPack device types whose memory the CPU reads: host, CUDA pinned, ROCm pinned, CUDA managed.
_HOST_DEVICES = frozenset({1, 3, 11, 13})

_ACCEPTED = (
    "bytes, a C buffer, a numpy array of numbers, a DLPack tensor on the host "
    "or a pyarrow FixedSizeListArray"
)
_HINTS = {
    "list": "call numpy.asarray(payload, dtype=...)",
    "tuple": "call numpy.asarray(payload, dtype=...)",
    "str": "call payload.encode()",
    "pandas": "call payload.to_numpy()",
    "polars": "call payload.to_numpy()",
    "scipy": "call payload.toarray(), or publish its .data, .indices and .indptr",
}


class Normalised(NamedTuple):
    """A payload as the core takes it.

    Attributes:
        view: C-contiguous 1-d buffer of unsigned bytes over the payload's own memory.
        dtype: dtype name; None for plain bytes.
        itemsize: Bytes of one element; 1 for plain bytes.
        shape: Logical shape in C order; None for plain bytes.
        writable: The caller could change the bytes behind `view`.
    """

    view: Any
    dtype: str | None
    itemsize: int
    shape: tuple[int, ...] | None
    writable: bool


class _Kind(NamedTuple):
    """What has to be known of a dtype to send an array of it."""

    name: str
    itemsize: int
    uint8: np.dtype[Any]
    little_endian: np.dtype[Any] | None


_kinds: dict[np.dtype[Any], _Kind] = {}
_dtypes: dict[str, np.dtype[Any]] = {}
# NamedTuple's own constructor costs 0.1 us more.
_new: Callable[[type[Normalised], tuple[Any, ...]], Normalised] = tuple.__new__


def normalise(payload: object) -> Normalised:
    """Describe any payload as a flat byte view with dtype name and shape.

    Copies: 0 when the memory is C-contiguous and little-endian; 1 for non-contiguous or
    Fortran-ordered memory (gathered in C order), big-endian arrays (swapped) and several Arrow
    chunks (joined).

    Args:
        payload: Plain bytes (bytes, bytearray, mmap, any 1-d buffer of format B, b or c), ndarray,
            typed buffer (memoryview, array.array), DLPack tensor on the host (torch, jax) or
            pyarrow array without nulls; FixedSizeListArray gives (n, d). Not changed.

    Returns:
        Normalised(view, dtype, itemsize, shape, writable)

    Raises:
        PayloadError: Anything else; object, string and structured arrays; tensors that need a
            gradient, are sparse or on another device; Arrow arrays with nulls.
    """
    if type(payload) is bytes:
        return _new(Normalised, (memoryview(payload), None, 1, None, False))
    kind = type(payload)
    if kind is bytearray or kind is memoryview:
        return _from_buffer(payload)
    numpy = sys.modules.get("numpy")  # absent: then this is no array of it
    if numpy is not None:
        if kind is getattr(numpy, "ndarray", None):
            return _from_ndarray(payload)
        if isinstance(payload, (numpy.ndarray, numpy.generic)) and not isinstance(payload, bytes):
            return _from_ndarray(_plain_ndarray(payload, numpy))
    if kind.__module__.partition(".")[0] == "pyarrow":
        array = _arrow_array(payload)
        if array is not None:
            return _from_ndarray(array)
    if hasattr(payload, "__dlpack__"):
        return _from_dlpack(payload)
    return _from_buffer(payload)


def to_array(view: Any, dtype: str, shape: tuple[int, ...]) -> Array:
    """Give received bytes as a read-only ndarray. Copies: 0.

    Args:
        view: C-contiguous buffer of bytes; kept alive by the array.
        dtype: dtype name as it travelled.
        shape: Shape as it travelled.

    Returns:
        ndarray over the memory of `view`.

    Raises:
        UnsupportedError: The dtype is unknown here, or needs ml_dtypes, which is not installed.
        CorruptError: dtype and shape do not make up the bytes of `view`.
    """
    import numpy as np

    known = _dtypes.get(dtype)
    if known is None:
        known = _dtypes[dtype] = _dtype_of(dtype)
    size_bytes = memoryview(view).nbytes
    misfit = f"{dtype} of shape {shape} does not make up {size_bytes} bytes"
    if math.prod(shape) * known.itemsize != size_bytes:
        raise CorruptError(misfit)
    try:
        array: Array = np.ndarray(shape, known, view)
    except (ValueError, OverflowError) as error:  # negative, or beyond what numpy can count
        raise CorruptError(misfit) from error
    array.flags.writeable = False
    return array


def writable_bytes(out: object) -> Any:
    """Give the memory of a caller's array or buffer to be written to. Copies: 0.

    Args:
        out: ndarray or buffer, writable and C-contiguous.

    Returns:
        A flat writable buffer of bytes over the same memory.

    Raises:
        PayloadError: It is neither, read-only, not C-contiguous, or of objects.
    """
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(out, numpy.ndarray):
        if not out.flags.c_contiguous or not out.flags.writeable or out.dtype.hasobject:
            raise PayloadError(
                f"out: an array of {out.dtype} and shape {out.shape}, C-contiguous "
                f"{out.flags.c_contiguous}, writable {out.flags.writeable}; expected one of "
                "numbers, writable and C-contiguous"
            )
        # Not memoryview: it does not know all dtypes.
        return out.reshape(-1).view(numpy.uint8)
    try:
        view = memoryview(out)  # type: ignore[arg-type]
    except (TypeError, ValueError, BufferError) as error:
        kind = type(out).__qualname__
        raise PayloadError(
            f"out: expected a writable ndarray or buffer, got {kind}; of a tensor pass .numpy()"
        ) from error
    if view.readonly or not view.c_contiguous:
        raise PayloadError("out: a buffer that is read-only or not C-contiguous")
    return view


def _from_ndarray(array: Any) -> Normalised:
    dtype = array.dtype
    kind = _kinds.get(dtype)
    if kind is None:
        kind = _kind_of(dtype)
    shape = array.shape
    if len(shape) > _DIMS_MAX:
        raise PayloadError(
            f"payload: an array of {len(shape)} dimensions, expected at most {_DIMS_MAX}"
        )
    if kind.little_endian is not None:
        array = array.astype(kind.little_endian, order="C")
        array.flags.writeable = False
    # Not memoryview.cast: it fails on empty arrays, float16, complex numbers and ml_dtypes.
    flat = array.ravel()
    if flat.flags.owndata:
        flat.flags.writeable = False  # a copy of our own that nobody else can change
    writable = flat.flags.writeable
    return _new(Normalised, (flat.view(kind.uint8), kind.name, kind.itemsize, shape, writable))


def _plain_ndarray(payload: Any, numpy: Any) -> Any:
    masked = getattr(sys.modules.get("numpy.ma"), "MaskedArray", None)
    if masked is not None and isinstance(payload, masked):
        raise PayloadError("payload: a masked array loses its mask; call payload.filled(value)")
    return numpy.asarray(payload)


def _kind_of(dtype: Any) -> _Kind:
    """Name a dtype, or refuse it."""
    import numpy as np

    name = str(dtype.name)
    if dtype.kind in "Mm":
        name = _time_name(dtype)
    elif not (name in _NUMPY_NAMES or (dtype.type.__module__ == "ml_dtypes" and name in _ML_NAMES)):
        hint = "publish its fields one by one" if dtype.names else "convert it to a numeric dtype"
        raise PayloadError(f"payload: an array of dtype {dtype} has no portable form; {hint}")
    swapped = None if dtype.newbyteorder("<") == dtype else dtype.newbyteorder("<")
    kind = _Kind(name, dtype.itemsize, np.dtype(np.uint8), swapped)
    if dtype.kind not in "Mm":  # their number has no end
        _kinds[dtype] = kind
    return kind


def _time_name(dtype: Any) -> str:
    import numpy as np

    unit, count = np.datetime_data(dtype)
    if unit == "generic":
        raise PayloadError(f"payload: an array of dtype {dtype} has no unit; call .astype with one")
    base = "datetime64" if dtype.kind == "M" else "timedelta64"
    return f"{base}_{'' if count == 1 else count}{_UNIT_WORDS.get(unit, unit)}"


def _dtype_of(name: str) -> np.dtype[Any]:
    """Find the numpy dtype of a name from the wire: only names that `_kind_of` gives out."""
    import numpy as np

    if name in _NUMPY_NAMES:
        return np.dtype(name)
    if name in _ML_NAMES:
        try:
            import ml_dtypes

            found: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
            return found
        except (ImportError, AttributeError) as error:
            raise UnsupportedError(
                f"dtype {name!r} needs the package ml_dtypes (a version that has it)"
            ) from error
    time = _TIME_NAME.fullmatch(name)
    if time is None:
        raise UnsupportedError(f"dtype {name!r} is not known to this version of vecmq")
    base, count, unit = time.groups()
    return np.dtype(f"{base}[{count or ''}{_UNIT_CODES.get(unit, unit)}]")


def _arrow_array(payload: Any) -> Any:
    """Take the memory of a pyarrow array; None for what has a buffer or DLPack itself."""
    pyarrow = sys.modules["pyarrow"]
    if isinstance(payload, pyarrow.ChunkedArray):
        payload = payload.chunk(0) if payload.num_chunks == 1 else payload.combine_chunks()
    if not isinstance(payload, pyarrow.Array):
        return None
    kind, shape = payload.type, [len(payload)]
    while True:
        if payload.null_count:
            raise PayloadError(
                f"payload: a pyarrow array of {kind} has {payload.null_count} nulls, "
                "expected none; call .fill_null or .drop_null"
            )
        if not isinstance(payload, pyarrow.FixedSizeListArray):
            break
        shape.append(payload.type.list_size)
        payload = payload.flatten()
    try:
        return payload.to_numpy(zero_copy_only=True).reshape(shape)
    except (pyarrow.ArrowException, ValueError) as error:
        raise PayloadError(
            f"payload: a pyarrow array of {kind} is not memory of numbers: {error}"
        ) from error


def _from_dlpack(payload: Any) -> Normalised:
    import numpy as np

    what = f"{type(payload).__module__}.{type(payload).__qualname__}"
    if getattr(payload, "requires_grad", False):
        raise PayloadError(f"payload: {what} needs a gradient; call payload.detach()")
    torch: Any = sys.modules.get("torch")
    is_torch = torch is not None and isinstance(payload, torch.Tensor)
    if is_torch and payload.layout is not torch.strided:
        raise PayloadError(f"payload: {what} is {payload.layout}; call payload.to_dense()")
    try:
        device = int(payload.__dlpack_device__()[0])
        if device not in _HOST_DEVICES:
            raise PayloadError(
                f"payload: {what} is on DLPack device type {device}, expected host memory; "
                "copy it to the host first (payload.cpu())"
            )
        if is_torch and (name := str(payload.dtype).removeprefix("torch.")) in _ML_NAMES:
            # DLPack in numpy has no bfloat16 or float8; their bytes it has.
            view = np.from_dlpack(payload.contiguous().reshape(-1).view(torch.uint8))
            size, shape = payload.element_size(), tuple(payload.shape)
            return Normalised(view, name, size, shape, writable=True)
        array = _imported(payload, np)
    except (AttributeError, BufferError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, PayloadError):
            raise
        raise PayloadError(f"payload: {what} cannot be read through DLPack: {error}") from error
    # numpy marks most imports read-only; their owner can write them all the same.
    return _from_ndarray(array)._replace(writable=True)


def _imported(payload: Any, np: Any) -> Any:
    try:
        return np.from_dlpack(payload)
    except (BufferError, RuntimeError, TypeError, ValueError):
        # numpy's DLPack has no bfloat16; jax' own __array__ gives ml_dtypes without a copy.
        if type(payload).__module__.partition(".")[0] not in ("jax", "jaxlib"):
            raise
        return np.asarray(payload)


def _from_buffer(payload: Any) -> Normalised:
    try:
        view = memoryview(payload)
    except (TypeError, ValueError, BufferError) as error:
        raise PayloadError(_refusal(payload)) from error
    if view.ndim == 1 and view.format.lstrip("@=<>|") in ("B", "b", "c"):
        writable = not view.readonly
        if not view.c_contiguous:
            view, writable = memoryview(view.tobytes()), False
        if not view.nbytes:
            view, writable = memoryview(b""), False  # an empty view cannot be cast
        elif view.format != "B":
            view = view.cast("B")
        return _new(Normalised, (view, None, 1, None, writable))
    import numpy as np

    try:
        array = np.asarray(view)
    except (TypeError, ValueError, BufferError, RuntimeError) as error:
        raise PayloadError(
            f"payload: a buffer of format {view.format!r} is not one of numbers"
        ) from error
    return _from_ndarray(array)


def _refusal(payload: object) -> str:
    kind = type(payload)
    root = kind.__module__.partition(".")[0]
    hint = _HINTS.get(kind.__name__ if root == "builtins" else root)
    name = kind.__qualname__ if root == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return f"payload: expected {_ACCEPTED}, got {name}" + (f"; {hint}" if hint else "")
