"""Operators see states of every rank as images of their pixels, in place where memory allows."""

from __future__ import annotations

import pytest
import torch
from copies import Copies
from rank_cases import (
    SPATIAL,
    C,
    each_rank,
)

from invflow import (
    Squeeze,
    affine_coupling,
    channel_affine,
    flow_step,
    gaussian_split,
)
from invflow.ops import affine_coupling_reference, channel_affine_reference, flow_step_reference
from invflow.ops._pixels import as_image

OPERATORS = {
    "channel_affine": (lambda x, h, matrix, shift, **options: channel_affine(x, matrix, shift, **options)),
    "affine_coupling": (lambda x, h, matrix, shift, **options: affine_coupling(x, h[:, :C], **options)[0]),
    "flow_step": (lambda x, h, matrix, shift, **options: flow_step(x, matrix, shift, h[:, :C], h, **options)[0]),
    "gaussian_split": (lambda x, h, matrix, shift, **options: gaussian_split(x, h, **options)[0]),
}
REFERENCES = {
    "channel_affine": lambda x, h, matrix, shift: channel_affine_reference(x, matrix, shift),
    "affine_coupling": lambda x, h, matrix, shift: affine_coupling_reference(x, h[:, :C])[0],
    "flow_step": lambda x, h, matrix, shift: flow_step_reference(x, matrix, shift, h[:, :C], h)[0],
}


def arguments(rank, dtype=torch.float32):
    tensors = torch.randn(3, C, *SPATIAL[rank]), torch.randn(3, 2 * C, *SPATIAL[rank]), torch.randn(C, C)
    return [tensor.to(dtype) for tensor in (*tensors, torch.randn(C))]


@each_rank
@pytest.mark.parametrize("operator", OPERATORS)
def test_operators_see_the_pixels_of_any_state_as_those_of_an_image(operator, rank):
    call, (x, h, matrix, shift) = OPERATORS[operator], arguments(rank)
    image, h_image = (tensor.reshape(*tensor.shape[:2], -1, 1) for tensor in (x, h))
    expected = call(image, h_image, matrix, shift, backend="reference").reshape(x.shape)
    for backend in ("reference", "cpu"):
        torch.testing.assert_close(call(x, h, matrix, shift, backend=backend), expected)
    if operator in REFERENCES:
        torch.testing.assert_close(REFERENCES[operator](x, h, matrix, shift), expected)


@each_rank
@pytest.mark.parametrize("operator", OPERATORS)
def test_operators_under_transforms_and_without_values(operator, rank):
    call, given = OPERATORS[operator], arguments(rank)
    expected = call(*given)
    x, h, matrix, shift = given
    mapped = torch.vmap(lambda x, h: call(x[None], h[None], matrix, shift)[0])
    torch.testing.assert_close(mapped(x, h), expected, rtol=1e-4, atol=1e-5)
    on_meta = call(*(tensor.to("meta") for tensor in given))
    assert on_meta.shape == x.shape


LAYOUTS = {
    "contiguous": lambda x: x.contiguous(),
    "channels last": lambda x: x.movedim(1, -1).contiguous().movedim(-1, 1),
    "some channels": lambda x: torch.cat([x, x], 1)[:, C // 2 : C // 2 + C],
    "some channels of channels last": lambda x: torch.cat([x, x], 1).movedim(1, -1).contiguous().movedim(-1, 1)[:, 1:5],
    "every other sample": lambda x: torch.cat([x, x])[::2],
}


@each_rank
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_stay_views_and_results_keep_them(layout, rank):
    x = LAYOUTS[layout](torch.randn(4, C, *SPATIAL[rank]))
    with Copies() as copies:
        image = as_image(x)
    assert copies.count == 0
    assert image.data_ptr() == x.data_ptr()
    assert image.dim() == 4
    assert torch.equal(image.reshape(x.shape), x)
    h, matrix, shift = (torch.randn(4, C, *SPATIAL[rank]), torch.eye(C), torch.zeros(C))
    expected = x.movedim(1, -1).contiguous().movedim(-1, 1) if "last" in layout else x.contiguous()
    expected = x.contiguous() if rank == 2 else expected
    for result in (channel_affine(x, matrix, shift), affine_coupling(x, h)[0]):
        assert result.stride() == expected.stride()


@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
def test_part_of_a_volume_is_copied_once_in_its_layout(layout):
    x = LAYOUTS[layout](torch.randn(2, C, 4, 4, 4))[:, :, 1:3, :, :3]
    with Copies() as copies:
        image = as_image(x)
    assert copies.count == 1
    assert (image.stride(1) == 1) == (layout == "channels last")
    expected = x.flatten(2).unsqueeze(2)
    assert torch.equal(image, expected)


@pytest.mark.parametrize("rank", [3, 5])
def test_squeeze_keeps_the_layout_of_other_ranks(rank):
    x = LAYOUTS["channels last"](torch.randn(2, C, *SPATIAL[rank]))
    y, _ = Squeeze()(x)
    assert torch.equal(y, Squeeze()(x.contiguous())[0])
    back, _ = Squeeze().inverse(y)
    for result in (y, back):
        assert result.movedim(1, -1).is_contiguous()
