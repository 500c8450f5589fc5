#include "sums.h"

namespace invflow::cuda {

constexpr int kTotals = 32, kTerms = 32;  // threads of a block along each

template <class T>
__global__ void __launch_bounds__(kTotals* kTerms) add_partial_sums_kernel(const PartialSums some, const PartialSums others, unsigned blocks_of_some) {
  __shared__ double parts[kTerms][kTotals + 1];
  const int total = threadIdx.x % kTotals, turn = threadIdx.x / kTotals;
  const bool other = blockIdx.x >= blocks_of_some;
  const PartialSums& sums = other ? others : some;
  const int64_t i = static_cast<int64_t>(other ? blockIdx.x - blocks_of_some : blockIdx.x) * kTotals + total;
  double sum = 0;
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
  if (blocks(some) + blocks(others) > 0)
    launch({"add_partial_sums_kernel", site.step, site.place}, add_partial_sums_kernel<T>, blocks(some) + blocks(others),
           kTotals * kTerms, 0, some, others, blocks(some));
}

const char* why_not(int device) { return why_not_on(device, add_partial_sums_kernel<float>); }

template void add_partial_sums<float>(const Site&, const PartialSums&, const PartialSums&);
template void add_partial_sums<double>(const Site&, const PartialSums&, const PartialSums&);

}  // namespace invflow::cuda
