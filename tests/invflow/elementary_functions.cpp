// The elementary functions of the CPU kernels as functions of arrays, for test_elementary_functions.py.
#include "invflow/cpu_kernels.h"

#include <cstring>
#include <type_traits>

#include "buffer.h"
#include "simd.h"

namespace invflow {

#include "storage.inc"
#include "elementwise.inc"

namespace {

template <class F>
void map(F f, const float* in, float* out, int64_t n) {
  for (int64_t i = 0; i + kLanes<float> <= n; i += kLanes<float>) store<float>(out + i, f(load<float>(in + i)));
}

template <Kind kind, bool inverse>
Vec<float> scale(Vec<float> raw, float parameter) {
  const Factors<float, 1> f = factors_of<float, kind, inverse, 1>({{raw}}, {parameter, 1.0f});
  return scaled<float, kind, false>(broadcast<float>(1.0f), f.factor.v[0], f.other.v[0]);
}

}  // namespace
}  // namespace invflow

// n is a multiple of 16, as many floats as the widest vector has.
extern "C" void elementary_function(int which, const float* in, float* out, int64_t n) {
  using namespace invflow;
  using V = Vec<float>;
  switch (which) {
    case 0: return map([](V x) { return exp<float>(x); }, in, out, n);
    case 1: return map([](V x) { return one_plus_exp_within<float, 1>({{x}}, 69.0f).high.v[0]; }, in, out, n);
    case 2: return map([](V x) { return log<float>(x); }, in, out, n);
    case 3: return map([](V x) { return log_sigmoid<float>(x); }, in, out, n);
    case 4: return map([](V x) { return tanh_and_slope<float>(x).value; }, in, out, n);
    case 5: return map([](V x) { return tanh_and_slope<float>(x).slope; }, in, out, n);
    case 6: return map([](V x) { return scale<Kind::kSigmoid, false>(x, 1e-4f); }, in, out, n);
    case 7: return map([](V x) { return scale<Kind::kSigmoid, true>(x, 1e-4f); }, in, out, n);
    case 8: return map([](V x) { return scale<Kind::kSigmoidOfNoEps, false>(x, 0.0f); }, in, out, n);
    case 9: return map([](V x) { return atan<float>(x); }, in, out, n);
  }
}
