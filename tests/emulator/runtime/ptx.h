// What a translated PTX module includes.
#pragma once
#include "ptx_arithmetic.h"
#include "ptx_memory.h"
#include "ptx_warp.h"

namespace cuda_on_cpu {
// Thread and block of the running fiber, as special registers.
inline uint32_t thread_register(unsigned Index3::* axis) { return current_thread->index.*axis; }
inline uint32_t block_register(unsigned Index3::* axis) { return launch_state.block_index.*axis; }
inline uint32_t block_size_register(unsigned Index3::* axis) { return launch_state.block.*axis; }
inline uint32_t grid_size_register(unsigned Index3::* axis) { return launch_state.grid.*axis; }
}  // namespace cuda_on_cpu

using namespace cuda_on_cpu;
