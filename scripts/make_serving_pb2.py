"""Generate tf_infer/wire/*_pb2.py(i) from the .proto files there with an old protobuf compiler.

Code of a new compiler refuses to load on an older runtime; code of protoc 25.1 loads on all of
them from protobuf 4.25 on. That compiler needs protobuf < 5, which TensorFlow's environment does
not allow, so this script makes an environment of its own and throws it away.

    python scripts/make_serving_pb2.py            # writes the files
    python scripts/make_serving_pb2.py --check    # exits 1 if they are not what the compiler writes

Needs a Python with a wheel of grpcio-tools 1.62.3 (3.10 to 3.12) as --python, and pip's network.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NAMES = ("serving", "profiler", "generation")
PROTOS = tuple(f"tf_infer/wire/{name}.proto" for name in NAMES)
OUTPUTS = tuple(f"tf_infer/wire/{name}_pb2.{ending}" for name in NAMES for ending in ("py", "pyi"))
# setuptools: grpcio-tools 1.62 imports pkg_resources.
COMPILER = ("grpcio-tools==1.62.3", "setuptools<80")


def compile_into(out_dir: Path, python: str | None) -> None:
    """Run the old compiler from a fresh environment; write the files below `out_dir`."""
    with tempfile.TemporaryDirectory() as folder:
        if python is None:
            venv.create(folder, with_pip=True)
        else:
            subprocess.run([python, "-m", "venv", folder], check=True)
        interpreter = str(Path(folder) / "bin" / "python")
        subprocess.run([interpreter, "-m", "pip", "install", "--quiet", *COMPILER], check=True)
        subprocess.run([interpreter, "-m", "grpc_tools.protoc", "-I.", f"--python_out={out_dir}",
                        f"--pyi_out={out_dir}", *PROTOS], check=True, cwd=ROOT)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    parser.add_argument("--python", help="the interpreter of the compiler's environment")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        compile_into(Path(folder), arguments.python)
        made = {name: (Path(folder) / name).read_bytes() for name in OUTPUTS}
    if arguments.check:
        stale = [name for name in OUTPUTS if (ROOT / name).read_bytes() != made[name]]
        print(f"not what the compiler writes: {stale}" if stale else "up to date")
        return 1 if stale else 0
    for name, content in made.items():
        (ROOT / name).write_bytes(content)
        print(f"wrote {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
