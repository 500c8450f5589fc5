#include "races.h"

namespace cuda_on_cpu {

RaceDetector race_detector;

void RaceDetector::start(bool activate) {
  active = activate;
  block_ = 0;
  global_.clear();
}

void RaceDetector::block_starts() {
  ++block_;
  shared_.assign(launch_state.shared_bytes, Byte());
}

RaceDetector::Byte& RaceDetector::byte(Space space, uint64_t address) {
  if (space == Space::shared) return shared_[address];
  return global_[address / PAGE][address % PAGE];
}

bool RaceDetector::same_warp(const Event& a, const Event& b) {
  return a.block == b.block && a.thread / WARP_SIZE == b.thread / WARP_SIZE;
}

bool RaceDetector::ordered(const Event& earlier, const Event& now) {
  if (same_thread(earlier, now)) return true;
  if (earlier.block != now.block) return false;
  return earlier.barriers < now.barriers || (same_warp(earlier, now) && earlier.warp_syncs < now.warp_syncs);
}

void RaceDetector::check(const Event& earlier, bool earlier_writes, const Event& now, bool writes, const char* where) {
  if (!earlier.block || (earlier.strong && now.strong) || ordered(earlier, now)) return;
  fail({nullptr, now.line}, "race in %s memory: a %s without order against the %s at line %d by thread %u of block number %u",
       where, writes ? "write" : "read", earlier_writes ? "write" : "read", earlier.line, earlier.thread, earlier.block - 1);
}

void RaceDetector::remember_read(Byte& byte, const Event& now) {
  auto& [last, other_thread, other_warp] = byte.reads;
  if (last.block && !same_thread(last, now)) other_thread = last;
  if (last.block && !same_warp(last, now)) other_warp = last;
  last = now;
}

void RaceDetector::access(Space space, uint64_t address, unsigned bytes, const Access& access) {
  const Thread& thread = *current_thread;
  const Event now = {block_,
                     static_cast<uint16_t>(thread.linear),
                     access.strong,
                     thread.barriers_passed,
                     thread.warp_syncs_passed,
                     access.line};
  const bool writes = access.kind != Kind::load;
  const char* where = space == Space::shared ? "shared" : "global";
  for (unsigned i = 0; i < bytes; ++i) {
    Byte& memory = byte(space, address + i);
    check(memory.write, true, now, writes, where);
    if (!writes) {
      remember_read(memory, now);
      continue;
    }
    for (const Event& read : memory.reads) check(read, false, now, true, where);
    memory.write = now;
    memory.reads = {};
  }
}

void RaceDetector::copy(const AsyncCopy& copy) {
  const Access read = {copy.site.line, 0, Kind::load, false}, write = {copy.site.line, 0, Kind::store, false};
  access(Space::shared, static_cast<uint64_t>(static_cast<char*>(copy.to) - shared_memory), copy.bytes, write);
  if (copy.from_bytes) access(Space::global, reinterpret_cast<uint64_t>(copy.from), copy.from_bytes, read);
}

}  // namespace cuda_on_cpu
