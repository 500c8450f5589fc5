"""JSON and YAML of others: keys that stand twice, depth and aliases are errors of one line."""

import io

import pytest

from sr_models.io.json_text import parse_json
from sr_models.io.yaml_text import parse_yaml

LETTERS = list(zip("abcdefgh", "bcdefghi", strict=True))
#: Nine lists, each of nine times the one before: 9^8 values in 300 characters.
BOMB = "a: &a [x]\n" + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in LETTERS)
#: The same by merged mappings, which PyYAML multiplies while it builds them.
MERGES = "a: &a {x: 1}\n" + "".join(f"{b}: &{b} {{<<: [{', '.join([f'*{a}'] * 9)}]}}\n" for a, b in LETTERS)


@pytest.mark.parametrize(
    ("parse", "text", "message"),
    [
        (parse_json, '{"b": [{"a": 1, "a": 2}]}', "^'a' stands in it twice$"),
        (parse_json, "[" * 100_000, "^it is nested too deeply$"),
        (parse_yaml, "b:\n- {a: 1, c: 2, a: 3}", "^'a' stands in it twice$"),
        (parse_yaml, "[" * 100_000, "^it is nested too deeply$"),
        (parse_yaml, BOMB, "^its aliases repeat too much$"),
        (parse_yaml, MERGES, "^its aliases repeat too much$"),
        (parse_yaml, "a: &a [1, *a]", "^its aliases repeat too much$"),
        (parse_yaml, "a: 2026-99-99", "^month must be in 1..12"),
    ],
)
def test_what_is_refused(parse, text, message):
    with pytest.raises(ValueError, match=message) as caught:
        parse(text)
    assert len(str(caught.value).splitlines()) == 1


def test_what_is_read():
    assert parse_json('{"a": {"b": 1}, "c": {"b": 2}}') == {"a": {"b": 1}, "c": {"b": 2}}
    assert parse_yaml("") is None
    text = "base: &base {lr: 1e-4, steps: 3}\nother: {<<: *base, steps: 4}\nboth: [*base, *base]\n"
    found = parse_yaml(io.StringIO(text))
    assert found["other"] == {"lr": 1e-4, "steps": 4}
    assert found["both"] == [found["base"]] * 2
