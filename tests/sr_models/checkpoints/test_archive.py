"""Files of torch.save that ask for far more time or memory than they have bytes are refused before they take it."""

import io
import pickle
import zipfile

import pytest
import torch

from sr_models.checkpoints.archive import read_archive

#: A pickle of protocol 2 that asks for a name of 30,000 characters: torch's message about it takes five seconds.
LONG = b"\x80\x02c" + b"a" * 30_000 + b"\nb\n."


def saved(content, **options):
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def rewritten(content, compression=zipfile.ZIP_STORED, **entries):
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as source, zipfile.ZipFile(buffer, "w", compression) as target:
        for name in source.namelist():
            target.writestr(name, entries.get(name.partition("/")[2].partition(".")[0], source.read(name)))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (LONG, "it holds too long texts without a space"),
        (rewritten(saved({"a": torch.ones(2)}), data=LONG), "it holds too long texts without a space"),
        (pickle.dumps(torch.serialization.MAGIC_NUMBER, 2)[:-1], "it is cut short or damaged"),
        (
            rewritten(saved({"a": torch.zeros(10**6)}), zipfile.ZIP_DEFLATED),
            r"it unpacks to 4,000,\d+ bytes from \d,\d+, but torch.save compresses nothing",
        ),
        (saved({"a": [torch.ones(1).expand(1000, 1000)]}), r"a tensor of shape \(1000, 1000\) repeats 4 bytes"),
    ],
)
def test_what_is_refused(tmp_path, content, message):
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(
        ValueError, match=rf"x\.pth: it is not a file of tensors alone that torch.save wrote: {message}"
    ):
        read_archive(tmp_path / "x.pth")


@pytest.mark.parametrize("new", [True, False])
def test_what_is_read(tmp_path, new):
    content = {"a": torch.ones(3), "text": "a word of " + "x" * 5000, "expanded": torch.ones(2).expand(9, 2)}
    content["again"] = [content["a"], (content["a"][1:],)]
    (tmp_path / "x.pth").write_bytes(saved(content, _use_new_zipfile_serialization=new))
    found = read_archive(tmp_path / "x.pth")
    assert found["text"] == content["text"]
    assert torch.equal(found["again"][1][0], torch.ones(2))
    assert torch.equal(found["expanded"], torch.ones(9, 2))
