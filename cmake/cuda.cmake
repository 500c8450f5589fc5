# invflow._CUDA: the CUDA kernels. Imports without a GPU and without a driver, because CUDA's run time is linked statically
# and loads the driver at the first call.

# Machine code for Ampere and Ada, and for Hopper; every other GPU from Turing on compiles the PTX when it is first used.
# Each architecture costs about as much time to build as the others.
if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES 75-virtual 80-real 90-real)
endif()
enable_language(CUDA)
file(TOUCH ${CMAKE_BINARY_DIR}/with_cuda)  # for setup.py

# The kernels know nothing of Python: they are not compiled again for another one, or for another pybind11.
add_library(cuda_kernels OBJECT
  csrc/cuda/channels_last.cu
  csrc/cuda/coupling.cu
  csrc/cuda/coupling_known.cu
  csrc/cuda/dispatch.cu
  csrc/cuda/flow_step.cu
  csrc/cuda/flow_step_backward.cu
  csrc/cuda/flow_step_backward_known.cu
  csrc/cuda/flow_step_known.cu
  csrc/cuda/known.cu
  csrc/cuda/matrix_gradient.cu
  csrc/cuda/sums.cu)
pybind11_add_module(_CUDA MODULE csrc/cuda/bindings.cpp)
target_link_libraries(_CUDA PRIVATE cuda_kernels)
foreach(part cuda_kernels _CUDA)
  target_include_directories(${part} PRIVATE csrc/include)
  target_compile_definitions(${part} PRIVATE INVFLOW_COMPILER="nvcc ${CMAKE_CUDA_COMPILER_VERSION}")
  set_target_properties(${part} PROPERTIES CUDA_STANDARD 17 CUDA_RUNTIME_LIBRARY Static CUDA_VISIBILITY_PRESET hidden)
endforeach()
target_compile_options(cuda_kernels PRIVATE -Xfatbin=-compress-all)
list(JOIN CMAKE_CUDA_ARCHITECTURES " " architectures)
target_compile_definitions(_CUDA PRIVATE
  INVFLOW_VERSION="${INVFLOW_VERSION}"
  INVFLOW_CUDA_ARCHITECTURES="${architectures}")
