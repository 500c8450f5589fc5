#include "sums.h"

namespace invflow::cuda {

constexpr int kTotals = 32, kTerms = 32;  // threads of a block along each
constexpr int kRowThreads = 256;

// Two sums for one launch: the first blocks take those of the first.
struct Sums {
  PartialSums of[2];
  unsigned blocks_of_first;
};

template <class T>
__global__ void __launch_bounds__(kTotals* kTerms) add_partial_sums_kernel(const __grid_constant__ Sums all) {
  __shared__ double parts[kTerms][kTotals + 1];
  const bool second = blockIdx.x >= all.blocks_of_first;
  const PartialSums& sums = all.of[second];
  const int total = threadIdx.x % kTotals, turn = threadIdx.x / kTotals;
  const int64_t i = static_cast<int64_t>(second ? blockIdx.x - all.blocks_of_first : blockIdx.x) * kTotals + total;
  double sum = 0;
  wait_for_former();
  if (i < sums.count)
#pragma unroll 4
    for (int64_t k = turn; k < sums.terms; k += kTerms)
      sum += static_cast<const T*>(sums.partial)[i * sums.total_stride + k * sums.term_stride];
  parts[turn][total] = sum;
  __syncthreads();
  if (turn > 0 || i >= sums.count) return;
  for (int t = 1; t < kTerms; ++t) sum += parts[t][total];
  static_cast<T*>(sums.totals)[i] = static_cast<T>(sum);
}

// One total a block, of terms that stand side by side.
template <class T>
__global__ void __launch_bounds__(kRowThreads) add_rows_kernel(const __grid_constant__ PartialSums sums) {
  const int64_t i = blockIdx.x;
  double sum = 0;
  wait_for_former();
  const T* const terms = static_cast<const T*>(sums.partial) + i * sums.total_stride;
#pragma unroll 4
  for (int64_t k = threadIdx.x; k < sums.terms; k += kRowThreads) sum += terms[k];
  sum = sum_of_block<kRowThreads>(sum);
  if (threadIdx.x == 0) static_cast<T*>(sums.totals)[i] = static_cast<T>(sum);
}

template <class T>
void add_partial_sums(const Site& site, const PartialSums& some, const PartialSums& others) {
  if (some.term_stride == 1 && others.count == 0) {
    if (some.count > 0)
      launch_behind({"add_rows_kernel", site.step, site.place}, add_rows_kernel<T>, some.count, kRowThreads, some);
    return;
  }
  const auto blocks = [](const PartialSums& sums) { return (sums.count + kTotals - 1) / kTotals; };
  const Sums all{{some, others}, static_cast<unsigned>(blocks(some))};
  if (blocks(some) + blocks(others) > 0)
    launch_behind({"add_partial_sums_kernel", site.step, site.place}, add_partial_sums_kernel<T>,
                  blocks(some) + blocks(others), kTotals * kTerms, all);
}

const char* why_not(int device) { return why_not_on(device, add_partial_sums_kernel<float>); }

template void add_partial_sums<float>(const Site&, const PartialSums&, const PartialSums&);
template void add_partial_sums<double>(const Site&, const PartialSums&, const PartialSums&);

}  // namespace invflow::cuda
