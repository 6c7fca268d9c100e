"""The house rules that a compiler does not check; after TigerBeetle's tidy.zig.

Every rule holds for every file: there is no list of old sins. A rule that stands in the way is
changed here, for all.
"""

from __future__ import annotations

import ast
import re
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "python" / "vecmq"
COLUMNS_MAX = 100
FUNCTION_LINES_MAX = 70
FILE_LINES_MAX = 600

# Words of DESIGN.md's glossary that name nothing here. "offset" names one thing: where a chunk
# starts in its payload, a field of the frame header.
UNUSED_WORDS = {"blob", "packet", "part", "segment", "backend", "broker", "offset", "mtu"}
CHUNK_OFFSET_FILES = {"src/frame/header.rs", "python/vecmq/reader.py"}

# room -> rooms it may use beside itself
RUST_ROOMS: dict[str, set[str]] = {
    "error": set(),
    "name": {"error"},
    "frame": {"error"},
    "router": {"error"},
    "queue": {"error", "name", "frame"},
    "nats": {"error", "name", "frame"},
    "hybrid": {"error", "name", "frame", "router", "queue", "nats"},
    "py": {"error", "name", "frame", "router", "queue", "nats", "hybrid"},
}
CRATE_OWNERS = {
    "pyo3": "src/py",
    "pyo3_log": "src/py",
    "rocksdb": "src/queue",
    "async_nats": "src/nats",
    "nkeys": "src/nats",
}

# Python modules from the bottom up; a module may import from its own row and from those above it.
# A package counts as its name.
PYTHON_ROWS: list[set[str]] = [
    {"errors", "_native", "_cache"},
    {"retention", "integrity", "_payload", "_batch", "_messages", "_watchdog", "_server_process"},
    {"server", "_server_store", "config", "_config_keys"},
    {"aio", "sync", "bridge", "reader", "_options", "_nats_options", "_context", "_admin", "_loop"}
    | {"_attached", "_attach_aio", "_attach_sync", "_subscribe_aio", "_subscribe_sync"},
    {"__init__"},
    {"bench", "demo", "migrate", "pack_reader"},
    {"cli", "__main__"},
]


def tracked() -> list[Path]:
    """Every file of the repository: tracked ones, and new ones that are not ignored."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return sorted(ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file())


TRACKED = tracked()
RUST = [path for path in TRACKED if path.suffix == ".rs"]
CORE = [path for path in RUST if path.is_relative_to(ROOT / "src")]
PYTHON = [path for path in TRACKED if path.suffix in {".py", ".pyi"}]
SCRIPTS = [path for path in TRACKED if path.name == "Makefile" or path.suffix in {".sh", ".mk"}]
SOURCES = [*RUST, *PYTHON, *SCRIPTS, ROOT / ".ci" / "run"]


def where(path: Path, line: int) -> str:
    return f"{path.relative_to(ROOT)}:{line}"


def numbered(path: Path) -> Iterator[tuple[int, str]]:
    yield from enumerate(path.read_text(encoding="utf-8").splitlines(), 1)


def code_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines of a Rust file without comments and without what stands in string literals."""
    for number, line in numbered(path):
        bare = re.sub(r'"(?:[^"\\]|\\.)*"', '""', line)
        yield number, re.sub(r"//.*", "", bare)


def lines_matching(
    paths: list[Path],
    pattern: str,
    read: Callable[[Path], Iterator[tuple[int, str]]] = numbered,
) -> list[str]:
    found = re.compile(pattern)
    return [
        f"{where(path, number)}: {line.strip()[:90]}"
        for path in paths
        for number, line in read(path)
        if found.search(line)
    ]


def test_source_is_ascii() -> None:
    assert not lines_matching(SOURCES, r"[^\x00-\x7f]")


def test_lines_are_short() -> None:
    assert not lines_matching(SOURCES, rf"^.{{{COLUMNS_MAX + 1}}}")


def test_no_trailing_whitespace_and_one_newline_at_the_end() -> None:
    text_files = [*SOURCES, *(path for path in TRACKED if path.suffix in {".md", ".toml"})]
    assert not lines_matching(text_files, r"\s$")
    assert not [
        path for path in text_files if path.stat().st_size and not ends_with_one_newline(path)
    ]


def ends_with_one_newline(path: Path) -> bool:
    content = path.read_bytes()
    return content.endswith(b"\n") and not content.endswith(b"\n\n")


def test_files_are_short() -> None:
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCES}
    assert not {where(path, n): n for path, n in lengths.items() if n > FILE_LINES_MAX}


def rust_functions(path: Path) -> Iterator[tuple[str, int]]:
    """Yields where each function starts and its length; rustfmt closes it at the same indent."""
    opening = re.compile(r"^( *)(?:pub(?:\([^)]*\))? |const |async |unsafe |extern \"C\" )*fn \w")
    open_functions: list[tuple[str, int]] = []
    for number, line in numbered(path):
        if match := opening.match(line):
            open_functions.append((match.group(1), number))
        while open_functions and line.startswith(f"{open_functions[-1][0]}}}"):
            _, start = open_functions.pop()
            yield where(path, start), number - start + 1
        if open_functions and line == f"{open_functions[-1][0]}{line.strip()}" and ends_flat(line):
            open_functions.pop()


def ends_flat(line: str) -> bool:
    """A function on one line, or a trait's function without a body."""
    return line.rstrip().endswith((";", "{}")) or bool(re.search(r"\{ .* \}$", line))


def python_functions(path: Path) -> Iterator[tuple[str, int]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            documented = isinstance(node.body[0], ast.Expr) and ast.get_docstring(node)
            # The docstring is for help(), not for the reader of the code.
            text = (node.body[0].end_lineno or 0) - node.body[0].lineno + 1 if documented else 0
            yield where(path, node.lineno), (node.end_lineno or 0) - node.lineno + 1 - text


def test_functions_are_short() -> None:
    found = [length for path in RUST for length in rust_functions(path)]
    found += [length for path in PYTHON for length in python_functions(path)]
    assert len(found) > 100, "the search itself is broken"
    assert not {place: length for place, length in found if length > FUNCTION_LINES_MAX}


def test_nothing_is_left_for_later() -> None:
    marks = ["TO" + "DO", "FIX" + "ME", "X" * 3, "unimplemented" + "!", r"\bto" + "do!"]
    assert not lines_matching([*SOURCES, *tracked_docs()], "|".join(marks))


def tracked_docs() -> list[Path]:
    return [path for path in TRACKED if path.suffix in {".md", ".toml"}]


# Python's memory, and the call of a function that is compiled for a wider processor.
UNSAFE_FILES = {ROOT / "src/py/buffer.rs", ROOT / "src/frame/simd.rs"}


def test_unsafe_is_in_two_small_files() -> None:
    others = [path for path in RUST if path not in UNSAFE_FILES]
    assert not lines_matching(others, r"\bunsafe\b(?!_)", code_lines)
    assert not lines_matching(others, r"allow\(unsafe_code|expect\(unsafe_code", code_lines)


def test_exceptions_to_lints_are_expected_and_have_a_reason() -> None:
    assert not lines_matching(CORE, r"#!?\[allow\(", code_lines)
    # What the Rust tests share is not used by each of them, so there it is allow, with a reason.
    assert not lines_matching(RUST, r"#!?\[(allow|expect)\((?!.*reason).*\]", code_lines)


@pytest.mark.parametrize("crate", sorted(CRATE_OWNERS))
def test_a_crate_stays_in_its_room(crate: str) -> None:
    owner = ROOT / CRATE_OWNERS[crate]
    others = [path for path in CORE if not path.is_relative_to(owner)]
    assert not lines_matching(others, rf"(?<![\w:]){crate}::|^\s*use {crate}\b", code_lines)


def room_of(path: Path) -> str:
    return path.relative_to(ROOT / "src").parts[0].removesuffix(".rs")


def rooms_used(path: Path) -> Iterator[tuple[int, str]]:
    """Yields the rooms that a Rust file names, with the line."""
    for number, line in code_lines(path):
        for name in re.findall(r"\bcrate::(\w+)", line):
            # Types at the crate's root are re-exports from `error`.
            yield number, name if name[0].islower() else "error"
        for group in re.findall(r"\bcrate::\{([^}]*)", line):
            for name in re.findall(r"(?:^|,)\s*(\w+)", group):
                yield number, name if name[0].islower() else "error"


def test_rust_rooms_point_one_way() -> None:
    wrong: list[str] = []
    for path in CORE:
        room = room_of(path)
        if room == "lib":
            continue
        allowed = RUST_ROOMS[room] | {room}
        used_here = rooms_used(path)
        wrong += [f"{where(path, n)}: {used}" for n, used in used_here if used not in allowed]
    assert not wrong


def test_queue_and_nats_never_meet() -> None:
    assert "nats" not in RUST_ROOMS["queue"]
    assert "queue" not in RUST_ROOMS["nats"]


def row_of(module: str) -> int:
    rows = [number for number, row in enumerate(PYTHON_ROWS) if module in row]
    assert len(rows) == 1, f"vecmq.{module}: give it a row in PYTHON_ROWS"
    return rows[0]


def package_modules() -> Iterator[tuple[str, Path]]:
    for path in PYTHON:
        if path.is_relative_to(PACKAGE):
            yield path.relative_to(PACKAGE).parts[0].partition(".")[0], path


def imports_of_package(path: Path) -> Iterator[tuple[int, str]]:
    """Yields the modules of vecmq that a file imports when it runs, not those for annotations."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        child
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for child in ast.walk(node)
    }
    for node in ast.walk(tree):
        if node in typing_only:
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "vecmq":
            # `from vecmq import x` names a module or something that __init__ gives out.
            names = [f"vecmq.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{where(path, node.lineno)}: relative import"
            names = [node.module or ""]
        else:
            continue
        for name in names:
            top, _, rest = name.partition(".")
            if top == "vecmq":
                module = rest.partition(".")[0]
                known = any(module in row for row in PYTHON_ROWS)
                yield node.lineno, module if known else "__init__"


def test_python_modules_point_one_way() -> None:
    wrong: list[str] = []
    for module, path in package_modules():
        row = row_of(module)
        # __init__ gives wrap() and the like out; that it may import every API row is its row.
        wrong += [
            f"{where(path, number)}: {module} uses {used}"
            for number, used in imports_of_package(path)
            if row_of(used) > row
        ]
    assert not wrong


def words(name: str) -> set[str]:
    spaced = re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", name)
    return {word.rstrip("s") for word in spaced.lower().split("_")} | set(spaced.lower().split("_"))


def rust_names(path: Path) -> Iterator[tuple[int, str]]:
    """Yields public items and fields; variants are public with their enum."""
    qualifiers = "const |async |unsafe |fn |struct |enum |mod |trait |type |static "
    item = re.compile(rf"\bpub (?:{qualifiers})*(\w+)")
    for number, line in code_lines(path):
        for name in item.findall(line):
            yield number, name


def python_names(path: Path) -> Iterator[tuple[int, str]]:
    """Yields public functions, classes, their arguments, and attributes."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            if node.name.startswith("_") and node.name != "__init__":
                continue
            yield node.lineno, node.name
            arguments = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
            yield from ((argument.lineno, argument.arg) for argument in arguments)
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield node.lineno, node.name
        elif (
            isinstance(node, ast.AnnAssign)
            and isinstance(node.target, ast.Name)
            and not node.target.id.startswith("_")
        ):
            yield node.lineno, node.target.id


def test_public_names_use_the_glossary() -> None:
    named = [(path, number, name) for path in CORE for number, name in rust_names(path)]
    named += [
        (path, number, name) for _, path in package_modules() for number, name in python_names(path)
    ]
    assert len(named) > 100, "the search itself is broken"
    assert not [
        f"{where(path, number)}: {name}"
        for path, number, name in named
        if words(name) & UNUSED_WORDS
        and not (name == "offset" and str(path.relative_to(ROOT)) in CHUNK_OFFSET_FILES)
    ]


def test_no_path_of_a_machine_and_no_registry_host() -> None:
    paths = [r"(?<![\w.])/" + name + r"(?![\w-])" for name in ("root", "work")]
    paths.append(r"(?<![\w.])/" + r"home/\w")
    hosts = [rf"\b{name}\." + end for name, end in (("pypi", "org"), ("crates", "io"))]
    hosts.append("python" + "hosted")
    # cargo writes the registry's name into the lock files itself.
    texts = [path for path in TRACKED if path.name != "Cargo.lock" and is_text(path)]
    assert not lines_matching(texts, "|".join([*paths, *hosts]))


def is_text(path: Path) -> bool:
    try:
        path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return False
    return True


def locked(lock: Path) -> dict[str, str]:
    packages = tomllib.loads(lock.read_text(encoding="utf-8"))["package"]
    return {package["name"]: package["version"] for package in packages}


@pytest.mark.parametrize("crate", ["librocksdb-sys", "zstd-sys", "lz4-sys"])
def test_the_archive_is_built_from_the_versions_that_link_it(crate: str) -> None:
    ours = locked(ROOT / "Cargo.lock")
    archive = locked(ROOT / "_build" / "rocksdb" / "Cargo.lock")
    assert ours[crate] == archive[crate]
