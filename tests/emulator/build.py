"""Compiles C++ into shared objects and programs, kept in a build folder under the hash of all that went into them."""

from __future__ import annotations

import fcntl
import functools
import hashlib
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

RUNTIME = Path(__file__).parent / "runtime"
DEFAULT_CACHE = Path(__file__).parents[2] / "build" / "emulator"
# Contraction would round differently from the PTX; aliasing is what kernels do to their registers and buffers.
FLAGS = ("-std=c++17", "-march=x86-64-v3", "-ffp-contract=off", "-fno-strict-aliasing", "-fPIC", f"-I{RUNTIME}")


@functools.cache
def unavailable() -> str | None:
    """Return why nothing can be compiled and run here, or ``None``."""
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        return f"the fibers are written for Linux on x86-64, not for {platform.system()} on {platform.machine()}"
    if shutil.which("g++") is None:
        return "g++ is not installed"
    version = subprocess.run(["g++", "-dumpversion"], capture_output=True, text=True, check=True).stdout.strip()
    if int(version.split(".")[0]) < 12:
        return f"g++ 12 or newer is needed, for _Float16; this is {version}"
    flags = set(Path("/proc/cpuinfo").read_text().split("\n\n")[0].split())
    missing = sorted({"avx2", "fma", "f16c"} - flags)
    return f"the processor lacks {', '.join(missing)}" if missing else None


def digest(*parts: str | bytes) -> str:
    state = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        state.update(len(data).to_bytes(8, "little") + data)
    return state.hexdigest()[:24]


def headers_of(folders: Sequence[Path]) -> list[bytes]:
    """The content of all headers below the folders."""
    suffixes = (".h", ".inc", ".cuh")
    return [path.read_bytes() for folder in folders for path in sorted(folder.rglob("*")) if path.suffix in suffixes]


def runtime_digest() -> str:
    return digest(*(path.read_bytes() for path in sorted(RUNTIME.iterdir()) if path.is_file()))


@functools.cache
def compiler_version() -> str:
    return subprocess.run(["g++", "--version"], capture_output=True, text=True, check=True).stdout


def kept(output: Path, make: Callable[[Path], None]) -> Path:
    """Return ``output``, a file of the build folder, after ``make(path)`` has written it unless it was there.

    One of several processes makes it and the others wait. A failure of ``make`` leaves nothing behind.
    """
    if output.exists():
        return output
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.with_name(f".{output.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not output.exists():
            with tempfile.TemporaryDirectory(dir=output.parent) as folder:
                made = Path(folder) / output.name
                make(made)
                made.replace(output)
    return output


def run(command: Sequence[str]) -> str:
    """Return the output of a program. Raise ``RuntimeError`` with the command and its errors if it fails."""
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{result.stderr[-4000:]}")
    return result.stdout + result.stderr


def compile_cached(
    name: str,
    files: Sequence[Path],
    flags: Sequence[str],
    *,
    text: str = "",
    depends_on: Sequence[bytes] = (),
    cache: Path | None = None,
) -> Path:
    """Compile ``files``, and ``text`` if there is any, together; return the output.

    It is made anew when they, ``depends_on``, ``flags``, the runtime or the compiler change. Raises ``RuntimeError``
    with what the compiler says.
    """
    cache = cache or DEFAULT_CACHE
    contents = [path.read_bytes() for path in files]
    key = digest(*contents, text, *depends_on, *flags, runtime_digest(), compiler_version())

    def make(path: Path) -> None:
        written = path.with_name("text.cpp")
        written.write_text(text)
        sources = [*files, written] if text else files
        run(["g++", *FLAGS, *flags, *(str(source) for source in sources), "-o", str(path)])

    return kept(cache / f"{Path(name).stem}-{key}{Path(name).suffix}", make)
