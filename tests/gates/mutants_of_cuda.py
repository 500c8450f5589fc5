"""Errors in the CUDA kernels that the kill suite must notice."""

from __future__ import annotations

from .mutant import Mutant

_SUM_OF_WARPS = """\
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = value;
  __syncthreads();
  T total = 0;
"""
_ANY_ORDER = """\
  if (threadIdx.x == 0) sums[0] = 0;
  __syncthreads();
  if (threadIdx.x % 32 == 0) {};
  __syncthreads();
  return sums[0];
  T total = 0;
"""

MUTANTS = [
    Mutant(
        "no barrier between the writing of a tile and the product",
        "tile.h",
        "    if (!G::kResident || first == 0) __syncthreads();\n",
        "",
    ),
    Mutant(
        "no barrier after a part of the matrix is loaded",
        "tile.h",
        "thread, pass, first, weights);\n      __syncthreads();",
        "thread, pass, first, weights);",
    ),
    Mutant(
        "no barrier before products replace the tile",
        "flow_step.cu",
        "if (G::kFixed) __syncthreads();",
        "",
    ),
    Mutant(
        "no barrier before the gradient of the matrix",
        "flow_step_backward.cu",
        "__syncthreads();\n        outer.add(",
        "outer.add(",
    ),
    Mutant(
        "no barrier before the next tile",
        "flow_step_backward.cu",
        "        }\n      __syncthreads();\n    }\n",
        "        }\n    }\n",
    ),
    Mutant(
        "every other tile of a block dropped",
        "flow_step_backward.cu",
        "item += gridDim.x)",
        "item += 2 * gridDim.x)",
    ),
    Mutant(
        "what is kept of a map in the place of another's",
        "flow_step_backward.cu",
        "2 * (map * of_first + c) * pixels",
        "2 * c * pixels",
    ),
    Mutant(
        "no barrier between the sums of warps and their sum",
        "sums.h",
        _SUM_OF_WARPS,
        _SUM_OF_WARPS.replace("  __syncthreads();\n", ""),
    ),
    Mutant("a lane missing from the mask of a shuffle", "sums.h", "0xffffffffu", "0x7fffffffu"),
    Mutant(
        "log-determinants added in any order", "sums.h", _SUM_OF_WARPS, _ANY_ORDER.format("atomicAdd(&sums[0], value)")
    ),
    Mutant(
        "log-determinants added without atomicity",
        "sums.h",
        _SUM_OF_WARPS,
        _ANY_ORDER.format("sums[0] += value"),
        "thread",
    ),
    Mutant(
        "the last partial sums dropped",
        "sums.cu",
        "for (int t = 1; t < kTerms; ++t)",
        "for (int t = 1; t < kTerms - 1; ++t)",
    ),
    Mutant(
        "the last tile dropped",
        "tile.h",
        "static_cast<int>((step.pixels + pixels - 1) / pixels), pixels",
        "static_cast<int>((step.pixels + pixels / 2) / pixels), pixels",
    ),
    Mutant(
        "a tile one unit too long",
        "flow_step.cu",
        "inside = at.first < step.pixels;",
        "inside = at.first <= step.pixels;",
        "address",
    ),
    Mutant(
        "the matrix read past its end",
        "tile.h",
        "row < channels && column < channels;",
        "row <= channels && column < channels;",
        "address",
    ),
    Mutant(
        "vectors at addresses that are not aligned",
        "storage.h",
        "reinterpret_cast<intptr_t>(view.data) % bytes == 0 &&",
        "",
        "address",
    ),
    Mutant(
        "vectors of samples that are not aligned",
        "storage.h",
        "view.sample_stride * size % bytes == 0 && ",
        "",
        "address",
    ),
    Mutant(
        "vectors of channels that are not aligned",
        "storage.h",
        " && view.channel_stride * size % bytes == 0;",
        ";",
        "address",
    ),
    Mutant(
        "a matrix at an address that is not aligned",
        "storage.h",
        "reinterpret_cast<intptr_t>(step.matrix) % 16 == 0 && ",
        "",
        "address",
    ),
    Mutant(
        "a shift at an address that is not aligned",
        "storage.h",
        " && reinterpret_cast<intptr_t>(step.shift) % 16 == 0;",
        ";",
        "address",
    ),
    Mutant(
        "what a scale has beyond the normal numbers forgotten",
        "elementwise.h",
        "return excess == T(0) ? y : with_excess(y, map.inverse ? -excess : excess);",
        "return y;",
    ),
    Mutant(
        "a scale that leaves the normal numbers",
        "elementwise.h",
        "if (kind == Scale::kExp) return {exp_of(clamp(raw, kLogLimit<T>)), T(1)};",
        "if (kind == Scale::kExp) return {exp_of(raw), T(1)};",
    ),
    Mutant(
        "the packing of h swapped",
        "elementwise.h",
        "return map.packing == Packing::kCross && map.scale",
        "return map.packing == Packing::kSplit && map.scale",
    ),
    Mutant(
        "the log-determinant of the inverse without its sign",
        "elementwise.h",
        "return map.inverse ? -log_det : log_det;",
        "return log_det;",
    ),
    Mutant(
        "a shared h read with the wrong stride",
        "elementwise.h",
        "return {at.sample / static_cast<int>(map.repeat), at.first};",
        "return {at.sample % static_cast<int>(map.repeat), at.first};",
    ),
    Mutant(
        "the first gradient of a shared h forgotten",
        "elementwise.h",
        "if (turn > 0) {",
        "if (turn > 1) {",
    ),
    Mutant(
        "the matrix not transposed in the backward pass",
        "flow_step_backward.cu",
        "add_product<true>(",
        "add_product<false>(",
    ),
    Mutant(
        "the gradient of the log-determinant forgotten",
        "elementwise.h",
        "(grad[j] * product + grad_log_det) * s.slope",
        "(grad[j] * product) * s.slope",
    ),
    Mutant(
        "a tile of known maps one unit too long",
        "flow_step_known.h",
        "inside = at.first < step.pixels;",
        "inside = at.first <= step.pixels;",
        "address",
    ),
    Mutant(
        "known maps without a floor of the scale",
        "published.h",
        "map.parameter >= kLeastEps &&",
        "",
    ),
    Mutant(
        "the slope of a known scale",
        "published.h",
        "rest = sigmoid == 0.f ? 1.f : e * sigmoid",
        "rest = sigmoid == 0.f ? 1.f : e",
    ),
    Mutant(
        "what is kept of a known map in the place of another's",
        "flow_step_backward_known.h",
        "kept + (map.kept + 2 * channel) * geometry.pixels()",
        "kept + 2 * channel * geometry.pixels()",
    ),
    Mutant(
        "no barrier before the gradient of the matrix, of known maps",
        "flow_step_backward_known.h",
        "    __syncthreads();\n    Outer::add_to(",
        "    Outer::add_to(",
    ),
    Mutant(
        "no barrier before the next tile, of known maps",
        "flow_step_backward_known.h",
        "    __syncthreads();\n  }\n  let_next_begin();",
        "  }\n  let_next_begin();",
    ),
    Mutant(
        "the sums of all tiles but the last dropped",
        "outer_product.h",
        "own = anew ? sum : own + sum;",
        "own = sum;",
    ),
    Mutant(
        "the first of the sums that stand side by side dropped",
        "sums.cu",
        "int64_t k = threadIdx.x;",
        "int64_t k = threadIdx.x + 1;",
    ),
    Mutant(
        "no barrier before a channels_last tile is read along the channels",
        "channels_last.h",
        "geometry.put(sum[r], state + (first + r) * stride);\n  }\n  __syncthreads();",
        "geometry.put(sum[r], state + (first + r) * stride);\n  }",
    ),
    Mutant(
        "no barrier before the gradients of a channels_last tile are read",
        "channels_last.h",
        "geometry.put(sum[r], inner + (first + r) * stride);\n    }\n    __syncthreads();",
        "geometry.put(sum[r], inner + (first + r) * stride);\n    }",
    ),
    Mutant(
        "a map of a part of a unit",
        "published.h",
        "cross && map.start % run == 0 && map.count % run == 0;",
        "cross;",
    ),
    Mutant(
        "a channels_last tensor at an address that is not aligned",
        "published.h",
        "reinterpret_cast<intptr_t>(view.data) % access == 0 &&",
        "",
        "address",
    ),
    Mutant(
        "a channels_last coupling past the end of a sample",
        "coupling_last.h",
        "inside = unit < units.of_sample;",
        "inside = true;",
        "address",
    ),
    Mutant(
        "the shifts of a channels_last coupling forgotten in its gradients",
        "coupling_last.h",
        "operand[i] += inverse ? 0.f : shift[i];",
        "operand[i] += 0.f;",
    ),
    Mutant(
        "the first group of sums in the place of all",
        "outer_product.h",
        "keep(number_of(n, m, o, i), group[o][i]);",
        "keep(number_of(0, m, o, i), group[o][i]);",
    ),
]
