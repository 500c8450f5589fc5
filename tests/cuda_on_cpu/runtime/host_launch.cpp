#include <dlfcn.h>
#include <link.h>

#include <cstdlib>

#include "cuda_on_cpu.h"

namespace cuda_on_cpu {

extern "C" Redirect cuda_on_cpu_redirect = nullptr;

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

#if defined(__SANITIZE_ADDRESS__)
void poison_static_shared_memory() {}
#else

namespace {

// Exists so that the thread-local memory of this library is allocated, and is found.
thread_local char anchor;

struct Segment {
  char* begin = nullptr;
  size_t bytes = 0;
};

int find_segment(dl_phdr_info* info, size_t, void* result) {
  auto* segment = static_cast<Segment*>(result);
  auto* begin = static_cast<char*>(info->dlpi_tls_data);
  for (int i = 0; begin && i < info->dlpi_phnum; ++i) {
    if (info->dlpi_phdr[i].p_type != PT_TLS) continue;
    const size_t bytes = info->dlpi_phdr[i].p_memsz;
    if (&anchor < begin || &anchor >= begin + bytes) continue;
    *segment = {begin, bytes};
    return 1;
  }
  return 0;
}

}  // namespace

// The thread-local memory of this library is nothing but the __shared__ variables of its kernels.
CUDA_ON_CPU_UNSANITIZED void poison_static_shared_memory() {
  anchor = 0;
  Segment segment;
  dl_iterate_phdr(find_segment, &segment);
  if (!segment.begin) abort();
  memset(segment.begin, 0xff, segment.bytes);
}
#endif

}  // namespace cuda_on_cpu
