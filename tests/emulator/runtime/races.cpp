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
  return earlier.block_time < now.block_time || (same_warp(earlier, now) && earlier.warp_time < now.warp_time);
}

bool RaceDetector::conflict(const Event& earlier, const Event& now) {
  return earlier.block && !(earlier.strong && now.strong) && !ordered(earlier, now);
}

void RaceDetector::report(const Event& earlier, bool earlier_writes, const Event& now, bool writes, Space space) {
  fail({nullptr, now.line},
       "race in %s memory: a %s without order against the %s at line %d by thread %u of block number %u",
       space == Space::shared ? "shared" : "global", writes ? "write" : "read", earlier_writes ? "write" : "read",
       earlier.line, earlier.thread, earlier.block - 1);
}

void RaceDetector::remember_read(Byte& byte, const Event& now) {
  auto& [last, other_thread, other_warp] = byte.reads;
  if (last.block && !same_thread(last, now)) other_thread = last;
  if (last.block && !same_warp(last, now)) other_warp = last;
  last = now;
}

void RaceDetector::access(Space space, uint64_t address, unsigned bytes, const Access& access) {
  const Thread& thread = *current_thread;
  const Event now = {
      block_, static_cast<uint16_t>(thread.linear), access.strong, thread.block_time, thread.warp_time, access.line};
  const bool writes = access.kind != Kind::load;
  pending_.is = false;
  for (unsigned i = 0; i < bytes; ++i) {
    Byte& memory = byte(space, address + i);
    if (conflict(memory.write, now)) {
      if (access.kind != Kind::store) report(memory.write, true, now, writes, space);
      pending_ = {true, memory.write, now, space};
    }
    if (!writes) {
      remember_read(memory, now);
      continue;
    }
    for (const Event& read : memory.reads) {
      if (conflict(read, now)) report(read, false, now, true, space);
    }
    memory.write = now;
    memory.reads = {};
  }
}

void RaceDetector::store(const char* pointer, const void* value, unsigned bytes) {
  if (pending_.is && memcmp(pointer, value, bytes)) report(pending_.earlier, true, pending_.now, true, pending_.space);
}

void RaceDetector::copy(const AsyncCopy& copy) {
  const Access read = {copy.site.line, 0, Kind::load, false}, write = {copy.site.line, 0, Kind::store, false};
  const auto* to = static_cast<const char*>(copy.to);
  if (copy.from_bytes) access(Space::global, reinterpret_cast<uint64_t>(copy.from), copy.from_bytes, read);
  access(Space::shared, static_cast<uint64_t>(to - block_shared_memory), copy.bytes, write);
  store(to, copy.from, copy.from_bytes);
  const std::vector<char> zeros(copy.bytes - copy.from_bytes);
  store(to + copy.from_bytes, zeros.data(), static_cast<unsigned>(zeros.size()));
}

}  // namespace cuda_on_cpu
