// Chooses how a convolution is cut into blocks, from sizes alone.
#include "conv_plan.h"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>

#include "conv_limits.h"

namespace fastgen {
namespace gpu {
namespace {

int64_t up(int64_t a, int64_t b) { return (a + b - 1) / b; }

int log2_of(int x) {
  int log = 0;
  while (1 << (log + 1) <= x) ++log;
  return log;
}

// Geometry of the rectangle of `pixels` pixels that is 2^width_log wide.
void set_rectangle(ConvArgs& a, int pixels, int width_log) {
  const int width = 1 << width_log, height = pixels >> width_log;
  a.tile_w_log = width_log;
  a.tiles_x = static_cast<int>(up(up(a.out_width, a.phases), width - a.fold));
  a.tiles_y = static_cast<int>(up(up(a.out_height, a.phases), height));
  a.row_parities = std::min(a.stride, a.kernel_h);
  a.halo_rows = height + (a.kernel_h - 1) / a.stride;
  if (a.rows_of_taps) {
    a.column_parities = 1;
    a.halo_columns = width;
    a.table_columns = (width - 1) * a.stride + a.kernel_w;
  } else {
    a.column_parities = std::min(a.stride, a.kernel_w);
    a.halo_columns = width + (a.kernel_w - 1) / a.stride;
    a.table_columns = a.halo_columns * a.column_parities;
  }
  a.positions = a.halo_rows * a.row_parities * a.halo_columns * a.column_parities;
}

int64_t shared_bytes(const ConvArgs& a, const TileShape& tile) {
  const int64_t table = up(int64_t{4} * a.halo_rows * a.row_parities * a.table_columns, 128) * 128;
  const int64_t ring = int64_t{kRowBytes} * (static_cast<int64_t>(a.halo_buffers) * a.positions +
                                             kStages * tile.outputs);
  const int64_t out = int64_t{4} * tile.pixels * (tile.outputs + kTileSkew) + 12 * tile.threads;
  return table + std::max(ring, out);
}

// Expected cycles of the whole launch: for the blocks that share a multiprocessor, the larger of
// their products, their traffic and a latency that one block alone cannot hide.
double cycles(const ConvArgs& a, const TileShape& tile, int64_t blocks, int64_t shared,
              const CudaLimits& limits, int dtype) {
  const double rate = dtype == kFloat32 ? 512.0 / 3 : 1024;  // multiply-adds per cycle
  const double depth = dtype == kFloat32 ? 16 : 32;
  const double together = static_cast<double>(
      std::max<int64_t>(1, std::min<int64_t>({limits.shared_bytes / shared, 2048 / tile.threads,
                                              65536 / (tile.threads * 112)})));
  const double per_unit = static_cast<double>(up(blocks, limits.multiprocessors));
  const double resident = std::min(per_unit, together), turns = per_unit / resident;
  const double product = resident * tile.pixels * tile.outputs * depth / rate;
  const double bytes = kRowBytes * (tile.outputs + static_cast<double>(a.positions) / a.taps);
  const double step = std::max({product, resident * bytes / 40, 250.0}) + 30 * resident;
  return turns * (a.blocks * static_cast<double>(a.taps) * step + 3000 +
                  resident * tile.pixels * tile.outputs / 16);
}

void check(bool good, const std::string& what) {
  if (!good) throw std::invalid_argument("conv: " + what);
}

}  // namespace

void choose_tile(int64_t n, const CudaLimits& limits, int tile, int width_log, int dtype,
                 ConvArgs* args, CudaConvPlan* plan) {
  constexpr int64_t kMax = std::numeric_limits<int32_t>::max();
  check(limits.multiprocessors > 0 && limits.shared_bytes > 0, "the device limits are missing");
  check(tile >= -1 && tile < kCudaConvTiles, "tile " + std::to_string(tile) + " does not exist");
  ConvArgs& a = *args;
  const int depth = dtype == kFloat32 ? 16 : 32;
  a.taps = a.rows_of_taps ? a.kernel_h : a.kernel_h * a.kernel_w;
  a.blocks = static_cast<int>(up(a.rows_of_taps ? a.channels * a.kernel_w : a.channels, depth));
  // A copy that is issued with the first tap of a block is complete kStages - 1 steps later.
  a.halo_buffers = static_cast<int>(std::min<int64_t>(a.blocks, 1 + up(kStages - 1, a.taps)));
  a.ahead = a.halo_buffers == a.blocks ? a.blocks : a.halo_buffers - 1;

  double best = std::numeric_limits<double>::infinity();
  int64_t least = kMax;
  ConvArgs chosen = a;
  for (int i = 0; i < kCudaConvTiles; ++i) {
    if (tile >= 0 && i != tile) continue;
    const TileShape& shape = kTileShapes[i];
    double here = std::numeric_limits<double>::infinity();
    for (int log = 3; log <= log2_of(shape.pixels); ++log) {
      if (width_log >= 0 && log != width_log) continue;
      // The sums of a pixel's columns must meet in one tile.
      if (a.fold && (1 << log <= 2 * a.fold || shape.outputs < a.outputs)) continue;
      set_rectangle(a, shape.pixels, log);
      const int64_t shared = shared_bytes(a, shape);
      least = std::min(least, shared);
      if (shared > limits.shared_bytes) continue;
      const int64_t x = n * a.tiles_x * a.tiles_y * a.phases * a.phases;
      const int64_t y = up(a.outputs, shape.outputs);
      if (x > kMax || y > 65535) continue;
      const double cost = cycles(a, shape, x * y, shared, limits, dtype);
      if (cost < here && cost < best) {
        here = best = cost;
        chosen = a;
        plan->tile = i;
        plan->width_log = log;
        plan->blocks_x = x;
        plan->blocks_y = y;
        plan->threads = shape.threads;
        plan->shared_bytes = static_cast<int>(shared);
        plan->workspace_floats = 3 * n * a.outputs * a.tiles_x * a.tiles_y * a.phases * a.phases;
      }
    }
  }
  check(best < std::numeric_limits<double>::infinity(),
        "kernel " + std::to_string(a.kernel_h) + "x" + std::to_string(a.kernel_w) + " stride " +
            std::to_string(a.stride) + " needs " + std::to_string(least) +
            " bytes of shared memory, the device has " + std::to_string(limits.shared_bytes) +
            "; use impl='ref'");
  a = chosen;
}

CudaConvPlan plan_conv(const CudaConv& c, int64_t n, int64_t height, int64_t width,
                       const CudaLimits& limits, int tile, ConvArgs* args) {
  constexpr int64_t kMax = std::numeric_limits<int32_t>::max();
  check(n >= 1 && height >= 1 && width >= 1 && height * width <= kMax / 8 && height <= kMax / 8 &&
            width <= kMax / 8,
        "an image of " + std::to_string(height) + "x" + std::to_string(width) +
            " is outside 1..2^28 pixels; run it in bands");

  CudaConvPlan plan;
  const int64_t full_height = height * c.upsample + 2 * c.padding;
  const int64_t full_width = width * c.upsample + 2 * c.padding;
  if (c.phases == 1) {
    plan.out_height = (full_height - c.kernel_h) / c.stride + 1;
    plan.out_width = (full_width - c.kernel_w) / c.stride + 1;
    check(full_height >= c.kernel_h && full_width >= c.kernel_w,
          "the kernel is larger than the padded input");
  } else {
    plan.out_height = full_height - c.full_kernel_h + 1;
    plan.out_width = full_width - c.full_kernel_w + 1;
    check(plan.out_height >= 1 && plan.out_width >= 1,
          "the kernel is larger than the padded input");
  }

  ConvArgs a{};
  a.height = static_cast<int>(height);
  a.width = static_cast<int>(width);
  a.out_height = static_cast<int>(plan.out_height);
  a.out_width = static_cast<int>(plan.out_width);
  if (c.kernel_h == 1 && c.kernel_w == 1 && c.stride == 1 && c.upsample == 1 && c.padding == 0) {
    a.width = a.out_width = a.height * a.width;  // every pixel for itself: one row of them
    a.height = a.out_height = 1;
  }
  a.channels = c.inputs;
  a.outputs = c.outputs;
  a.padded_outputs = static_cast<int>(up(c.outputs, 8) * 8);
  a.kernel_h = c.kernel_h;
  a.kernel_w = c.kernel_w;
  a.stride = c.stride;
  a.phases = c.phases;
  a.upsample = c.phases == 2 ? 1 : c.upsample;
  a.border = c.border;
  for (int r = 0; r < 2; ++r)  // floor of the division: a phase reads the small map
    a.phase_origin_y[r] = a.phase_origin_x[r] = c.phases == 2 ? (r - c.padding) >> 1 : -c.padding;
  a.rows_of_taps = c.row_mode;
  a.slope = c.slope;
  a.load_slope = c.load_slope;
  choose_tile(n, limits, tile, -1, c.dtype, &a, &plan);
  if (args) *args = a;
  return plan;
}

}  // namespace gpu

CudaConvPlan cuda_conv_plan(const CudaConv& conv, int64_t n, int64_t height, int64_t width,
                            const CudaLimits& limits, int tile) {
  return gpu::plan_conv(conv, n, height, width, limits, tile, nullptr);
}

}  // namespace fastgen
