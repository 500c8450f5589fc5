// Chooses the kernels of the widest instruction set that this processor runs. The environment variable INVFLOW_CPU_ISA
// names a narrower one, so that every version can be tested on one machine.
#include "invflow/dispatch.h"

#include <cstdlib>
#include <new>
#include <stdexcept>
#include <string>

namespace invflow {

#ifdef INVFLOW_NEON
namespace neon {
extern const Kernels table;
}
#else
namespace baseline {
extern const Kernels table;
}
#endif
#ifdef INVFLOW_X86
namespace avx2 {
extern const Kernels table;
}
namespace avx512 {
extern const Kernels table;
}
#endif

std::vector<const Kernels*> supported_kernels() {
  std::vector<const Kernels*> found;
#ifdef INVFLOW_X86
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq")) found.push_back(&avx512::table);
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found.push_back(&avx2::table);
#endif
#ifdef INVFLOW_NEON
  found.push_back(&neon::table);
#else
  found.push_back(&baseline::table);
#endif
  return found;
}

static const Kernels& choose() {
  const std::vector<const Kernels*> found = supported_kernels();
  const char* wanted = std::getenv("INVFLOW_CPU_ISA");
  if (wanted == nullptr || *wanted == '\0') return *found.front();
  std::string names;
  for (const Kernels* kernels : found) {
    if (std::string(wanted) == kernels->isa) return *kernels;
    names += (names.empty() ? "" : ", ") + std::string(kernels->isa);
  }
  throw std::runtime_error("environment variable INVFLOW_CPU_ISA must be one of " + names + " on this processor, got " +
                           wanted);
}

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

void throw_out_of_memory() { throw std::bad_alloc(); }

}  // namespace invflow
