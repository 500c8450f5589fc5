// A 3x3 convolution of float32 images with stride 1, zero-padded by one pixel, and its gradients.
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
  bool flipped;  // those of the gradient of the input: both directions reversed
};

// y = conv(x, weight) + bias. The gradient of the input is the same with weights flipped and their strides exchanged.
struct Conv3x3 {
  int64_t batch, inputs, outputs, height, width;
  Images x, y;
  Weights weight;
  const float* bias;  // null: none
};

}  // namespace invflow
