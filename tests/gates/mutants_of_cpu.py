"""Errors in the CPU kernels that their tests must notice."""

from __future__ import annotations

from .mutant import Mutant

MUTANTS = [
    Mutant("points with the usual error", "winograd.inc", "a = 0.625f,", "a = 1.375f,"),
    Mutant("long sums over inputs", "conv3x3.inc", "kSumInputs = 16;", "kSumInputs = 1024;"),
    Mutant(
        "weights of the input's gradient not turned",
        "conv3x3.inc",
        "weight.transposed ? taps - 1 - tap : tap",
        "tap",
    ),
    Mutant(
        "the repetitions of a neighbour forgotten", "enlarged.inc", "at[0] = y[repeat + 1] - y[1];", "at[0] = -y[1];"
    ),
    Mutant("one logarithm for products that underflow", "elementwise.inc", "kLeastEps = 1.0e-4", "kLeastEps = 1.0e-12"),
    Mutant("a small eps forgotten", "elementwise.inc", "if (map.parameter > 0)", "if (map.parameter > 1.0e-8)"),
    Mutant("the inverse's log-determinant without its sign", "elementwise.inc", "inverse ? -log_s : log_s;", "log_s;"),
    Mutant(
        "scales of pixels past the last counted in the log-determinant",
        "elementwise.inc",
        "    f.factor.v[0] = valid ? f.factor.v[0] : broadcast<T>(T(1));\n",
        "",
    ),
    Mutant(
        "a whole vector written where a part of one is left",
        "elementwise.inc",
        "store_first<T>(to[i] + p, load<T>(buffers[results[i]]), rest);",
        "store<T>(to[i] + p, load<T>(buffers[results[i]]));",
    ),
    Mutant(
        "a product written past the last pixel of a row",
        "flow_step.inc",
        "const bool whole = n % kLanes<T> == 0;",
        "const bool whole = true;",
    ),
    Mutant(
        "the end of a row missing from the gradient of the shift",
        "flow_step_backward.inc",
        "  if (p < n) sum += load_first<T>(row + p, static_cast<int>(n - p));\n",
        "",
    ),
    Mutant("the end of a row not copied", "storage.inc", "for (; p < n; ++p) to[p] = from[p];", ""),
    Mutant(
        "streams to channels that are not aligned",
        "storage.inc",
        " &&\n         aligned(view.channel_stride * size);",
        ";",
    ),
    Mutant(
        "the last item of the last thread dropped",
        "parallel.h",
        "end = items * (thread + 1) / threads;",
        "end = (items * (thread + 1) - 1) / threads;",
    ),
    Mutant(
        "the matrix's gradient of the second thread dropped",
        "flow_step_backward.inc",
        "for (int64_t thread = 1; thread < threads; ++thread)",
        "for (int64_t thread = 2; thread < threads; ++thread)",
    ),
    Mutant("scratch memory that does not grow", "buffer.h", "if (bytes > size) {", "if (size == 0) {"),
    Mutant(
        "the last tile of a sample as long as the others",
        "flow_step.inc",
        "rest < tiling.pixels ? rest : tiling.pixels};",
        "tiling.pixels};",
    ),
    Mutant("no tiles of nothing", "flow_step.inc", "  if (step.channels == 0) return {unit, 0};\n", ""),
    Mutant(
        "the matrix's gradient of the last tiles dropped",
        "flow_step_backward.inc",
        "    work.sums.flush();\n    work.sums.add_to(",
        "    work.sums.add_to(",
    ),
    Mutant(
        "samples of one h in different threads",
        "flow_step_backward.inc",
        "group = least_common_multiple(group, step.before[i].repeat);",
        "group = 1;",
    ),
    Mutant(
        "rows that share an h read that of another",
        "rows.inc",
        "fetch<T>(map.h, sample / map.repeat,",
        "fetch<T>(map.h, sample % map.repeat,",
    ),
    Mutant(
        "rows that are not in place read where they would be",
        "rows.inc",
        "step.pixels <= kLongestRow && is_direct<T>(step.x);",
        "step.pixels <= kLongestRow;",
    ),
    Mutant(
        "the first gradient of rows that share an h forgotten", "rows.inc", "turn > 0, false);", "turn > 1, false);"
    ),
    Mutant(
        "the gradient of rows of another sample",
        "rows.inc",
        "row_of<T>(gradients.grad_y, sample)",
        "row_of<T>(gradients.grad_y, owner)",
    ),
    Mutant(
        "the gradient of an h that is not in place is lost",
        "rows.inc",
        "      if (!direct) store_rows<T>(grad_h, map.grad_h, owner, 0, channels, n);\n",
        "",
    ),
    Mutant(
        "the share of the addend instead of the convolution",
        "conv3x3.inc",
        "load<float>(from) + share * load<float>(pixels)",
        "share * load<float>(from) + load<float>(pixels)",
    ),
    Mutant(
        "a rectified infinite number is NaN", "conv3x3.inc", "slope[0] == 0.0f ? Floats{} : x * slope;", "x * slope;"
    ),
    Mutant(
        "an addend that images share taken for another's",
        "conv3x3.inc",
        "image / conv.finish.addend_share",
        "image % conv.finish.addend_share",
    ),
    Mutant(
        "an addend whose channels lie apart read as if they did not",
        "conv3x3.inc",
        "if (present < kWidth || addend.channel_stride != 1) {",
        "if (present < kWidth) {",
    ),
    Mutant(
        "no activation without an addend",
        "conv3x3.inc",
        "} else if (conv.finish.slope != 1.0f) {",
        "} else if (false) {",
    ),
    Mutant(
        "the addend of the first column for all blocks",
        "conv3x3.inc",
        "finish_row(conv, block.image, o, top + r, first_column, width,",
        "finish_row(conv, block.image, o, top + r, 0, width,",
    ),
    Mutant(
        "the addend of the first column for all enlarged blocks",
        "enlarged.inc",
        "finish_row(conv, block.image, first, top + r, left, pitch,",
        "finish_row(conv, block.image, first, top + r, 0, pitch,",
    ),
    Mutant(
        "the addend of the first row for all enlarged blocks",
        "enlarged.inc",
        "finish_row(conv, block.image, first, top + r, left, pitch,",
        "finish_row(conv, block.image, first, r, left, pitch,",
    ),
    Mutant(
        "the activation of the 3x3 convolution for the 1x1 convolution",
        "conv3x3.inc",
        "broadcast<float>(pointwise.slope);",
        "broadcast<float>(conv.finish.slope);",
    ),
    Mutant(
        "the bias of the first panel for all outputs of the 1x1 convolution",
        "conv3x3.inc",
        "load_first<float>(pointwise.bias + o, present)",
        "load_first<float>(pointwise.bias, present)",
    ),
    Mutant("a NaN becomes infinite in float16", "storage.inc", "magnitude > 0x7f800000 ? 0x7e00", "false ? 0x7e00"),
    Mutant("float16 rounds ties up", "storage.inc", "0xfff + ((magnitude >> 13) & 1)", "0x1000"),
    Mutant("bfloat16 rounds ties up", "storage.inc", "0x7fff + ((bits >> 16) & 1)", "0x8000"),
]
