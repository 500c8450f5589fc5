// The C interface through which Python launches translated PTX, and the memory that a launch may touch.
#pragma once
#include <string>
#include <vector>

#include "ptx_memory.h"

namespace cuda_on_cpu {

struct LaunchMemory {
  std::vector<Range> ranges;
  std::vector<char> shared_valid;  // a flag for each byte of the shared window
  std::string shared_layout;       // in words, for messages
  // the place of an address in words, for messages
  std::string nearest(uint64_t address) const;
};
extern LaunchMemory launch_memory;

extern "C" {

// A variable in shared memory.
struct SharedVariable {
  uint32_t offset, bytes;
};

struct GlobalBuffer {
  uint64_t address, bytes;
  uint32_t writable;
};

struct LaunchRequest {
  void (*kernel)(const char* parameters);
  const char* parameters;
  uint32_t grid[3], block[3];
  const SharedVariable* variables;
  const GlobalBuffer* buffers;
  uint32_t variable_count, buffer_count;
  uint32_t order;  // of enum Order
  uint32_t worst_approximations, check_races, trace;
  uint64_t seed;
};

// Returns 0, or 1 after an error, with its message in cuda_on_cpu_error().
int cuda_on_cpu_launch(const LaunchRequest* request);
const char* cuda_on_cpu_error();

// One row for each load or store instruction that ran in the last traced launch.
struct SiteTrace {
  int32_t site, line;
  uint32_t space, kind, bytes;             // bytes: of one lane
  uint64_t requests, lanes;                // warp-wide accesses, and lanes that took part
  uint64_t sectors, fewest_sectors;        // of 32 bytes in global memory; the fewest that hold the bytes asked for
  uint64_t wavefronts, fewest_wavefronts;  // passes through shared memory; without bank conflicts
};
uint32_t cuda_on_cpu_trace(const SiteTrace** rows);
}

}  // namespace cuda_on_cpu
