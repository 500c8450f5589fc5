// A happens-before race detector for translated PTX.
//
// Two accesses of the same byte by different threads, one of them a write and not both strong (atomic, volatile,
// relaxed), are a race unless a block barrier lies between them, or, within a warp, a bar.warp.sync. Shuffles and votes
// order nothing. Threads of different blocks are never ordered: fences and flags between blocks are beyond it and are
// reported as races. Two writes of the same value are let pass: Triton stores what several threads hold from all of
// them.
#pragma once
#include <array>
#include <unordered_map>
#include <vector>

#include "ptx_memory.h"

namespace cuda_on_cpu {

class RaceDetector {
 public:
  bool active = false;

  void start(bool activate);
  void block_starts();
  void access(Space space, uint64_t address, unsigned bytes, const Access& access);
  void store(const char* pointer, const void* value, unsigned bytes);  // follows the access of a store
  void copy(const AsyncCopy& copy);                                    // a cp.async that lands

 private:
  struct Event {
    uint32_t block = 0;  // 0: no event; else the number of the block, from 1
    uint16_t thread = 0;
    bool strong = false;
    uint32_t block_time = 0, warp_time = 0;  // of the thread
    int line = 0;
  };
  // Of the reads since the last write, three are enough: the last one, the last by another thread, the last by another
  // warp.
  struct Byte {
    Event write;
    std::array<Event, 3> reads;
  };
  static constexpr unsigned PAGE = 256;
  using Page = std::array<Byte, PAGE>;

  Byte& byte(Space space, uint64_t address);
  static bool ordered(const Event& earlier, const Event& now);
  static bool same_thread(const Event& a, const Event& b) { return a.block == b.block && a.thread == b.thread; }
  static bool same_warp(const Event& a, const Event& b);
  static bool conflict(const Event& earlier, const Event& now);
  [[noreturn]] static void report(const Event& earlier, bool earlier_writes, const Event& now, bool writes,
                                  Space space);
  static void remember_read(Byte& byte, const Event& now);

  // A store in conflict with an earlier one: a race if it changes the memory.
  struct Pending {
    bool is = false;
    Event earlier, now;
    Space space = Space::global;
  };

  uint32_t block_ = 0;
  Pending pending_;
  std::vector<Byte> shared_;
  std::unordered_map<uint64_t, Page> global_;
};

extern RaceDetector race_detector;

}  // namespace cuda_on_cpu
