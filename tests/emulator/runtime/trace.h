// What the memory accesses of a launch would cost a GPU: sectors of global memory, passes through the banks of shared
// memory.
//
// Lanes of a warp are taken to execute an instruction together when it is for each of them the same execution of it,
// counted from the start of the block. That is exact unless lanes of a warp run through a loop a different number of
// times and meet again.
#pragma once
#include <array>
#include <map>
#include <vector>

#include "ptx_launch.h"

namespace cuda_on_cpu {

class Trace {
 public:
  bool active = false;

  void start(bool activate);
  void access(Space space, uint64_t address, unsigned bytes, const Access& access);
  void block_ends();
  const std::vector<SiteTrace>& rows();

 private:
  struct Request {
    std::array<uint64_t, WARP_SIZE> address;
    unsigned lanes = 0;
  };
  struct Site {
    SiteTrace totals{};
    std::vector<unsigned> executions;                           // by each thread of the block
    std::map<std::pair<unsigned, unsigned>, Request> requests;  // by (execution, warp)
  };

  static void count_global(SiteTrace& totals, const Request& request);
  static void count_shared(SiteTrace& totals, const Request& request);

  std::map<int, Site> sites_;
  std::vector<SiteTrace> rows_;
};

extern Trace trace;

}  // namespace cuda_on_cpu
