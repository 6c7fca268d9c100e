"""Makes the clone's virtual environment, from the lists in pyproject.toml and from nothing else.

    python _build/setup_venv.py demo    what `make demo` and the benchmarks need
    python _build/setup_venv.py check   that and the tools of `make test` and `make lint`
    python _build/setup_venv.py editable release|dev   vecmq itself, after maturin built it

A second run is instant: a stamp keeps a hash of what was installed. Standard library only.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import time
import tomllib
from typing import Any

from environment import ROOT, BuildError

VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
PYTHON_MIN = (3, 11)


def wanted(project: dict[str, Any], which: str) -> list[str]:
    """Returns the requirements of one set, without vecmq itself.

    Args:
        project: pyproject.toml as a dict.
        which: "demo" (build requirements, dependencies, every extra) or "check" (its group too).
    """
    found: set[str] = set(project["build-system"]["requires"])
    found.update(project["project"]["dependencies"])
    for extra in project["project"]["optional-dependencies"].values():
        found.update(extra)
    if which == "check":
        found.update(project["dependency-groups"]["check"])
    # "vecmq[...]" is how an extra names other extras; all of them are here already.
    own = re.compile(rf"{re.escape(project['project']['name'])}\s*\[")
    return sorted(item for item in found if not own.match(item))


def make_venv() -> None:
    """Makes an empty virtual environment.

    Raises:
        BuildError: This Python cannot; the message says what to install.
    """
    print(f"vecmq: making {VENV}", flush=True)
    done = subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=False)
    if done.returncode != 0:
        raise BuildError(
            f"{sys.executable} -m venv failed: Debian has it in the package python3-venv"
        )


def install(which: str) -> None:
    """Installs one set unless exactly that was installed before.

    Raises:
        BuildError: Python is too old, or pip failed.
    """
    if sys.version_info < PYTHON_MIN:
        have = ".".join(map(str, sys.version_info[:3]))
        raise BuildError(f"Python >= 3.11 is needed, {sys.executable} is {have}: set PYTHON=...")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    requirements = wanted(project, which)
    digest = hashlib.sha256("\n".join([sys.version, *requirements]).encode()).hexdigest()
    stamp = VENV / f"installed-{which}"
    if stamp.exists() and stamp.read_text() == digest:
        return
    if not PYTHON.exists():
        make_venv()
    print(f"vecmq: installing {len(requirements)} requirements ({which})", flush=True)
    started = time.monotonic()
    pip = [str(PYTHON), "-m", "pip", "install", "--disable-pip-version-check"]
    if subprocess.run([*pip, *requirements], check=False).returncode != 0:
        raise BuildError("pip could not install the requirements; see above")
    stamp.write_text(digest)
    print(f"vecmq: installed in {time.monotonic() - started:.0f} s", flush=True)


def install_editable(profile: str) -> None:
    """Installs vecmq so that it is imported from the clone, with its metadata and its command.

    maturin develop would do so every time, in twenty lines of pip's; here it is done when the
    metadata changed. The extension was built a moment ago, so cargo finds nothing to do.

    Raises:
        BuildError: pip failed.
    """
    metadata = (ROOT / "pyproject.toml").read_bytes() + (ROOT / "Cargo.toml").read_bytes()
    digest = hashlib.sha256(metadata).hexdigest()
    stamp = VENV / "installed-editable"
    if stamp.exists() and stamp.read_text() == digest:
        return
    pip = [str(PYTHON), "-m", "pip", "install", "--disable-pip-version-check", "--quiet"]
    command = [*pip, "--no-deps", "--no-build-isolation", "--editable", str(ROOT)]
    variables = os.environ | {"MATURIN_PEP517_ARGS": f"--locked --profile {profile}"}
    if subprocess.run(command, env=variables, check=False).returncode != 0:
        raise BuildError("pip could not install vecmq itself; see above")
    stamp.write_text(digest)


if __name__ == "__main__":
    try:
        match sys.argv[1:]:
            case ["demo" | "check" as which]:
                install(which)
            case ["editable", "release" | "dev" as profile]:
                install_editable(profile)
            case _:
                sys.exit(__doc__)
    except BuildError as error:
        sys.exit(f"vecmq build: {error}")
