// The native CPU kernels.
#pragma once

#include "invflow/conv3x3.h"
#include "invflow/flow_step.h"
#include "invflow/vector_block.h"

namespace invflow {

// One instruction set's versions of every kernel.
struct Kernels {
  const char* isa;
  void (*flow_step)(const FlowStep& step);
  void (*flow_step_backward)(const FlowStep& step, const FlowStepGradients& gradients);
  // Of one pixel, in the state's dtype float32 or float64. y and grad_x are contiguous, grad_y has rows of any strides.
  void (*vector_step)(const FlowStep& step);
  void (*vector_step_backward)(const FlowStep& step, const FlowStepGradients& gradients);
  void (*conv3x3)(const Conv3x3& conv);
  void (*conv3x3_weight_gradient)(const Conv3x3& conv);
  void (*vector_block)(const VectorBlock& block);
  void (*vector_block_inverse)(const VectorBlock& block);
  void (*vector_block_backward)(const VectorBlock& block, const VectorBlockGradients& gradients);
  int64_t (*vector_block_elements)(const VectorBlock& block);  // of VectorBlock::kept
};

// Throws std::bad_alloc. It is compiled once, for every processor: what throws is not to be merged across instruction
// sets.
[[noreturn]] void throw_out_of_memory();

}  // namespace invflow
