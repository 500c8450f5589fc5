// Compiled once per instruction set: INVFLOW_ISA names it, INVFLOW_VECTOR_BYTES is its vector width.
#include "invflow/cpu_kernels.h"

#include <cstring>
#include <type_traits>

#include "buffer.h"
#include "parallel.h"
#include "simd.h"

namespace invflow {
namespace INVFLOW_ISA {

#include "affine_coupling.inc"
#include "channel_affine.inc"

#define INVFLOW_TEXT_OF(name) #name
#define INVFLOW_TEXT(name) INVFLOW_TEXT_OF(name)

extern const Kernels table;  // a namespace-scope const is internal unless declared so
const Kernels table = {INVFLOW_TEXT(INVFLOW_ISA), channel_affine, affine_coupling, affine_coupling_backward};

}  // namespace INVFLOW_ISA
}  // namespace invflow
