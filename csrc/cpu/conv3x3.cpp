// 3x3 convolutions, compiled once per instruction set like kernels.cpp.
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
#include "winograd.inc"
#include "images.inc"
#include "conv3x3.inc"
#include "enlarged.inc"
#include "conv3x3_weights.inc"

}  // namespace INVFLOW_ISA
}  // namespace invflow
