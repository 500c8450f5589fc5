"""Templates of names: fields of every kind, and no name twice."""

from __future__ import annotations

import pytest

from sr_models.io.naming import FIELDS, check_template, template_names

VALUES = {"seed": 3, "temperature": 0.5, "model": "mine", "scale": 4}


@pytest.mark.parametrize("template", [*(f"{{{field}}}" for field in FIELDS), "{name}/{index:03d}", "{{{name}}}"])
def test_templates(template: str) -> None:
    check_template(template)


@pytest.mark.parametrize(
    "template",
    [
        "",
        "x",
        "{}",
        "{0}",
        "{name",
        "name}",
        "{name.x}",
        "{name[0]}",
        "{other}",
        "/{name}",
        "a/../../{name}",
        "~/{name}",
        "{index:q}",
        "{name}\0",
        "{seed:99999d}{name}",
        "{seed:999999999999d}{name}",
        "{temperature:.9999f}{name}",
        "{name:{seed}}",
    ],
)
def test_what_is_no_template(template: str) -> None:
    with pytest.raises(ValueError, match="naming"):
        check_template(template)


def test_fields_as_wide_as_a_files_name() -> None:
    check_template("{name:_<255}")
    with pytest.raises(ValueError, match=r"naming '\{name:_<256\}' cannot be used: .* a width of at most 255"):
        check_template("{name:_<256}")


def test_names() -> None:
    names = template_names(
        "{name}_{number}_{index:02d}_s{seed}_t{temperature}_{model}x{scale}", ["a", "sub/b"], 2, VALUES
    )
    assert names == [
        ["a_0_00_s3_t0.5_minex4", "a_0_01_s3_t0.5_minex4"],
        ["sub/b_1_00_s3_t0.5_minex4", "sub/b_1_01_s3_t0.5_minex4"],
    ]


def test_a_name_twice() -> None:
    with pytest.raises(ValueError, match="gives sample 0 of a and sample 1 of a the same name 'a'"):
        template_names("{name}", ["a"], 2, VALUES)
    with pytest.raises(ValueError, match="gives sample 0 of a and sample 0 of b the same name '0'"):
        template_names("{index}", ["a", "b"], 2, VALUES)


@pytest.mark.parametrize(("template", "model"), [("{model}/{name}", ".."), ("{model}/{name}", ""), ("{name}", "x")])
def test_names_that_lead_out_of_the_folder(template: str, model: str) -> None:
    with pytest.raises(ValueError, match=r"gives sample 0 of (a|\.\./a) the name '(\.\./|/)a', out of OUTPUT"):
        template_names(template, ["../a" if template == "{name}" else "a"], 1, {**VALUES, "model": model})
