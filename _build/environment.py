"""The one place that knows which variables a build of vecmq needs.

Used by the PEP 517 backend (`pip install .`), by the Makefile and by hand:

    python _build/environment.py run -- cargo test      with RocksDB; compiles it when it is missing
    python _build/environment.py run --core -- cargo test --no-default-features      without RocksDB
    python _build/environment.py run --alone -- maturin develop      one at a time in a cache
    python _build/environment.py show                   as shell exports

A variable that the user has set already is left alone. Standard library only: it runs before
anything is installed; of the build requirements it needs the `libclang` wheel.
"""

from __future__ import annotations

import fcntl
import importlib.metadata
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


class BuildError(Exception):
    """The build cannot go on; the message says what is missing and what to do."""


def cache_dir() -> Path:
    """Returns what outlives clones: VECMQ_CACHE_DIR, else vecmq in the user's cache."""
    chosen = os.environ.get("VECMQ_CACHE_DIR")
    if chosen:
        return Path(chosen).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache").absolute() / "vecmq"


def require_tools() -> None:
    """Raises BuildError naming the first tool of the tool chain that is not installed."""
    advice = {
        "cargo": "install Rust 1.95 or newer (rustup)",
        os.environ.get("CC", "cc").split()[0]: "install gcc (Debian: build-essential)",
        os.environ.get("CXX", "c++").split()[0]: "install g++ (Debian: build-essential)",
    }
    for tool, what in advice.items():
        if shutil.which(tool) is None:
            raise BuildError(f"{tool} is not on the PATH: {what}")


def libclang_dir(cache: Path) -> Path:
    """Returns a directory with the libclang of the `libclang` wheel, which bindgen loads.

    It is a copy in the cache: cargo builds bindgen and all that stands on it anew when the path
    changes, and pip's isolated build environment has another path every time.
    """
    try:
        version = importlib.metadata.version("libclang")
        spec = importlib.util.find_spec("clang")
    except importlib.metadata.PackageNotFoundError:
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise BuildError(
            f"the libclang wheel is not installed for {sys.executable}: "
            "run `make`, or pip install the build requirements of pyproject.toml"
        )
    native = Path(spec.submodule_search_locations[0], "native")
    libraries = sorted(native.glob("libclang.*"))
    if not libraries:
        raise BuildError(f"no libclang.* in {native}: the libclang wheel is damaged, reinstall it")
    kept = cache / "libclang" / version
    for library in libraries:
        target = kept / library.name
        if not target.exists() or target.stat().st_size != library.stat().st_size:
            kept.mkdir(parents=True, exist_ok=True)
            unfinished = target.with_name(f"{target.name}.{os.getpid()}")
            shutil.copyfile(library, unfinished)
            unfinished.replace(target)
    return kept


def compiler_include() -> str:
    """Returns the compiler's own header directory; the libclang wheel lacks stdbool.h."""
    compiler = shlex.split(os.environ.get("CC", "cc"))
    command = [*compiler, "-print-file-name=include"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def core_variables() -> dict[str, str]:
    """Returns the variables of a build of `error`, `frame` and `router` alone."""
    return {
        "CARGO_TARGET_DIR": os.environ.get("CARGO_TARGET_DIR") or str(cache_dir() / "target"),
        # Clones share that directory: what one of them compiled must not pass for another's.
        "VECMQ_CLONE": str(ROOT),
    }


def bindgen_variables() -> dict[str, str]:
    """Returns the variables that bindgen needs to read RocksDB's C header."""
    found = {name: os.environ.get(name) for name in ("LIBCLANG_PATH", "BINDGEN_EXTRA_CLANG_ARGS")}
    return {
        "LIBCLANG_PATH": found["LIBCLANG_PATH"] or str(libclang_dir(cache_dir())),
        "BINDGEN_EXTRA_CLANG_ARGS": found["BINDGEN_EXTRA_CLANG_ARGS"] or f"-I{compiler_include()}",
    }


def build_variables() -> dict[str, str]:
    """Returns the variables of a whole build; compiles RocksDB when the cache does not have it."""
    import rocksdb

    require_tools()
    variables = core_variables() | bindgen_variables()
    archive_dir = os.environ.get("ROCKSDB_LIB_DIR") or str(rocksdb.ensure_archive(cache_dir()))
    return variables | {
        "ROCKSDB_LIB_DIR": archive_dir,
        "ROCKSDB_STATIC": "1",
        # Without it cargo takes the first python3 on the PATH, and builds anew when that changes.
        "PYO3_PYTHON": os.environ.get("PYO3_PYTHON") or sys.executable,
    }


def lock_target_dir() -> None:
    """Waits until no other process takes an extension out of cargo's target directory.

    Clones share that directory. Between cargo's end and maturin's copy another clone's build could
    put its own extension there. The lock is held until this process, or what it becomes, ends.
    """
    path = Path(core_variables()["CARGO_TARGET_DIR"]) / "vecmq-extension.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    os.set_inheritable(descriptor, True)


def main(arguments: list[str]) -> int:
    """Runs a command with the variables, or shows them; returns the exit code."""
    match arguments:
        case ["run", "--core", "--", *command] if command:
            variables = core_variables()
        case ["run", "--alone", "--", *command] if command:
            variables = build_variables()
            lock_target_dir()
        case ["run", "--", *command] if command:
            variables = build_variables()
        case ["show"]:
            for name, value in build_variables().items():
                sys.stdout.write(f"export {name}={shlex.quote(value)}\n")
            return 0
        case _:
            sys.stderr.write(__doc__)
            return 2
    os.environ.update(variables)
    # The venv's tools first (maturin, pytest), as if it were activated.
    os.environ["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    if sys.prefix != sys.base_prefix:
        os.environ["VIRTUAL_ENV"] = sys.prefix
    try:
        os.execvp(command[0], command)
    except OSError as error:
        raise BuildError(f"{command[0]}: {error.strerror}") from error


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except BuildError as error:
        sys.exit(f"vecmq build: {error}")
