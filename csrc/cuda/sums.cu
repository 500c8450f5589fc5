#include "sums.h"

#include <cstdlib>

namespace invflow::cuda {

constexpr int kTotals = 32, kTerms = 32;  // threads of a block along each

struct Sums {
  PartialSums of[2];
  unsigned blocks_of_first;
};

template <class T>
__global__ void __launch_bounds__(kTotals* kTerms) add_partial_sums_kernel(const __grid_constant__ Sums all) {
  __shared__ double parts[kTerms][kTotals + 1];
  const int total = threadIdx.x % kTotals, turn = threadIdx.x / kTotals;
  const bool second = blockIdx.x >= all.blocks_of_first;
  const PartialSums& sums = all.of[second];
  const int64_t i = static_cast<int64_t>(second ? blockIdx.x - all.blocks_of_first : blockIdx.x) * kTotals + total;
  double sum = 0;
  wait_for_former();
  if (i < sums.count)
    for (int64_t k = turn; k < sums.terms; k += kTerms)
      sum += static_cast<const T*>(sums.partial)[i * sums.total_stride + k * sums.term_stride];
  parts[turn][total] = sum;
  __syncthreads();
  if (turn > 0 || i >= sums.count) return;
  for (int t = 1; t < kTerms; ++t) sum += parts[t][total];
  static_cast<T*>(sums.totals)[i] = static_cast<T>(sum);
}

template <class T>
void add_partial_sums(const Site& site, const PartialSums& some, const PartialSums& others) {
  const auto blocks = [](const PartialSums& sums) { return (sums.count + kTotals - 1) / kTotals; };
  const Sums all{{some, others}, static_cast<unsigned>(blocks(some))};
  const int64_t both = blocks(some) + blocks(others);
  if (both == 0) return;
  const Site own{"add_partial_sums_kernel", site.step, site.place};
  const char* const variant = std::getenv("INVFLOW_CUDA_VARIANT");
  if (variant != nullptr && variant[0] != 0 && variant[1] != 0 && variant[2] != 0)
    launch_behind(own, add_partial_sums_kernel<T>, both, kTotals * kTerms, all);
  else
    launch(own, add_partial_sums_kernel<T>, both, kTotals * kTerms, 0, all);
}

const char* why_not(int device) { return why_not_on(device, add_partial_sums_kernel<float>); }

template void add_partial_sums<float>(const Site&, const PartialSums&, const PartialSums&);
template void add_partial_sums<double>(const Site&, const PartialSums&, const PartialSums&);

}  // namespace invflow::cuda
