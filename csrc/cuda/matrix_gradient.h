// The gradients of matrix and shift where a block of flow_step_backward cannot sum them up: it writes what the matrix
// is multiplied by and the gradient of the product to memory, and a second kernel multiplies them.
#pragma once

#include "sums.h"
#include "workspace.h"

namespace invflow::cuda {

// Two tensors (batch, channels, pixels) of dtype T as Workspace::tensor makes them, and the partial sums of `splits`
// parts of the pixels: [splits][channels][channels] and [splits][channels].
template <class T>
struct MatrixGradient {
  View inner, grad;
  T *matrix, *shift;
  int64_t splits;
};

template <class T>
MatrixGradient<T> take_matrix_gradient(Workspace& workspace, const FlowStep& step);

template <class T>
void launch_matrix_gradient(const Site& site, const MatrixGradient<T>& gradient);

}  // namespace invflow::cuda
