#include "ptx_launch.h"

#include <algorithm>

#include "ptx_arithmetic.h"
#include "races.h"
#include "trace.h"

namespace cuda_on_cpu {

LaunchMemory launch_memory;
bool worst_approximations = false;

std::string LaunchMemory::nearest(uint64_t address) const {
  const Range* best = nullptr;
  uint64_t best_distance = ~0ull;
  for (const Range& range : ranges) {
    const uint64_t distance =
        address < range.begin ? range.begin - address : address - std::min(address, range.end - 1);
    if (distance < best_distance) {
      best = &range;
      best_distance = distance;
    }
  }
  if (!best) return "and the launch has no buffers";
  return "at offset " + std::to_string(static_cast<int64_t>(address - best->begin)) +
         " of the nearest buffer, which has " + std::to_string(best->end - best->begin) + " bytes";
}

namespace {

void describe_memory(const LaunchRequest& request) {
  launch_memory = {};
  for (uint32_t i = 0; i < request.buffer_count; ++i) {
    const GlobalBuffer& buffer = request.buffers[i];
    launch_memory.ranges.push_back({buffer.address, buffer.address + buffer.bytes, buffer.writable != 0});
  }
  uint32_t end = 0;
  for (uint32_t i = 0; i < request.variable_count; ++i) {
    end = std::max(end, request.variables[i].offset + request.variables[i].bytes);
  }
  launch_memory.shared_valid.assign(end, 0);
  for (uint32_t i = 0; i < request.variable_count; ++i) {
    const SharedVariable& variable = request.variables[i];
    std::fill_n(launch_memory.shared_valid.begin() + variable.offset, variable.bytes, 1);
    if (i) launch_memory.shared_layout += ", ";
    launch_memory.shared_layout +=
        std::to_string(variable.offset) + " to " + std::to_string(variable.offset + variable.bytes);
  }
  if (!request.variable_count) launch_memory.shared_layout = "it has none";
  likely_range = {0, 0, false};
}

}  // namespace

extern "C" int cuda_on_cpu_launch(const LaunchRequest* request) {
  describe_memory(*request);
  worst_approximations = request->worst_approximations != 0;
  race_detector.start(request->check_races != 0);
  trace.start(request->trace != 0);
  accesses_observed = race_detector.active || trace.active;
  copy_lands = nullptr;
  if (race_detector.active) copy_lands = [](const AsyncCopy& copy) { race_detector.copy(copy); };

  Launch launch;
  launch.grid = {request->grid[0], request->grid[1], request->grid[2]};
  launch.block = {request->block[0], request->block[1], request->block[2]};
  launch.kernel = [request] { request->kernel(request->parameters); };
  launch.shared_bytes = static_cast<unsigned>(launch_memory.shared_valid.size());
  launch.schedule = {static_cast<Order>(request->order), request->seed};
  launch.block_starts = [] {
    if (race_detector.active) race_detector.block_starts();
  };
  launch.block_ends = [] {
    if (trace.active) trace.block_ends();
  };
  return run(launch) ? 0 : 1;
}

extern "C" const char* cuda_on_cpu_error() { return last_error(); }

extern "C" uint32_t cuda_on_cpu_trace(const SiteTrace** rows) {
  const std::vector<SiteTrace>& table = trace.rows();
  *rows = table.data();
  return static_cast<uint32_t>(table.size());
}

}  // namespace cuda_on_cpu
