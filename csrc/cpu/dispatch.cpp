// Chooses the kernels of the widest instruction set that this processor runs.
#include "invflow/cpu_kernels.h"

namespace invflow {

namespace baseline {
extern const Kernels table;
}
#ifdef INVFLOW_X86
namespace avx2 {
extern const Kernels table;
}
namespace avx512 {
extern const Kernels table;
}
#endif

const Kernels& kernels() {
#ifdef INVFLOW_X86
  static const Kernels& best = [&]() -> const Kernels& {
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq")) return avx512::table;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return avx2::table;
    return baseline::table;
  }();
  return best;
#else
  return baseline::table;
#endif
}

}  // namespace invflow
