#include "trace.h"

#include <algorithm>
#include <set>

namespace cuda_on_cpu {

Trace trace;

namespace {

constexpr uint64_t SECTOR = 32;  // bytes of global memory
constexpr unsigned BANKS = 32;   // of shared memory, of 4 bytes each
constexpr unsigned BANK_BYTES = 4;

// Lanes that go through shared memory together: wide accesses take half or quarter warps.
unsigned lanes_of_a_pass(unsigned bytes) { return bytes <= 4 ? 32 : bytes == 8 ? 16 : 8; }

}  // namespace

void Trace::start(bool activate) {
  active = activate;
  sites_.clear();
}

void Trace::access(Space space, uint64_t address, unsigned bytes, const Access& access) {
  const Thread& thread = *current_thread;
  Site& site = sites_[access.site];
  site.totals.site = access.site;
  site.totals.line = access.line;
  site.totals.space = static_cast<uint32_t>(space);
  site.totals.kind = static_cast<uint32_t>(access.kind);
  site.totals.bytes = bytes;
  site.executions.resize(block_threads.size());
  Request& request = site.requests[{site.executions[thread.linear]++, thread.warp}];
  request.address[thread.lane] = address;
  request.lanes |= 1u << thread.lane;
}

void Trace::count_global(SiteTrace& totals, const Request& request) {
  std::set<uint64_t> sectors, addresses;
  for (unsigned lane = 0; lane < WARP_SIZE; ++lane) {
    if (!(request.lanes >> lane & 1)) continue;
    addresses.insert(request.address[lane]);
    sectors.insert(request.address[lane] / SECTOR);  // an aligned access never straddles two
  }
  totals.sectors += sectors.size();
  totals.fewest_sectors += (addresses.size() * totals.bytes + SECTOR - 1) / SECTOR;
}

void Trace::count_shared(SiteTrace& totals, const Request& request) {
  const unsigned together = lanes_of_a_pass(totals.bytes);
  for (unsigned first = 0; first < WARP_SIZE; first += together) {
    std::array<std::set<uint64_t>, BANKS> words;  // lanes that read the same word share a pass
    bool any = false;
    for (unsigned lane = first; lane < first + together; ++lane) {
      if (!(request.lanes >> lane & 1)) continue;
      any = true;
      const uint64_t begin = request.address[lane] / BANK_BYTES;
      const uint64_t end = (request.address[lane] + totals.bytes + BANK_BYTES - 1) / BANK_BYTES;
      for (uint64_t word = begin; word < end; ++word) words[word % BANKS].insert(word);
    }
    size_t passes = 0;
    for (const auto& bank : words) passes = std::max(passes, bank.size());
    totals.wavefronts += passes;
    totals.fewest_wavefronts += any;
  }
}

void Trace::block_ends() {
  for (auto& [number, site] : sites_) {
    for (const auto& [key, request] : site.requests) {
      ++site.totals.requests;
      site.totals.lanes += __builtin_popcount(request.lanes);
      const Space space = static_cast<Space>(site.totals.space);
      if (space == Space::global) count_global(site.totals, request);
      if (space == Space::shared) count_shared(site.totals, request);
    }
    site.requests.clear();
    std::fill(site.executions.begin(), site.executions.end(), 0u);
  }
}

const std::vector<SiteTrace>& Trace::rows() {
  rows_.clear();
  for (const auto& [number, site] : sites_) rows_.push_back(site.totals);
  return rows_;
}

}  // namespace cuda_on_cpu
