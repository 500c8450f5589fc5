#include "ptx_warp.h"

#include "ptx_arithmetic.h"

namespace cuda_on_cpu {

namespace {

constexpr unsigned MOST_DEPTH = 16;  // of a product of matrices

// Fragments of mma.sync: lane 4 g + t holds rows g and g + 8 of A and column g of B. Register i of A holds row g + 8 (i
// % 2), and there the columns from (4 (i / 2) + t) * (elements a register); register i of B the rows from (4 i + t) *
// (elements a register).
struct Fragment {
  unsigned group = current_thread->lane / 4, member = current_thread->lane % 4;
};

float element(Factor factor, uint32_t word, unsigned half) {
  if (factor == Factor::tf32) return as_f32(word & TF32_BITS);
  const auto bits = static_cast<uint16_t>(word >> 16 * half);
  return factor == Factor::f16 ? as_f16(bits) : as_bf16(bits);
}

}  // namespace

Shuffled shuffle(ShuffleMode mode, uint32_t value, uint32_t lane, uint32_t clamp, uint32_t mask, int line) {
  const Site site = {nullptr, line};
  meet(mask, &value, 1, "shfl.sync", site);
  const int self = static_cast<int>(current_thread->lane), by = lane & 31, segment = clamp >> 8 & 31;
  const int highest = (self & segment) | ((clamp & 31) & ~segment), lowest = self & segment;
  int source = 0;
  bool in_range = false;
  switch (mode) {
    case ShuffleMode::up:
      source = self - by;
      in_range = source >= highest;
      break;
    case ShuffleMode::down:
      source = self + by;
      in_range = source <= highest;
      break;
    case ShuffleMode::butterfly:
      source = self ^ by;
      in_range = source <= highest;
      break;
    case ShuffleMode::index:
      source = lowest | (by & ~segment);
      in_range = source <= highest;
      break;
  }
  if (!in_range) source = self;
  if (!(mask >> source & 1)) fail(site, "shfl.sync reads lane %d, which is not in the mask 0x%08x", source, mask);
  return {published_by(static_cast<unsigned>(source)), in_range};
}

uint32_t ballot(bool predicate, uint32_t mask, int line) {
  const uint32_t word = predicate;
  meet(mask, &word, 1, "vote.sync", {nullptr, line});
  uint32_t votes = 0;
  for (unsigned lane = 0; lane < WARP_SIZE; ++lane) {
    if (mask >> lane & 1) votes |= published_by(lane) << lane;
  }
  return votes;
}

uint32_t elect(uint32_t mask, int line) {
  meet(mask, nullptr, 0, "elect.sync", {nullptr, line});
  return static_cast<uint32_t>(__builtin_ctz(mask));
}

void load_matrix(uint32_t offset, unsigned count, bool transposed, uint32_t* registers, const Access& access) {
  const unsigned lane = current_thread->lane;
  if (lane < 8 * count) check_shared(offset, 16, access);
  meet(FULL_WARP, &offset, 1, "ldmatrix", {nullptr, access.line});
  auto number = [](unsigned matrix, unsigned row, unsigned column) {
    return static_cast<uint32_t>(load<uint16_t>(block_shared_memory + published_by(8 * matrix + row) + 2 * column));
  };
  const unsigned group = lane / 4, first = 2 * (lane % 4);
  for (unsigned i = 0; i < count; ++i) {
    registers[i] = transposed ? number(i, first, group) | number(i, first + 1, group) << 16
                              : number(i, group, first) | number(i, group, first + 1) << 16;
  }
}

void store_matrix(uint32_t offset, unsigned count, bool transposed, const uint32_t* registers, const Access& access) {
  meet(FULL_WARP, registers, count, "stmatrix", {nullptr, access.line});
  const unsigned lane = current_thread->lane, matrix = lane / 8, row = lane % 8;
  if (matrix >= count) return;
  char* target = check_shared(offset, 16, access);
  for (unsigned column = 0; column < 8; ++column) {
    const unsigned holder = transposed ? 4 * column + row / 2 : 4 * row + column / 2;
    const unsigned half = transposed ? row % 2 : column % 2;
    store(target + 2 * column, static_cast<uint16_t>(published_by(holder, matrix) >> 16 * half));
  }
}

void multiply_matrices(Factor factor, unsigned depth, const uint32_t* a, const uint32_t* b, float* c, int line) {
  const unsigned per_register = factor == Factor::tf32 ? 1 : 2, steps = depth / (4 * per_register), b_words = 2 * steps;
  uint32_t words[WORDS_PUBLISHED];
  memcpy(words, a, 2 * steps * sizeof(uint32_t));
  memcpy(words + b_words, b, steps * sizeof(uint32_t));
  meet(FULL_WARP, words, 3 * steps, "mma.sync", {nullptr, line});
  const Fragment self;
  double left[2][MOST_DEPTH], right[2][MOST_DEPTH];
  for (unsigned step = 0; step < steps; ++step) {
    for (unsigned member = 0; member < 4; ++member) {
      for (unsigned half = 0; half < per_register; ++half) {
        const unsigned k = (4 * step + member) * per_register + half;
        for (unsigned i = 0; i < 2; ++i) {
          left[i][k] = element(factor, published_by(4 * self.group + member, 2 * step + i), half);
          right[i][k] = element(factor, published_by(4 * (2 * self.member + i) + member, b_words + step), half);
        }
      }
    }
  }
  for (unsigned row = 0; row < 2; ++row) {
    for (unsigned column = 0; column < 2; ++column) {
      double sum = c[2 * row + column];
      for (unsigned k = 0; k < depth; ++k) sum += left[row][k] * right[column][k];
      c[2 * row + column] = static_cast<float>(sum);
    }
  }
}

void multiply_matrices(unsigned rows, unsigned depth, const double* a, const double* b, double* c, int line) {
  const unsigned halves = rows / 8, steps = depth / 4, a_count = halves * steps;
  uint32_t words[WORDS_PUBLISHED];
  memcpy(words, a, a_count * sizeof(double));
  memcpy(words + 2 * a_count, b, steps * sizeof(double));
  meet(FULL_WARP, words, 2 * (a_count + steps), "mma.sync", {nullptr, line});
  auto number = [](unsigned lane, unsigned index) {
    return as_f64(published_by(lane, 2 * index) | static_cast<uint64_t>(published_by(lane, 2 * index + 1)) << 32);
  };
  const Fragment self;
  for (unsigned row = 0; row < halves; ++row) {
    for (unsigned column = 0; column < 2; ++column) {
      double& sum = c[2 * row + column];
      for (unsigned k = 0; k < depth; ++k) {
        const double left = number(4 * self.group + k % 4, halves * (k / 4) + row);
        sum = fused(left, number(4 * (2 * self.member + column) + k % 4, a_count + k / 4), sum);
      }
    }
  }
}

}  // namespace cuda_on_cpu
