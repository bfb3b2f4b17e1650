// Statistics of instance norms: those that convolutions left for each tile, and those of values in
// memory.
#include <stdexcept>
#include <string>

#include "common.cuh"
#include "conv_plan.h"
#include "network.h"

namespace fastgen {
namespace gpu {
namespace {

constexpr int kThreads = 128;

// Sum over the block, the same in every thread and run.
FASTGEN_DEVICE float block_sum(const Shared& s, float value) {
  const int thread = threadIdx.x;
  barrier();  // the previous sum has been read
  s.store(4 * thread, value);
  barrier();
  for (int half = kThreads / 2; half > 0; half /= 2) {
    if (thread < half)
      s.store(4 * thread, s.load<float>(4 * thread) + s.load<float>(4 * (thread + half)));
    barrier();
  }
  return s.load<float>(0);
}

// One block per (image, channel): mean and variance from the tiles', then scale and shift.
__global__ void __launch_bounds__(kThreads)
    statistics_kernel(const float* partial, const float* gamma, const float* beta, float* scale,
                      float* shift, int outputs, int64_t tiles, float pixels, float eps) {
  const Shared s = shared_memory();
  const float* mine = partial + 3 * tiles * blockIdx.x;
  float sum = 0;
  for (int64_t t = threadIdx.x; t < tiles; t += kThreads)
    sum += load(mine + 3 * t) * load(mine + 3 * t + 1);
  const float mean = block_sum(s, sum) / pixels;
  float squares = 0;
  for (int64_t t = threadIdx.x; t < tiles; t += kThreads) {
    const float difference = load(mine + 3 * t + 1) - mean;
    squares += load(mine + 3 * t + 2) + load(mine + 3 * t) * difference * difference;
  }
  const float variance = block_sum(s, squares) / pixels;
  if (threadIdx.x != 0) return;
  const int channel = blockIdx.x % outputs;
  const float factor = load(gamma + channel) / sqrtf(variance + eps);
  store(scale + blockIdx.x, factor);
  store(shift + blockIdx.x, load(beta + channel) - mean * factor);
}

constexpr int kLanes = 32, kRows = 8;  // channels and pixels that a block looks at at once

// Sum over the rows of a block, for each of its channels, the same in all of them.
FASTGEN_DEVICE float row_sum(const Shared& s, float value) {
  barrier();  // the previous sum has been read
  s.store(4 * static_cast<int>(threadIdx.x), value);
  barrier();
  float sum = 0;
  for (int row = 0; row < kRows; ++row)
    sum += s.load<float>(4 * (row * kLanes + static_cast<int>(threadIdx.x) % kLanes));
  return sum;
}

// Count, mean and sum of squared differences of one chunk of pixels for 32 channels. Two passes, so
// that a large mean costs no digits.
template <class T>
__global__ void __launch_bounds__(kLanes* kRows) value_statistics_kernel(const StatsArgs p) {
  const Shared s = shared_memory();
  const int lane = threadIdx.x % kLanes, row = threadIdx.x / kLanes;
  const int groups = (p.channels + kLanes - 1) / kLanes;
  const int64_t image = blockIdx.x / groups;
  const int channel = blockIdx.x % groups * kLanes + lane;
  const int64_t begin = int64_t{blockIdx.y} * kStatsPixels;
  const int64_t end = begin + kStatsPixels < p.pixels ? begin + kStatsPixels : p.pixels;
  const T* x = static_cast<const T*>(p.x) + image * p.x_image + channel * p.x_channel;
  const auto each = [&](auto&& use) {
    if (channel < p.channels)
      for (int64_t i = begin + row; i < end; i += kRows) use(to_float(load(x + i * p.x_pixel)));
  };
  float sum = 0, squares = 0;
  each([&](float v) { sum += v; });
  const float count = static_cast<float>(end - begin), mean = row_sum(s, sum) / count;
  each([&](float v) { squares += (v - mean) * (v - mean); });
  squares = row_sum(s, squares);
  if (row != 0 || channel >= p.channels) return;
  float* to = p.partial + 3 * ((image * p.channels + channel) * gridDim.y + blockIdx.y);
  store(to, count);
  store(to + 1, mean);
  store(to + 2, squares);
}

// Scale and shift of a norm whose mean and variance are values of the network.
template <class T>
__global__ void __launch_bounds__(kThreads) given_kernel(const GivenArgs p) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= p.n * p.channels) return;
  const int64_t image = i / p.channels;
  const int channel = static_cast<int>(i % p.channels);
  const float mean = to_float(load(static_cast<const T*>(p.mean) + image * p.mean_image + channel));
  const float variance =
      to_float(load(static_cast<const T*>(p.variance) + image * p.variance_image + channel));
  const float factor = load(p.gamma + channel) / sqrtf(variance + p.eps);
  store(p.scale + i, factor);
  store(p.shift + i, load(p.beta + channel) - mean * factor);
}

}  // namespace

int launch_statistics(const float* partial, const float* gamma, const float* beta, float* scale,
                      float* shift, int64_t n, int outputs, int64_t tiles, int64_t pixels,
                      float eps, void* stream) {
  auto kernel = statistics_kernel;
  FASTGEN_LAUNCH(kernel, dim3(static_cast<unsigned>(n * outputs)), dim3(kThreads), 4 * kThreads,
                 static_cast<cudaStream_t>(stream), partial, gamma, beta, scale, shift, outputs,
                 tiles, static_cast<float>(pixels), eps);
  return launch_error();
}

int64_t stats_chunks(int64_t pixels) { return (pixels + kStatsPixels - 1) / kStatsPixels; }

int value_statistics(int dtype, const StatsArgs& args, void* stream) {
  const dim3 blocks(static_cast<unsigned>(args.n * ((args.channels + kLanes - 1) / kLanes)),
                    static_cast<unsigned>(stats_chunks(args.pixels)));
  const int error = with_type(dtype, [&](auto type) {
    auto kernel = value_statistics_kernel<decltype(type)>;
    FASTGEN_LAUNCH(kernel, blocks, dim3(kLanes * kRows), 4 * kLanes * kRows,
                   static_cast<cudaStream_t>(stream), args);
    return launch_error();
  });
  if (error != 0) return error;
  return launch_statistics(args.partial, args.gamma, args.beta, args.scale, args.shift, args.n,
                           args.channels, stats_chunks(args.pixels), args.pixels, args.eps, stream);
}

int given_statistics(int dtype, const GivenArgs& args, void* stream) {
  const dim3 blocks(static_cast<unsigned>((args.n * args.channels + kThreads - 1) / kThreads));
  return with_type(dtype, [&](auto type) {
    auto kernel = given_kernel<decltype(type)>;
    FASTGEN_LAUNCH(kernel, blocks, dim3(kThreads), 0, static_cast<cudaStream_t>(stream), args);
    return launch_error();
  });
}

}  // namespace gpu
}  // namespace fastgen
