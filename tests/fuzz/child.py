"""Read damaged files of one kind in this process, which tells its parent each before it begins."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import sys
import traceback
import warnings
from pathlib import Path

#: Address space beyond what the process has before it reads a file, in bytes.
_MEMORY = 2**30
#: Memory that the readers believe the machine to have: an image may take half of it.
_MACHINE = 2**30
#: Seconds of the processor for one file; then the system ends the process.
_SECONDS = 20


def main() -> None:
    """Read mutants ``first`` to ``last - 1`` in a folder, and write a line of JSON before and after each.

    The mutant and the good files beside it lie in ``damaged`` there; after a fault they go to a folder of its number.
    """
    name, first, last, work = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    from mutate import mutant
    from targets import KINDS

    from sr_models.io import opening

    opening._machine_memory = lambda: _MACHINE  # type: ignore[assignment]
    warnings.simplefilter("ignore")
    kind = KINDS[name]
    clean, folder = work / "clean", work / "damaged"
    shutil.rmtree(clean, ignore_errors=True)
    clean.mkdir(parents=True)
    kind.make(clean)
    kind.read(clean / kind.name)  # a good file is read
    content = (clean / kind.name).read_bytes()
    size = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (size + _MEMORY, size + _MEMORY))
    for number in range(first, last):
        print(json.dumps({"begins": number}), flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(clean, folder)
        path = folder / kind.name
        path.write_bytes(mutant(content, number))
        signal.setitimer(signal.ITIMER_PROF, _SECONDS)
        fault = _fault(kind.read, path)
        signal.setitimer(signal.ITIMER_PROF, 0)
        if fault:
            print(json.dumps({"fault": number, "what": fault}), flush=True)
            folder.rename(work / str(number))


def _fault(read, path: Path) -> str:  # type: ignore[no-untyped-def]
    """Return what is wrong with how a file is read; empty: it is accepted, or refused in one line that names it."""
    try:
        read(path)
    except (ValueError, OSError) as error:
        message = str(error)
        if len(message.splitlines()) != 1:
            return f"not one line: {message!r}"[:300]
        return "" if f"{path.name.partition('.')[0]}." in message else f"does not name the file: {message!r}"[:300]
    except BaseException as error:
        place = traceback.extract_tb(error.__traceback__)
        own = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in place if "sr_models" in frame.filename]
        return f"{type(error).__name__} in {' '.join(own[-3:])}: {str(error)[:150]}"
    return ""


if __name__ == "__main__":
    main()
