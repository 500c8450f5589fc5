"""Files of weights that are damaged are refused in one line."""

import pytest

from sr_models.evaluation.metrics.weight_files import read_arrays


@pytest.mark.parametrize("content", [b"Pa\n.", b"Fa\x0bb\n."])
def test_messages_have_one_line(tmp_path, content):
    (tmp_path / "x.pkl").write_bytes(content)
    with pytest.raises(ValueError, match=r"cannot load weights from .*x\.pkl: ") as caught:
        read_arrays(tmp_path / "x.pkl")
    assert len(str(caught.value).splitlines()) == 1
