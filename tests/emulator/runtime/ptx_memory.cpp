#include "ptx_memory.h"

#include "ptx_launch.h"
#include "races.h"
#include "trace.h"

namespace cuda_on_cpu {

Range likely_range = {0, 0, false};
bool accesses_observed = false;

namespace {

const char* name_of(Kind kind) {
  return kind == Kind::load ? "load" : kind == Kind::store ? "store" : "atomic operation";
}

[[noreturn]] void misaligned(const char* space, uint64_t address, unsigned bytes, const Access& access) {
  fail({nullptr, access.line}, "misaligned %s of %u bytes at %s address 0x%llx", name_of(access.kind), bytes, space,
       static_cast<unsigned long long>(address));
}

void observe(Space space, uint64_t address, unsigned bytes, const Access& access) {
  if (race_detector.active) race_detector.access(space, address, bytes, access);
  if (trace.active) trace.access(space, address, bytes, access);
}

}  // namespace

char* check_global(uint64_t address, unsigned bytes, const Access& access) {
  if (address % bytes) misaligned("global", address, bytes, access);
  const bool writes = access.kind != Kind::load;
  const Range* found = nullptr;
  for (const Range& range : launch_memory.ranges) {
    if (address >= range.begin && address + bytes <= range.end) found = &range;
    if (found && (found->writable || !writes)) break;
  }
  const auto shown = static_cast<unsigned long long>(address);
  if (!found) {
    fail({nullptr, access.line}, "%s of %u bytes at global address 0x%llx, %s", name_of(access.kind), bytes, shown,
         launch_memory.nearest(address).c_str());
  }
  if (writes && !found->writable) {
    fail({nullptr, access.line}, "%s at constant address 0x%llx", name_of(access.kind), shown);
  }
  likely_range = *found;
  if (accesses_observed) observe(Space::global, address, bytes, access);
  return reinterpret_cast<char*>(address);
}

char* check_shared(uint32_t offset, unsigned bytes, const Access& access) {
  if (offset % bytes) misaligned("shared", offset, bytes, access);
  const auto& valid = launch_memory.shared_valid;
  // The gaps between variables are wider than any access, so that its two ends suffice.
  if (uint64_t(offset) + bytes > valid.size() || !valid[offset] || !valid[offset + bytes - 1]) {
    fail({nullptr, access.line}, "%s of %u bytes at shared address %u, outside the shared memory of the block (%s)",
         name_of(access.kind), bytes, offset, launch_memory.shared_layout.c_str());
  }
  if (accesses_observed) observe(Space::shared, offset, bytes, access);
  return block_shared_memory + offset;
}

char* check_local(uint64_t address, unsigned bytes, const Access& access) {
  if (address % bytes) misaligned("local", address, bytes, access);
  const uint64_t stack = reinterpret_cast<uint64_t>(current_thread->stack);
  if (address < stack || address + bytes > stack + STACK_BYTES) {
    fail({nullptr, access.line}, "%s of %u bytes at local address 0x%llx, outside the thread's stack",
         name_of(access.kind), bytes, static_cast<unsigned long long>(address));
  }
  if (accesses_observed && trace.active) trace.access(Space::local, address, bytes, access);
  return reinterpret_cast<char*>(address);
}

void store_observed(const char* pointer, const void* value, unsigned bytes) {
  if (race_detector.active) race_detector.store(pointer, value, bytes);
}

void copy_async(uint32_t to, uint64_t from, unsigned bytes, unsigned from_bytes, const Access& read,
                const Access& write) {
  const Site site = {nullptr, read.line};
  if (from_bytes > bytes) fail(site, "cp.async of %u bytes from %u", bytes, from_bytes);
  if (from % bytes) misaligned("global", from, bytes, read);
  // The copy is an access of its own when it lands; here only the addresses are checked.
  const bool observed = accesses_observed;
  accesses_observed = false;
  char* target = check_shared(to, bytes, write);
  for (unsigned i = 0; i < from_bytes; ++i) check_global(from + i, 1, read);
  accesses_observed = observed;
  if (trace.active) {
    trace.access(Space::shared, to, bytes, write);
    if (from_bytes) trace.access(Space::global, from, bytes, read);
  }
  start_copy(target, reinterpret_cast<const char*>(from), bytes, from_bytes, site);
}

}  // namespace cuda_on_cpu
