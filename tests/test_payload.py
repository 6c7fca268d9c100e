"""What `normalise` takes, what it refuses, and that nothing is copied without need."""

from __future__ import annotations

import array
import ctypes
import mmap
import subprocess
import sys
import types
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vecmq._payload import Normalised, normalise, to_array
from vecmq.errors import CorruptError, PayloadError, UnsupportedError

NUMPY_NAMES = [
    "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64",
    "float16 float32 float64 complex64 complex128",
]
ML_NAMES = [
    "bfloat16 bcomplex32 complex32 float4_e2m1fn float6_e2m3fn float6_e3m2fn float8_e3m4",
    "float8_e4m3 float8_e4m3b11fnuz float8_e4m3fn float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz",
    "float8_e8m0fnu int1 int2 int4 uint1 uint2 uint4",
]
DTYPES = [np.dtype(name) for name in " ".join(NUMPY_NAMES).split()] + [
    np.dtype(getattr(ml_dtypes, name)) for name in " ".join(ML_NAMES).split()
]
SHAPES: list[tuple[int, ...]] = [(), (0,), (7,), (3, 4), (0, 5), (2, 3, 1, 2), (1, 2, 1, 2, 1)]


def address(buffer: Any) -> int:
    """Where a buffer's memory begins."""
    pointer: int = np.frombuffer(buffer, np.uint8).__array_interface__["data"][0]
    return pointer


def content(normal: Normalised) -> bytes:
    """The bytes of a view, after checking that it is one: flat, contiguous, unsigned bytes."""
    view = memoryview(normal.view)
    assert (view.ndim, view.format, view.c_contiguous) == (1, "B", True)
    return view.tobytes()


def sample(dtype: np.dtype[Any], shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """An array whose bytes differ from element to element."""
    size = int(np.prod(shape, dtype=int)) * dtype.itemsize
    raw = (np.arange(size) % 251).astype(np.uint8)
    if dtype == np.dtype(bool):
        raw %= 2
    return raw.view(dtype).reshape(shape)


def round_trip(normal: Normalised) -> np.ndarray[Any, Any]:
    """Read a normalised payload back from an immutable copy of its bytes."""
    assert normal.dtype is not None
    assert normal.shape is not None
    return to_array(content(normal), normal.dtype, normal.shape)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_dtype_and_shape_comes_back_without_a_copy(
    dtype: np.dtype[Any], shape: tuple[int, ...]
) -> None:
    original = sample(dtype, shape)
    normal = normalise(original)
    assert (normal.dtype, normal.itemsize, normal.shape) == (dtype.name, dtype.itemsize, shape)
    assert content(normal) == original.tobytes()
    back = round_trip(normal)
    assert (back.dtype, back.shape) == (dtype, shape)
    assert back.tobytes() == original.tobytes()
    if original.size:
        assert np.shares_memory(normal.view, original)


@pytest.mark.parametrize(
    "payload",
    [b"", b"abc", bytearray(b"abc"), bytearray(), memoryview(b"abc"), np.bytes_(b"abc")],
    ids=lambda payload: f"{type(payload).__name__}-{len(payload)}",
)
def test_plain_bytes_have_no_dtype(payload: Any) -> None:
    normal = normalise(payload)
    assert normal[1:4] == (None, 1, None)
    assert content(normal) == bytes(payload)
    assert normal.writable == (payload == bytearray(b"abc") and isinstance(payload, bytearray))


@pytest.mark.parametrize("format_", ["B", "b", "c"])
@pytest.mark.parametrize("size", [0, 5])
def test_a_flat_byte_buffer_of_any_sign_is_plain_bytes(format_: str, size: int) -> None:
    bytes_view: Any = memoryview(bytearray(range(5)))
    payload = bytes_view.cast(format_)[:size]
    normal = normalise(payload)
    assert (normal.dtype, normal.shape, normal.writable) == (None, None, size > 0)
    assert content(normal) == bytes(range(size))


def test_plain_bytes_are_borrowed() -> None:
    owner = bytearray(b"abcdef")
    assert address(normalise(owner).view) == address(owner)
    assert content(normalise(memoryview(owner)[::2])) == b"ace"
    assert not normalise(memoryview(owner)[::2]).writable


def test_mmap_is_plain_bytes() -> None:
    with mmap.mmap(-1, mmap.PAGESIZE) as pages:
        pages[:3] = b"abc"
        normal = normalise(pages)
        assert (normal.dtype, normal.writable) == (None, True)
        assert content(normal)[:3] == b"abc"
        del normal


def test_array_array_counts_bytes_not_elements() -> None:
    normal = normalise(array.array("f", [1.0, 2.0, 3.0]))
    assert (normal.dtype, normal.shape, len(content(normal))) == ("float32", (3,), 12)
    assert round_trip(normal).tolist() == [1.0, 2.0, 3.0]
    assert normalise(array.array("B", b"abc")).dtype is None
    assert round_trip(normalise(array.array("d"))).shape == (0,)


def test_typed_memoryviews_keep_dtype_and_shape() -> None:
    original = np.arange(6, dtype=np.float32).reshape(2, 3)
    normal = normalise(original.data)
    assert (normal.dtype, normal.shape) == ("float32", (2, 3))
    assert address(normal.view) == address(original.ravel())
    assert normalise(memoryview(b"abcdef").cast("B", (2, 3))).shape == (2, 3)
    assert normalise((ctypes.c_double * 4)()).dtype == "float64"
    assert normalise((ctypes.c_ubyte * 4)()).dtype is None


@pytest.mark.parametrize(
    "view",
    [
        np.arange(24.0).reshape(4, 6).T,
        np.asfortranarray(np.arange(24.0).reshape(4, 6)),
        np.arange(24.0).reshape(4, 6)[::2, 1::3],
        np.arange(24.0)[::-1],
        np.broadcast_to(np.arange(3.0), (4, 3)),
        np.arange(24).astype(ml_dtypes.bfloat16)[::2],
    ],
    ids=["transposed", "fortran", "strided", "reversed", "broadcast", "bfloat16"],
)
def test_other_orders_are_gathered_once_in_c_order(view: np.ndarray[Any, Any]) -> None:
    normal = normalise(view)
    assert normal.shape == view.shape
    assert content(normal) == view.tobytes(order="C")
    assert not normal.writable
    assert memoryview(normal.view).readonly
    assert not np.shares_memory(normal.view, view)


def test_big_endian_is_swapped_once() -> None:
    original = np.arange(6, dtype=">f4").reshape(2, 3)
    normal = normalise(original)
    assert (normal.dtype, normal.shape, normal.writable) == ("float32", (2, 3), False)
    assert content(normal) == original.astype("<f4").tobytes()
    np.testing.assert_array_equal(round_trip(normal), original)


def test_the_callers_array_keeps_its_flags() -> None:
    original = np.zeros(4, np.float32)
    assert normalise(original).writable
    original.flags.writeable = False
    assert not normalise(original).writable
    flat = np.zeros(4, np.float32)
    normalise(flat)
    assert flat.flags.writeable


@pytest.mark.parametrize(
    "unit", ["Y", "M", "W", "D", "h", "m", "s", "ms", "us", "ns", "ps", "fs", "as", "25s", "3M"]
)
@pytest.mark.parametrize("base", ["datetime64", "timedelta64"])
def test_times_travel_with_their_unit(base: str, unit: str) -> None:
    original = np.array([0, 5, -3], np.int64).view(f"{base}[{unit}]")
    normal = normalise(original)
    assert normal.dtype is not None
    assert set(normal.dtype) <= set("abcdefghijklmnopqrstuvwxyz0123456789_")
    back = round_trip(normal)
    assert back.dtype == original.dtype
    assert back.tobytes() == original.tobytes()


def test_numpy_scalars_and_memmaps_are_arrays(tmp_path: Any) -> None:
    assert normalise(np.float32(1.5))[1:4] == ("float32", 4, ())
    mapped = np.memmap(tmp_path / "rows", np.float32, "w+", shape=(2, 3))
    assert normalise(mapped)[1:4] == ("float32", 4, (2, 3))


@pytest.mark.parametrize(
    "payload",
    [
        "text",
        None,
        5,
        1.5,
        [1.0, 2.0],
        (1.0,),
        {"a": 1},
        object(),
        np.array([None, "a"]),
        np.array(["text"]),
        np.array([b"text"]),
        np.zeros(2, "f4,i4"),
        np.zeros(2, "V8"),
        np.zeros(2, np.longdouble),
        np.array([1, 2], "m8"),
        np.ma.masked_array([1.0, 2.0], [True, False]),
        np.str_("text"),
        np.zeros((1,) * 33),
    ],
    ids=lambda payload: f"{type(payload).__name__}-{getattr(payload, 'dtype', '')}",
)
def test_what_is_no_array_of_numbers_is_refused(payload: Any) -> None:
    with pytest.raises(PayloadError):
        normalise(payload)


def test_a_released_memoryview_is_refused() -> None:
    view = memoryview(b"abc")
    view.release()
    with pytest.raises(PayloadError):
        normalise(view)


class TestToArray:
    def test_it_is_read_only_and_copies_nothing(self) -> None:
        owner = bytearray(np.arange(4, dtype=np.float32).tobytes())
        back = to_array(owner, "float32", (2, 2))
        assert address(back.ravel()) == address(owner)
        assert not back.flags.writeable

    @pytest.mark.parametrize(
        "dtype",
        [
            "object",
            "float31",
            "f4",
            "O",
            "<f4",
            "f4,i4",
            "datetime64[ns]",
            "datetime64_0s",
            "datetime64_",
            "finfo",
            "numpy",
            "float128",
            "str",
            "void",
            "timedelta64_parsec",
        ],
    )
    def test_an_unknown_dtype_is_unsupported(self, dtype: str) -> None:
        with pytest.raises(UnsupportedError):
            to_array(bytes(8), dtype, (1,))

    @pytest.mark.parametrize("shape", [(3,), (1,), (), (0,), (2**40, 2**40), (-1, -2)])
    def test_a_shape_that_does_not_fit_is_corrupt(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(CorruptError):
            to_array(bytes(8), "float32", shape)

    def test_an_empty_shape_beyond_all_counting_is_corrupt(self) -> None:
        with pytest.raises(CorruptError):
            to_array(b"", "float32", (0, 2**62, 2**62))

    def test_without_ml_dtypes_its_names_are_unsupported(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("vecmq._payload._dtypes", {})
        monkeypatch.setitem(sys.modules, "ml_dtypes", None)
        with pytest.raises(UnsupportedError):
            to_array(bytes(2), "bfloat16", (1,))


@given(
    dtype=st.sampled_from(DTYPES),
    shape=st.lists(st.integers(0, 4), max_size=5).map(tuple),
    data=st.data(),
)
def test_any_view_of_any_array_comes_back(
    dtype: np.dtype[Any], shape: tuple[int, ...], data: st.DataObject
) -> None:
    steps = tuple(slice(None, None, data.draw(st.sampled_from([1, -1, 2]))) for _ in shape)
    axes = data.draw(st.permutations(range(len(shape))))
    view = sample(dtype, shape)[steps].transpose(axes)
    back = round_trip(normalise(view))
    assert (back.dtype, back.shape) == (view.dtype, view.shape)
    assert back.tobytes() == view.tobytes(order="C")


class Tensor:
    """Stands in for a tensor of another library: DLPack and nothing else."""

    requires_grad = False

    def __init__(self, values: np.ndarray[Any, Any], device: int = 1) -> None:
        self.values, self.device = values, device

    def __dlpack__(self, **options: Any) -> Any:
        return self.values.__dlpack__()

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device, 0


class TorchTensor(Tensor):
    """Adds what is read of a torch tensor."""

    layout = "torch.strided"
    dtype = "torch.float32"

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.values.shape)

    def contiguous(self) -> TorchTensor:
        copy = type(self)(np.ascontiguousarray(self.values).reshape(self.values.shape))
        copy.dtype = self.dtype
        return copy

    def reshape(self, size: int) -> TorchTensor:
        return type(self)(self.values.reshape(size))

    def view(self, dtype: Any) -> TorchTensor:
        return type(self)(self.values.view(dtype))

    def element_size(self) -> int:
        return self.values.itemsize


class BrokenTensor(Tensor):
    def __dlpack__(self, **options: Any) -> Any:
        raise RuntimeError("this tensor has no memory to give")


@pytest.fixture
def torch(monkeypatch: pytest.MonkeyPatch) -> type[TorchTensor]:
    """A torch that has just what is read of it: the real one needs gigabytes."""
    fake = types.ModuleType("torch")
    fake.__dict__.update(Tensor=TorchTensor, uint8=np.uint8, strided=TorchTensor.layout)
    monkeypatch.setitem(sys.modules, "torch", fake)
    return TorchTensor


class TestDLPack:
    def test_a_tensor_is_borrowed(self) -> None:
        values = np.arange(6, dtype=np.float32).reshape(2, 3)
        normal = normalise(Tensor(values))
        assert normal[1:] == ("float32", 4, (2, 3), True)
        assert np.shares_memory(normal.view, values)

    def test_a_strided_tensor_is_gathered(self) -> None:
        values = np.arange(6, dtype=np.int64).reshape(2, 3).T
        assert content(normalise(Tensor(values))) == values.tobytes()

    @pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn", "float8_e5m2"])
    @pytest.mark.parametrize("shape", [(), (0,), (4,), (2, 3)], ids=str)
    def test_dtypes_that_numpy_cannot_import_go_as_bytes(
        self, torch: type[TorchTensor], dtype: str, shape: tuple[int, ...]
    ) -> None:
        expected = sample(np.dtype(getattr(ml_dtypes, dtype)), shape)
        tensor = torch(expected.view(f"u{expected.itemsize}"))
        tensor.dtype = f"torch.{dtype}"
        normal = normalise(tensor)
        assert normal[1:] == (dtype, expected.itemsize, shape, True)
        assert round_trip(normal).tobytes() == expected.tobytes()

    def test_a_tensor_that_needs_a_gradient_is_refused(self) -> None:
        tensor = Tensor(np.zeros(2))
        tensor.requires_grad = True
        with pytest.raises(PayloadError):
            normalise(tensor)

    def test_a_sparse_tensor_is_refused(self, torch: type[TorchTensor]) -> None:
        tensor = torch(np.zeros(2))
        tensor.layout = "torch.sparse_csr"
        with pytest.raises(PayloadError):
            normalise(tensor)

    def test_a_tensor_on_another_device_is_refused(self) -> None:
        with pytest.raises(PayloadError):
            normalise(Tensor(np.zeros(2), device=2))

    def test_a_tensor_that_gives_no_memory_is_refused(self) -> None:
        with pytest.raises(PayloadError):
            normalise(BrokenTensor(np.zeros(2)))

    def test_real_torch(self) -> None:
        torch = pytest.importorskip("torch", exc_type=ImportError)
        values = torch.arange(6, dtype=torch.float32).reshape(2, 3)
        assert round_trip(normalise(values)).tolist() == values.tolist()
        narrow = values.to(torch.bfloat16).t()
        assert round_trip(normalise(narrow)).astype(float).tolist() == narrow.tolist()
        for refused in (values.clone().requires_grad_(), values.to_sparse()):
            with pytest.raises(PayloadError):
                normalise(refused)

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "bool"])
    def test_real_jax(self, dtype: str) -> None:
        jnp = pytest.importorskip("jax.numpy")
        values = jnp.arange(6).reshape(2, 3).astype(dtype)
        normal = normalise(values)
        assert normal[1:4] == (dtype, values.dtype.itemsize, (2, 3))
        assert round_trip(normal).tolist() == values.tolist()


class TestArrow:
    @pytest.fixture
    def pa(self) -> Any:
        return pytest.importorskip("pyarrow")

    def test_fixed_size_lists_are_rows_without_a_copy(self, pa: Any) -> None:
        values = np.arange(12, dtype=np.float32)
        rows = pa.FixedSizeListArray.from_arrays(pa.array(values), 3)
        normal = normalise(rows)
        assert normal[1:4] == ("float32", 4, (4, 3))
        assert np.shares_memory(normal.view, values)
        assert round_trip(normalise(rows[1:3])).tolist() == values.reshape(4, 3)[1:3].tolist()
        nested = pa.FixedSizeListArray.from_arrays(rows, 2)
        assert normalise(nested).shape == (2, 2, 3)
        assert normalise(rows[:0]).shape == (0, 3)

    def test_flat_arrays_and_buffers(self, pa: Any) -> None:
        assert normalise(pa.array([1.0, 2.0]))[1:4] == ("float64", 8, (2,))
        assert normalise(pa.array(np.zeros(2, np.float16)))[1:4] == ("float16", 2, (2,))
        assert normalise(pa.py_buffer(b"abc"))[1:4] == (None, 1, None)
        assert normalise(pa.Tensor.from_numpy(np.zeros((2, 3)))).shape == (2, 3)

    def test_chunks_are_joined_once(self, pa: Any) -> None:
        values = np.arange(6, dtype=np.float32)
        rows = pa.FixedSizeListArray.from_arrays(pa.array(values), 3)
        assert np.shares_memory(normalise(pa.chunked_array([rows])).view, values)
        joined = round_trip(normalise(pa.chunked_array([rows, rows])))
        assert joined.tolist() == [*values.reshape(2, 3).tolist()] * 2
        assert normalise(pa.chunked_array([], type=rows.type)).shape == (0, 3)

    def test_nulls_and_other_types_are_refused(self, pa: Any) -> None:
        rows = pa.list_(pa.float32(), 2)
        for refused in (
            pa.array([1.0, None]),
            pa.array([[1.0, 2.0], None], rows),
            pa.array([[1.0, None]], rows),
            pa.chunked_array([pa.array([1.0]), pa.array([None], pa.float64())]),
            pa.array(["text"]),
            pa.array([True]),
            pa.array([[1.0], [2.0, 3.0]]),
            pa.table({"a": [1]}),
        ):
            with pytest.raises(PayloadError):
                normalise(refused)

    def test_polars_is_asked_to_convert_itself(self) -> None:
        pl = pytest.importorskip("polars")
        with pytest.raises(PayloadError):
            normalise(pl.Series([1.0, 2.0]))
        assert normalise(pl.Series([1.0, 2.0]).to_numpy()).shape == (2,)


def test_bytes_need_no_numpy() -> None:
    program = (
        "import sys; from vecmq._payload import normalise; import vecmq;"
        "normalise(b'a'); normalise(bytearray(b'a')); sys.exit('numpy' in sys.modules)"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True, timeout=60)
