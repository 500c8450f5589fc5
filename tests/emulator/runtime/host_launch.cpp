#include <dlfcn.h>

#include <cstdlib>

#include "cuda_on_cpu.h"

namespace cuda_on_cpu {

extern "C" Redirect cuda_on_cpu_redirect = nullptr;
extern "C" Device cuda_on_cpu_device = {};

const char* redirected(void* kernel, const Launch& launch, const char* parameters, uint64_t parameter_bytes) {
  Dl_info symbol;
  if (!dladdr(kernel, &symbol) || !symbol.dli_sname) return "the kernel has no symbol: its namespace must have a name";
  return cuda_on_cpu_redirect(symbol.dli_sname, launch.grid, launch.block, launch.shared_bytes, parameters,
                              parameter_bytes);
}

Schedule schedule_of_environment() {
  const char* text = getenv("CUDA_ON_CPU_ORDER");
  if (!text || !strcmp(text, "ascending")) return {Order::ascending, 0};
  if (!strcmp(text, "descending")) return {Order::descending, 0};
  if (!strncmp(text, "random:", 7)) return {Order::random, strtoull(text + 7, nullptr, 10)};
  fprintf(stderr, "CUDA_ON_CPU_ORDER: %s is not ascending, descending or random:<seed>\n", text);
  abort();
}

extern __thread char shared_begin, shared_end;

// Under AddressSanitizer, __shared__ variables are not thread-local: nothing lies between the two.
CUDA_ON_CPU_UNSANITIZED void poison_static_shared_memory() {
  if (&shared_end < &shared_begin) abort();
  memset(&shared_begin, 0xff, &shared_end - &shared_begin);
}

}  // namespace cuda_on_cpu
