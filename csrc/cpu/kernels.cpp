// Compiled once per instruction set: INVFLOW_ISA names it, INVFLOW_VECTOR_BYTES is its vector width.
#include "invflow/cpu_kernels.h"

#include <cstring>
#include <type_traits>

#include "buffer.h"
#include "parallel.h"
#include "simd.h"

namespace invflow {
namespace INVFLOW_ISA {

#include "storage.inc"
#include "elementwise.inc"
#include "product.inc"
#include "flow_step.inc"
#include "flow_step_backward.inc"
#include "panels.inc"
#include "vector_step.inc"

// conv3x3.cpp
void conv3x3(const Conv3x3& conv);
void conv3x3_weight_gradient(const Conv3x3& conv);
// vector_block.cpp
void vector_block(const VectorBlock& block);
void vector_block_inverse(const VectorBlock& block);
void vector_block_backward(const VectorBlock& block, const VectorBlockGradients& gradients);
int64_t vector_block_elements(const VectorBlock& block);

#define INVFLOW_TEXT_OF(name) #name
#define INVFLOW_TEXT(name) INVFLOW_TEXT_OF(name)

extern const Kernels table;  // a namespace-scope const is internal unless declared so
const Kernels table = {
    INVFLOW_TEXT(INVFLOW_ISA), flow_step,    flow_step_backward,   vector_step,           vector_step_backward, conv3x3,
    conv3x3_weight_gradient,   vector_block, vector_block_inverse, vector_block_backward, vector_block_elements};

}  // namespace INVFLOW_ISA
}  // namespace invflow
