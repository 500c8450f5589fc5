// A 3x3 convolution of float32 images with stride 1, zero-padded by one pixel, and its gradients. The images may be
// enlarged by pixel repetition first.
#pragma once

#include <cstdint>

namespace invflow {

// (batch, channels, height, width) with strides counted in elements.
struct Images {
  float* data;
  int64_t batch_stride, channel_stride, row_stride, pixel_stride;
};

// Weights (outputs, inputs, 3, 3), of which the nine numbers of a pair lie side by side.
struct Weights {
  float* data;
  int64_t output_stride, input_stride;
  bool transposed;  // those of the gradient of the input
};

// What happens to a result before it is written: y = activation(addend + share y), where the activation multiplies
// negative numbers by `slope`.
struct Finish {
  Images addend;         // null: none
  int64_t addend_share;  // successive images of the result that share one of the addend
  float share, slope;
};

// A 1x1 convolution of the finished result: activation(weight y + bias), the weight being (outputs, inputs).
struct Pointwise {
  int64_t outputs;  // 0: none
  const float *weight, *bias;
  float slope;
};

// y = conv(x, weight) + bias. For the gradient of the input, weights are transposed, with their strides exchanged, and
// x and y are the gradients of result and input.
struct Conv3x3 {
  int64_t batch, inputs, outputs;
  int64_t height, width;  // of what is enlarged
  int64_t repeat;         // repetitions of a pixel in both directions: 1, 2 or 4
  Images x, y;
  Weights weight;
  const float* bias;  // null: none
  Finish finish;
  Pointwise pointwise;  // of a convolution without repetitions
};

}  // namespace invflow
