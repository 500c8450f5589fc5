"""Files that are shipped have a licence in THIRD_PARTY.md and load nothing of others; CITATION.cff has our version."""

import fnmatch
import re
import subprocess
from pathlib import Path

import yaml
from third_party import data_files, licensed_patterns, unlicensed

import invflow

_ROOT = Path(__file__).parent.parent


def _data():
    listed = subprocess.run(["git", "ls-files", "invflow", "sr_models"], cwd=_ROOT, capture_output=True, text=True)
    # a source distribution has no git
    there = [str(path.relative_to(_ROOT)) for path in (_ROOT / "sr_models").rglob("*") if path.is_file()]
    return data_files(listed.stdout.split() or there)


def test_every_file_that_is_no_code_has_a_licence():
    data = _data()
    assert len(data) > 8
    assert unlicensed(data) == []
    assert [pattern for pattern in licensed_patterns() if not fnmatch.filter(data, pattern)] == []


def test_pages_load_nothing_from_elsewhere():
    pages = [name for name in _data() if Path(name).suffix in (".html", ".css", ".js")]
    assert pages
    for name in pages:
        assert not re.search(r"(src|href|url\(|@import)[=\s\"']*https?://|@font-face", (_ROOT / name).read_text()), name


def test_the_citation_has_this_version():
    citation = yaml.safe_load((_ROOT / "CITATION.cff").read_text())
    assert citation["version"] == invflow.__version__
    assert len(citation["references"]) == 4
