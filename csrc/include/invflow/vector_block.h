// A block of vectors: an affine coupling whose network is a perceptron, a global affine map and an orthogonal matrix.
//
//   h = 0.1 network(x_1, c),  (r, t) = h,  z = (x_1, x_2 e^(a tanh r) + t),  y = M (s z + o)
//
// where x_1 has the first D - D / 2 elements of x. All of a block are float32, or all float64.
#pragma once

#include "invflow/flow_step.h"

namespace invflow {

// (rows, columns) in memory; strides count elements.
struct Matrix {
  const void* data;
  int64_t row_stride, column_stride;
};

// A layer of the perceptron: weight (outputs, inputs) and bias (outputs), each contiguous. Gradients are null where
// they are not wanted.
struct Linear {
  const void *weight, *bias;
  int64_t inputs, outputs;
  void *grad_weight, *grad_bias;
};

constexpr int kMaxLinear = 16;

struct VectorBlock {
  Dtype dtype;
  int64_t batch, width, condition_width;  // 0: no condition
  Matrix x, condition;                    // x is y where the inverse is computed
  const void *scale, *offset;             // s and o [width]
  const void* matrix;                     // M [width][width]; its inverse for the inverse
  double bound;                           // a
  double log_det;                         // of the global map, of every row
  Linear layers[kMaxLinear];              // a ReLU is between two of them
  int layer_count;
  void* y;         // [batch][width]
  void* log_dets;  // [batch]
  void* kept;      // what the backward pass needs: as many elements as kept_elements says; null: nothing is kept
};

// Reads `kept`. What is null is not wanted.
struct VectorBlockGradients {
  Matrix grad_y, grad_log_det;
  void *grad_x, *grad_condition;  // [batch][width], [batch][condition_width]
  void* grad_offset;              // [width]
  void* grad_scale;               // [width], without the part of the global map's log-determinant
};

}  // namespace invflow
