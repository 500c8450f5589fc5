// Linked before the kernels, whose thread-local variables are all __shared__ ones, and shared_end.cpp after them: they
// lie between these two (see poison_static_shared_memory).
namespace cuda_on_cpu {
__thread char shared_begin;
}
