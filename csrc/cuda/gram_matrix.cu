// Gram matrices on tensor cores: out = F F^T / (c pixels) for every image.
//
// A block multiplies two strips of channels over a range of positions; only pairs (i <= j) of
// strips are computed and each sum is written to both triangles, so the result is exactly
// symmetric. On the diagonal both operands are the same strip, which is loaded once: up to 128
// channels the input is read exactly once.
//
// Ranges of positions are added by a second kernel in a fixed order. Atomic additions would save
// that launch but cost more: all blocks of an image meet in the same few thousand addresses, and a
// partial sum of one 64x64 tile per multiprocessor is 2 MB that never leaves the second-level
// cache. So every result is deterministic.
#include <algorithm>
#include <stdexcept>

#include "../fastgen.h"
#include "common.cuh"

namespace fastgen {
namespace gpu {
namespace {

constexpr int kThreads = 256, kLineBytes = 128;
// Tensor cores round their sums towards zero, so a sum of squares loses 2^-24 of itself with every
// product: ranges end before that shows.
constexpr int kMaxLines = 128;
constexpr int kSumLanes = 32, kSumGroups = 8;  // of the second kernel

struct GramArgs {
  const void* x;
  float* partial;  // [image][pair][range][tile][tile]
  float* out;      // written directly when there is one range
  int64_t c, pixels;
  int64_t lines, lines_per_range;  // of kDepth positions
  int strips, pairs, ranges;
  bool vector;
  float factor;
};

template <class T_, int kTile_, bool kChannelsLast_>
struct GramTile {
  using T = T_;
  static constexpr int kTile = kTile_;
  static constexpr bool kChannelsLast = kChannelsLast_;
  static constexpr int kVector = Chunk<T>::kSize;
  static constexpr int kDepth = kLineBytes / sizeof(T);  // positions of a step
  static constexpr int kStages = kTile == 64 ? 4 : 3;
  static constexpr int kMinBlocks = kTile == 128 && sizeof(T) == 4 ? 1 : 2;  // no spills
  static constexpr int kWarpsM = 2, kWarpsN = 4;
  static constexpr int kM = kTile / kWarpsM / 16, kN = kTile / kWarpsN / 8;
  // tf32 has no transposed ldmatrix: the skew lets plain loads hit 32 different banks.
  static constexpr int kSkew = kChannelsLast && sizeof(T) == 4 ? 8 : 0;
  static constexpr int kRow = kChannelsLast ? (kTile + kSkew) * int{sizeof(T)} : kLineBytes;
  static constexpr int kRows = kChannelsLast ? kDepth : kTile;
  static constexpr int kStrip = kRow * kRows;
  static constexpr int kPieces = (kChannelsLast ? kTile : kDepth) / kVector;  // of a row

  static FASTGEN_DEVICE int at(int row, int piece) {
    return row * kRow + ((kSkew ? piece : piece ^ (row & 7)) << 4);
  }
};

// Pair `index` of the strips (i <= j), counted along the rows of the upper triangle.
FASTGEN_HOST_DEVICE void pair_of(int index, int strips, int& i, int& j) {
  i = 0;
  while (index >= strips - i) index -= strips - i++;
  j = i + index;
}

template <class G>
FASTGEN_DEVICE void load_strip(const GramArgs& p, const Shared& s, int offset, int64_t image,
                               int strip, int64_t line) {
  using T = typename G::T;
  const T* x = static_cast<const T*>(p.x) + image * p.c * p.pixels;
  for (int i = threadIdx.x; i < G::kRows * G::kPieces; i += kThreads) {
    const int row = i / G::kPieces, piece = i % G::kPieces;
    const int64_t channel =
        strip * int64_t{G::kTile} + (G::kChannelsLast ? piece * G::kVector : row);
    const int64_t position = line * G::kDepth + (G::kChannelsLast ? row : piece * G::kVector);
    const bool valid = channel < p.c && position < p.pixels;
    const int64_t from =
        G::kChannelsLast ? position * p.c + channel : channel * p.pixels + position;
    const int to = offset + G::at(row, piece);
    if (p.vector) {
      cp_async16(s, to, valid ? x + from : p.x, valid);
      continue;
    }
    const int64_t left = G::kChannelsLast ? p.c - channel : p.pixels - position;
    float values[G::kVector];
#pragma unroll
    for (int e = 0; e < G::kVector; ++e)
      values[e] = valid && e < left ? to_float(load(x + from + e)) : 0.0f;
    s.store(to, Chunk<T>::pack(values));
  }
}

// Fragments of 16 kM rows and 8 kN columns at depth step `k` of 32 bytes.
template <class G>
FASTGEN_DEVICE void read_fragments(const Shared& s, int strip_a, int strip_b, int k, int first_m,
                                   int first_n, uint32_t (&a)[G::kM][4], uint32_t (&b)[G::kN][2]) {
  const int lane = threadIdx.x & 31, matrix = lane >> 3, r = lane & 7;
#pragma unroll
  for (int i = 0; i < G::kM; ++i) {
    const int m = first_m + 16 * i;
    if constexpr (!G::kChannelsLast) {
      ldmatrix4(a[i], s, strip_a + G::at(m + (lane & 15), 2 * k + (lane >> 4)));
    } else if constexpr (sizeof(typename G::T) == 2) {
      ldmatrix4_transposed(a[i], s,
                           strip_a + G::at(16 * k + (matrix >> 1) * 8 + r, m / 8 + (matrix & 1)));
    } else {
#pragma unroll
      for (int e = 0; e < 4; ++e)
        a[i][e] = s.load<uint32_t>(strip_a + (8 * k + (lane & 3) + 4 * (e >> 1)) * G::kRow +
                                   4 * (m + (lane >> 2) + 8 * (e & 1)));
    }
  }
#pragma unroll
  for (int j = 0; j < G::kN; j += 2) {
    const int n = first_n + 8 * j;
    uint32_t pair[4];
    if constexpr (!G::kChannelsLast) {
      ldmatrix4(pair, s, strip_b + G::at(n + (lane >> 4) * 8 + r, 2 * k + (matrix & 1)));
    } else if constexpr (sizeof(typename G::T) == 2) {
      ldmatrix4_transposed(pair, s,
                           strip_b + G::at(16 * k + (matrix & 1) * 8 + r, n / 8 + (matrix >> 1)));
    } else {
#pragma unroll
      for (int e = 0; e < 4; ++e)
        pair[e] = s.load<uint32_t>(strip_b + (8 * k + (lane & 3) + 4 * (e & 1)) * G::kRow +
                                   4 * (n + (lane >> 2) + 8 * (e >> 1)));
    }
    b[j][0] = pair[0], b[j][1] = pair[1];
    b[j + 1][0] = pair[2], b[j + 1][1] = pair[3];
  }
}

FASTGEN_DEVICE void store_both(const GramArgs& p, int64_t image, int64_t i, int64_t j, float sum) {
  if (i > j || j >= p.c) return;
  float* out = p.out + image * p.c * p.c;
  store(out + i * p.c + j, sum * p.factor);
  if (i != j) store(out + j * p.c + i, sum * p.factor);
}

template <class G>
__global__ void __launch_bounds__(kThreads, G::kMinBlocks) gram_kernel(const GramArgs p) {
  const Shared s = shared_memory();
  const int64_t image = blockIdx.x / p.ranges;
  const int range = blockIdx.x % p.ranges;
  int strip_i, strip_j;
  pair_of(blockIdx.y, p.strips, strip_i, strip_j);
  const bool diagonal = strip_i == strip_j;
  const int stage_bytes = p.strips > 1 ? 2 * G::kStrip : G::kStrip;
  const int other = diagonal ? 0 : G::kStrip;
  const int64_t begin = range * p.lines_per_range;
  const int64_t end = begin + p.lines_per_range < p.lines ? begin + p.lines_per_range : p.lines;
  const int lines = static_cast<int>(end - begin);

  const auto load_line = [&](int line) {
    const int stage = line % G::kStages * stage_bytes;
    load_strip<G>(p, s, stage, image, strip_i, begin + line);
    if (!diagonal) load_strip<G>(p, s, stage + other, image, strip_j, begin + line);
  };
#pragma unroll
  for (int line = 0; line < G::kStages - 1; ++line) {
    if (line < lines) load_line(line);
    cp_async_commit();
  }
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  const int first_m = warp / G::kWarpsN * 16 * G::kM, first_n = warp % G::kWarpsN * 8 * G::kN;
  WarpTile<typename G::T, G::kM, G::kN> tile;
  tile.clear();
  for (int line = 0; line < lines; ++line) {
    cp_async_wait<G::kStages - 2>();
    barrier();
    if (line + G::kStages - 1 < lines) load_line(line + G::kStages - 1);
    cp_async_commit();
    const int stage = line % G::kStages * stage_bytes;
#pragma unroll
    for (int k = 0; k < kLineBytes / 32; ++k) {
      uint32_t a[G::kM][4], b[G::kN][2];
      read_fragments<G>(s, stage, stage + other, k, first_m, first_n, a, b);
      tile.multiply(a, b);
    }
  }
  cp_async_wait<0>();

  float* partial = p.partial;
  if (p.ranges > 1)
    partial += ((image * p.pairs + blockIdx.y) * p.ranges + range) * (G::kTile * G::kTile);
#pragma unroll
  for (int i = 0; i < G::kM; ++i) {
#pragma unroll
    for (int j = 0; j < G::kN; ++j) {
#pragma unroll
      for (int e = 0; e < 4; e += 2) {
        const int m = first_m + 16 * i + (lane >> 2) + 4 * e, n = first_n + 8 * j + 2 * (lane & 3);
        if (p.ranges > 1) {
          store(reinterpret_cast<Vec8*>(partial + m * G::kTile + n),
                Vec8{{float_to_bits(tile.c[i][j][e]), float_to_bits(tile.c[i][j][e + 1])}});
        } else {
          const int64_t row = strip_i * int64_t{G::kTile} + m;
          const int64_t column = strip_j * int64_t{G::kTile} + n;
          store_both(p, image, row, column, tile.c[i][j][e]);
          store_both(p, image, row, column + 1, tile.c[i][j][e + 1]);
        }
      }
    }
  }
}

// Adds the ranges: 32 neighbouring elements by 8 interleaved groups of ranges, then the groups.
__global__ void __launch_bounds__(kSumLanes* kSumGroups) sum_kernel(const GramArgs p, int tile) {
  const Shared s = shared_memory();
  const int lane = threadIdx.x % kSumLanes, group = threadIdx.x / kSumLanes;
  const int elements = tile * tile, pieces = elements / kSumLanes;
  const int64_t image = blockIdx.x / pieces;
  const int element = blockIdx.x % pieces * kSumLanes + lane;
  const float* from =
      p.partial + (image * p.pairs + blockIdx.y) * p.ranges * int64_t{elements} + element;
  float sum = 0;
  for (int range = group; range < p.ranges; range += kSumGroups)
    sum += load(from + range * int64_t{elements});
  s.store(4 * static_cast<int>(threadIdx.x), sum);
  barrier();
  if (group != 0) return;
  for (int other = 1; other < kSumGroups; ++other)
    sum += s.load<float>(4 * (other * kSumLanes + lane));
  int strip_i, strip_j;
  pair_of(blockIdx.y, p.strips, strip_i, strip_j);
  store_both(p, image, strip_i * int64_t{tile} + element / tile,
             strip_j * int64_t{tile} + element % tile, sum);
}

// ------------------------------------------------------------------ launch

struct GramPlan {
  int tile;
  int64_t strips, pairs, ranges, lines, lines_per_range, shared_bytes;
};

GramPlan plan_of(int64_t n, int64_t c, int64_t pixels, bool channels_last, int dtype,
                 const CudaLimits& limits) {
  const int size = dtype == kFloat32 ? 4 : 2;
  const auto up = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
  const auto with = [&](int tile) {
    GramPlan g{};
    g.tile = tile;
    g.strips = up(c, tile);
    g.pairs = g.strips * (g.strips + 1) / 2;
    const int64_t depth = kLineBytes / size;
    g.lines = up(pixels, depth);
    // One block per multiprocessor, but not less than four lines for each.
    const int64_t wanted = up(limits.multiprocessors, n * g.pairs);
    g.ranges = std::clamp<int64_t>(wanted, 1, std::max<int64_t>(1, g.lines / 4));
    g.ranges = std::max(g.ranges, up(g.lines, kMaxLines));
    g.lines_per_range = up(g.lines, g.ranges);
    g.ranges = up(g.lines, g.lines_per_range);
    const int64_t strip = channels_last && size == 4 ? (tile + 8) * 4 * depth : tile * kLineBytes;
    g.shared_bytes = strip * (g.strips > 1 ? 2 : 1) * (tile == 64 ? 4 : 3);
    return g;
  };
  const GramPlan large = with(128), small = with(64);
  const bool fits = large.shared_bytes <= limits.shared_bytes;
  const bool fills = large.pairs * large.ranges * n >= limits.multiprocessors;
  const GramPlan plan = c > 64 && fits && fills ? large : small;
  if (n < 1 || c < 1 || pixels < 1) throw std::invalid_argument("gram_matrix: a size is below 1");
  if (limits.multiprocessors < 1 || plan.shared_bytes > limits.shared_bytes)
    throw std::invalid_argument("gram_matrix: needs " + std::to_string(plan.shared_bytes) +
                                " bytes of shared memory, the device has " +
                                std::to_string(limits.shared_bytes) + "; use impl='ref'");
  if (plan.pairs > 65535 || n * plan.ranges > 0x7fffffff || n > 0x7fffffff / (128 * 128 / 32))
    throw std::invalid_argument("gram_matrix: the batch or the number of channels is too large");
  return plan;
}

template <class G>
int launch_tile(const GramPlan& plan, const GramArgs& args, int64_t n, cudaStream_t stream) {
  static_assert(G::kM >= 1 && G::kN % 2 == 0, "ldmatrix reads pairs of columns");
  auto kernel = gram_kernel<G>;
  if (const int error = allow_shared(kernel, static_cast<int>(plan.shared_bytes))) return error;
  FASTGEN_LAUNCH(kernel,
                 dim3(static_cast<unsigned>(n * plan.ranges), static_cast<unsigned>(plan.pairs)),
                 dim3(kThreads), plan.shared_bytes, stream, args);
  return launch_error();
}

template <class T>
int launch_gram(const GramPlan& plan, const GramArgs& args, int64_t n, bool channels_last,
                cudaStream_t stream) {
  if (plan.tile == 64)
    return channels_last ? launch_tile<GramTile<T, 64, true>>(plan, args, n, stream)
                         : launch_tile<GramTile<T, 64, false>>(plan, args, n, stream);
  return channels_last ? launch_tile<GramTile<T, 128, true>>(plan, args, n, stream)
                       : launch_tile<GramTile<T, 128, false>>(plan, args, n, stream);
}

}  // namespace
}  // namespace gpu

int64_t cuda_gram_matrix_workspace(int64_t n, int64_t c, int64_t pixels, bool channels_last,
                                   int dtype, const CudaLimits& limits) {
  const gpu::GramPlan plan = gpu::plan_of(n, c, pixels, channels_last, dtype, limits);
  return plan.ranges == 1 ? 0 : n * plan.pairs * plan.ranges * plan.tile * plan.tile;
}

int cuda_gram_matrix(const void* x, float* out, float* workspace, int64_t n, int64_t c,
                     int64_t pixels, bool channels_last, int dtype, const CudaLimits& limits,
                     void* stream) {
  const gpu::GramPlan plan = gpu::plan_of(n, c, pixels, channels_last, dtype, limits);
  const int vector = dtype == kFloat32 ? 4 : 8;
  gpu::GramArgs args{};
  args.x = x;
  args.partial = workspace;
  args.out = out;
  args.c = c;
  args.pixels = pixels;
  args.lines = plan.lines;
  args.lines_per_range = plan.lines_per_range;
  args.strips = static_cast<int>(plan.strips);
  args.pairs = static_cast<int>(plan.pairs);
  args.ranges = static_cast<int>(plan.ranges);
  args.vector =
      (channels_last ? c : pixels) % vector == 0 && reinterpret_cast<uintptr_t>(x) % 16 == 0;
  args.factor = static_cast<float>(1.0 / (static_cast<double>(c) * static_cast<double>(pixels)));
  const auto s = static_cast<cudaStream_t>(stream);
  int error;
  switch (dtype) {
    case kFloat32:
      error = gpu::launch_gram<float>(plan, args, n, channels_last, s);
      break;
    case kFloat16:
      error = gpu::launch_gram<gpu::half_t>(plan, args, n, channels_last, s);
      break;
    case kBFloat16:
      error = gpu::launch_gram<gpu::bhalf_t>(plan, args, n, channels_last, s);
      break;
    default:
      throw std::invalid_argument("gram_matrix: dtype " + std::to_string(dtype) +
                                  " does not exist");
  }
  if (error != 0 || plan.ranges == 1) return error;
  auto kernel = gpu::sum_kernel;
  const int64_t pieces = int64_t{plan.tile} * plan.tile / gpu::kSumLanes;
  FASTGEN_LAUNCH(kernel, dim3(static_cast<unsigned>(n * pieces), static_cast<unsigned>(plan.pairs)),
                 dim3(gpu::kSumLanes * gpu::kSumGroups), 4 * gpu::kSumLanes * gpu::kSumGroups, s,
                 args, plan.tile);
  return gpu::launch_error();
}

}  // namespace fastgen
