// Blocks of vectors, compiled once per instruction set like kernels.cpp.
#include "invflow/cpu_kernels.h"

#include <cstring>
#include <type_traits>

#include "buffer.h"
#include "parallel.h"
#include "simd.h"

namespace invflow {
namespace INVFLOW_ISA {

#include "storage.inc"
#include "product.inc"
#include "panels.inc"
#include "vector_block.inc"

}  // namespace INVFLOW_ISA
}  // namespace invflow
