"""Makes the fixture of tests/test_migrate.py anew, with Milvus' own code.

    python tests/rocksmq/make.py

Needs Go and a C++ compiler, and what `make peers` keeps in the cache: RocksDB 6.28 for Milvus.
Standard library only.
"""

from __future__ import annotations

import gzip
import io
import json
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
MILVUS = ROOT / "benches" / "peers" / "milvus"
sys.path[:0] = [str(MILVUS), str(ROOT / "_build")]

import build  # type: ignore[import-not-found]  # noqa: E402 - no packages, either of them

import environment  # noqa: E402


def main() -> None:
    """Builds the program, runs it, packs what it wrote."""
    rocksdb = build.ensure_rocksdb(environment.cache_dir() / "peers" / "milvus")
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        program = work / "make_fixture"
        command = ["go", "build", "-trimpath", "-buildvcs=false", "-o", str(program)]
        build.run([*command, "./make_fixture"], MILVUS, build.link_variables(rocksdb))
        made = work / "made"
        made.mkdir()
        # RocksDB writes the host's name into its tables: one of its own for this program alone.
        inside = f"hostname milvus && exec {program} {made}"
        done = subprocess.run(
            ["unshare", "--uts", "sh", "-c", inside], check=True, stdout=subprocess.PIPE, text=True
        )
        manifest = json.loads(done.stdout.splitlines()[-1])
        (HERE / "manifest.json").write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")
        pack(made, HERE / "rocksmq.tar.gz")


def pack(directory: Path, target: Path) -> None:
    """Packs the files in order, without owners and times; RocksDB's own logs stay out."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path in sorted(directory.rglob("*")):
            if path.name.startswith("LOG"):
                continue
            member = archive.gettarinfo(str(path), str(path.relative_to(directory)))
            member.uid = member.gid = member.mtime = 0
            member.uname = member.gname = ""
            if path.is_file():
                archive.addfile(member, io.BytesIO(path.read_bytes()))
            else:
                archive.addfile(member)
    with open(target, "wb") as stream, gzip.GzipFile("", "wb", 9, stream, mtime=0) as zipped:
        zipped.write(packed.getvalue())
    print(f"{target.relative_to(ROOT)}: {target.stat().st_size:,} bytes", file=sys.stderr)


if __name__ == "__main__":
    main()
