// Operations of a whole warp: shuffles, votes, reductions, matrix fragments and their products.
#pragma once
#include "ptx_memory.h"

namespace cuda_on_cpu {

enum class ShuffleMode { up, down, butterfly, index };
struct Shuffled {
  uint32_t value;
  bool in_range;
};
// shfl.sync; `clamp` is the operand c of the PTX manual, which packs the segment mask and the last lane.
Shuffled shuffle(ShuffleMode mode, uint32_t value, uint32_t lane, uint32_t clamp, uint32_t mask, int line);

uint32_t ballot(bool predicate, uint32_t mask, int line);
// elect.sync: the lowest lane of the mask.
uint32_t elect(uint32_t mask, int line);

template <typename T, typename Combine>
T reduce(T value, uint32_t mask, int line, Combine combine) {
  const uint32_t word = static_cast<uint32_t>(value);
  meet(mask, &word, 1, "redux.sync", {nullptr, line});
  T result = 0;
  bool first = true;
  for (unsigned lane = 0; lane < WARP_SIZE; ++lane) {
    if (!(mask >> lane & 1)) continue;
    const T other = static_cast<T>(published_by(lane));
    result = first ? other : combine(result, other);
    first = false;
  }
  return result;
}

// ldmatrix and stmatrix: `count` 8x8 matrices of 16-bit numbers; lanes 8 i to 8 i + 7 hold the addresses of the rows of
// matrix i.
void load_matrix(uint32_t offset, unsigned count, bool transposed, uint32_t* registers, const Access& access);
void store_matrix(uint32_t offset, unsigned count, bool transposed, const uint32_t* registers, const Access& access);

enum class Factor { f16, bf16, tf32 };
// mma.sync with float32 sums: D = A B + C, A of 16 x depth, B of depth x 8. Each lane holds 4 elements of C and D.
// Products are summed in float64 and rounded once: the order in which a GPU sums them is not documented.
void multiply_matrices(Factor factor, unsigned depth, const uint32_t* a, const uint32_t* b, float* c, int line);
// The same in float64, A of rows x depth with 8 or 16 rows; 2 or 4 elements of C and D a lane.
void multiply_matrices(unsigned rows, unsigned depth, const double* a, const double* b, double* c, int line);

}  // namespace cuda_on_cpu
