// See shared_begin.cpp.
namespace cuda_on_cpu {
__thread char shared_end;
}
