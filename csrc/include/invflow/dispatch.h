// The choice of the kernels' version. It stands apart from cpu_kernels.h, so that no standard container is compiled for
// one instruction set and linked for all.
#pragma once

#include <vector>

#include "invflow/cpu_kernels.h"

namespace invflow {

// Every version that this processor runs, widest instruction set first.
std::vector<const Kernels*> supported_kernels();

// The widest of them, or the one that the environment variable INVFLOW_CPU_ISA names.
// Throws std::runtime_error if that one cannot run here.
const Kernels& kernels();

}  // namespace invflow
