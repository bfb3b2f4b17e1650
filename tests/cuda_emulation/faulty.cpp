// Kernels with one mistake each: the emulation has to find them.
#include "faulty.h"

#include "../../csrc/cuda/common.cuh"

namespace {

using namespace fastgen::gpu;

__global__ void correct_kernel(const float* from, float* to) {  // reverses 64 floats
  const Shared s = shared_memory();
  const int i = threadIdx.x;
  s.store(4 * i, load(from + i));
  barrier();
  store(to + i, s.load<float>(4 * (63 - i)));
}

__global__ void no_barrier_kernel(const float* from, float* to) {
  const Shared s = shared_memory();
  const int i = threadIdx.x;
  s.store(4 * i, load(from + i));
  store(to + i, s.load<float>(4 * (i & 62)));
}

__global__ void read_past_end_kernel(const float* from, float* to) {
  store(to + threadIdx.x, load(from + threadIdx.x + 1));
}

__global__ void write_input_kernel(const float* from, float*) {
  store(const_cast<float*>(from) + threadIdx.x, 0.0f);
}

__global__ void divergent_barrier_kernel(const float*, float*) {
  if (threadIdx.x < 40) barrier();
}

__global__ void uninitialised_kernel(const float*, float* to) {
  const Shared s = shared_memory();
  store(to + threadIdx.x, s.load<float>(4 * static_cast<int>(threadIdx.x)));
}

__global__ void not_waited_kernel(const float* from, float* to) {
  const Shared s = shared_memory();
  const int i = threadIdx.x;
  if (i < 16) cp_async16(s, 16 * i, from + 4 * i, true);
  cp_async_commit();
  cp_async_wait<1>();
  barrier();
  store(to + i, s.load<float>(4 * i));
}

__global__ void divergent_mma_kernel(const float*, float* to) {
  float c[4] = {};
  const uint32_t a[4] = {}, b[2] = {};
  if (threadIdx.x % 32 < 16)
    mma(c, a, b, half_t{});
  else
    mma(c, a, b, bhalf_t{});
  store(to + threadIdx.x, c[0]);
}

__global__ void shared_overrun_kernel(const float*, float*) {
  shared_memory().store(4 * 63 + 4 * static_cast<int>(threadIdx.x), 0.0f);
}

// Adds a (16 x depth) times b (depth x 8), both row-major floats, lane by lane as PTX defines it.
template <class T>
__global__ void fragments_kernel(const T* a, const T* b, float* c) {
  const int l = threadIdx.x, g = l / 4, q = l % 4, parts = 4 / sizeof(T), depth = 8 * parts;
  uint32_t fa[4] = {}, fb[2] = {};
  const auto word = [&](const T* m, int row, int k, int row_stride, int k_stride) {
    uint32_t bits = 0;
    for (int part = 0; part < parts; ++part) {
      const T value = load(m + row * row_stride + (k + part) * k_stride);
      if constexpr (sizeof(T) == 4)
        bits = to_tf32(value);
      else
        bits |= static_cast<uint32_t>(value.bits) << (16 * part);
    }
    return bits;
  };
  for (int e = 0; e < 4; ++e)
    fa[e] = word(a, g + 8 * (e & 1), parts * q + depth / 2 * (e >> 1), depth, 1);
  for (int e = 0; e < 2; ++e) fb[e] = word(b, g, parts * q + depth / 2 * e, 1, 8);
  float sum[4] = {};
  mma(sum, fa, fb, T{});
  for (int e = 0; e < 4; ++e) store(c + (g + 8 * (e >> 1)) * 8 + 2 * q + (e & 1), sum[e]);
}

template <void (*kernel)(const float*, float*)>
void run(uint64_t from, uint64_t to) {
  FASTGEN_LAUNCH(kernel, dim3(1), dim3(64), 64 * 4, nullptr, reinterpret_cast<const float*>(from),
                 reinterpret_cast<float*>(to));
}

}  // namespace

const std::map<std::string, void (*)(uint64_t, uint64_t)>& faulty_kernels() {
  static const std::map<std::string, void (*)(uint64_t, uint64_t)> kernels = {
      {"correct", run<correct_kernel>},
      {"no_barrier", run<no_barrier_kernel>},
      {"read_past_end", run<read_past_end_kernel>},
      {"write_input", run<write_input_kernel>},
      {"divergent_barrier", run<divergent_barrier_kernel>},
      {"uninitialised", run<uninitialised_kernel>},
      {"not_waited", run<not_waited_kernel>},
      {"divergent_mma", run<divergent_mma_kernel>},
      {"shared_overrun", run<shared_overrun_kernel>}};
  return kernels;
}

void run_fragments(int dtype, uint64_t a, uint64_t b, uint64_t c) {
  const auto launch = [&](auto type) {
    using T = decltype(type);
    auto kernel = fragments_kernel<T>;
    FASTGEN_LAUNCH(kernel, dim3(1), dim3(32), 0, nullptr, reinterpret_cast<const T*>(a),
                   reinterpret_cast<const T*>(b), reinterpret_cast<float*>(c));
  };
  if (dtype == 0) launch(float{});
  if (dtype == 1) launch(half_t{});
  if (dtype == 2) launch(bhalf_t{});
}
