// The end of a convolution's block: its sums, in shared memory, to the output and to the statistics
// of its tile.
#pragma once

#include "common.cuh"
#include "conv_geometry.h"
#include "conv_limits.h"
#include "pixels.cuh"

namespace fastgen {
namespace gpu {

// Where a block is and where its shared memory begins.
struct ConvBlock {
  int64_t image;
  int phase_y, phase_x, tile, tile_index;  // tile_index counts the phases, too
  int row0, column0;                       // first output pixel, in the phase's own grid
  int rows, columns;                       // of the phase
  int n0;                                  // first output channel
  int halo, weights;                       // byte offsets; the table is at 0
  const void* x;
  void* y;
};

// Stores a tile whose outputs are sums of single kernel columns: a pixel's are those of its
// neighbours on the right. At most four outputs, most often a photo's three.
template <class Tile>
FASTGEN_DEVICE void store_folded(const ConvArgs& p, const ConvBlock& b, const Shared& s, int row) {
  using T = typename Tile::T;
  constexpr int kMost = 4;
  const int width = 1 << p.tile_w_log, outputs = p.outputs / (p.fold + 1);
  for (int m = threadIdx.x; m < Tile::kBM; m += Tile::kThreads) {
    const int column = m & (width - 1);
    const int y = b.row0 + (m >> p.tile_w_log), x = b.column0 + column;
    if (column >= width - p.fold || y >= b.rows || x >= b.columns) continue;
    float v[kMost];
#pragma unroll
    for (int o = 0; o < kMost; ++o) {
      v[o] = 0.0f;
      if (o >= outputs) continue;
      for (int k = 0; k <= p.fold; ++k)
        v[o] += s.load<float>(b.halo + 4 * ((m + k) * row + o * (p.fold + 1) + k));
      v[o] = activate(leaky(v[o] + load(p.bias + o), p.slope), p.activation);
    }
    if (p.is_image) {
      if (y >= p.crop_rows || x >= p.crop_columns) continue;
      const float rgb[3] = {v[0], v[1], v[2]};
      const int64_t at =
          element(b.image, p.y_image, int64_t{y} * p.crop_columns + x, p.y_pixel, 0, 0);
      if (p.y_kind == kByte)
        store_pixel<uint8_t>(*p.io, b.y, at, p.y_channel, rgb);
      else
        store_pixel<float>(*p.io, b.y, at, p.y_channel, rgb);
      continue;
    }
#pragma unroll
    for (int o = 0; o < kMost; ++o) {
      if (o >= outputs) continue;
      const int64_t at =
          element(b.image, p.y_image, int64_t{y} * p.out_width + x, p.y_pixel, o, p.y_channel);
      if (p.y_kind == kFloat)
        store(static_cast<float*>(b.y) + at, v[o]);
      else
        store(static_cast<T*>(b.y) + at, from_float(v[o], T{}));
    }
  }
}

// Stores a tile of fp32 sums (rows of `row` floats at b.halo) with bias, residual and activation.
template <class Tile>
FASTGEN_DEVICE void store_tile(const ConvArgs& p, const ConvBlock& b, const Shared& s, int row) {
  using T = typename Tile::T;
  constexpr int kVector = Tile::kVector;
  const int width = 1 << p.tile_w_log;
  int row_at = 0, column_at = 0;
  const auto pixel_of = [&](int m, bool& valid) {
    const int y = b.row0 + (m >> p.tile_w_log), x = b.column0 + (m & (width - 1));
    valid = y < b.rows && x < b.columns;
    row_at = y * p.phases + b.phase_y;
    column_at = x * p.phases + b.phase_x;
    return static_cast<int64_t>(row_at) * p.out_width + column_at;
  };
  const auto residual_of = [&](int64_t pixel, int channel) {
    if (p.residual_side)
      pixel = compact(row_at, p.out_height, p.residual_side) * p.residual_side +
              compact(column_at, p.out_width, p.residual_side);
    return element(b.image, p.residual_image, pixel, p.residual_pixel, channel, p.y_channel);
  };
  T* y = static_cast<T*>(b.y);
  const T* residual = static_cast<const T*>(p.residual);
  if (p.is_image) {  // three outputs
    for (int m = threadIdx.x; m < Tile::kBM; m += Tile::kThreads) {
      bool valid;
      pixel_of(m, valid);
      if (!valid || row_at >= p.crop_rows || column_at >= p.crop_columns) continue;
      float rgb[3];
#pragma unroll
      for (int c = 0; c < 3; ++c) {
        const float v = s.load<float>(b.halo + 4 * (m * row + c)) + load(p.bias + c);
        rgb[c] = activate(leaky(v, p.slope), p.activation);
      }
      const int64_t at = element(b.image, p.y_image, int64_t{row_at} * p.crop_columns + column_at,
                                 p.y_pixel, 0, 0);
      if (p.y_kind == kByte)
        store_pixel<uint8_t>(*p.io, b.y, at, p.y_channel, rgb);
      else
        store_pixel<float>(*p.io, b.y, at, p.y_channel, rgb);
    }
    return;
  }
  if (p.vector_y) {
    constexpr int kChunks = Tile::kBN / kVector;
#pragma unroll 4
    for (int i = threadIdx.x; i < Tile::kBM * kChunks; i += Tile::kThreads) {
      const int m = i / kChunks, n = i % kChunks * kVector, channel = b.n0 + n;
      bool valid;
      const int64_t pixel = pixel_of(m, valid);
      if (!valid || channel >= p.outputs) continue;
      float v[kVector];
#pragma unroll
      for (int e = 0; e < kVector; e += 4) {
        const Vec16 sum = s.load<Vec16>(b.halo + 4 * (m * row + n + e));
        const Vec16 bias = load(reinterpret_cast<const Vec16*>(p.bias + channel + e));
#pragma unroll
        for (int k = 0; k < 4; ++k)
          v[e + k] = bits_to_float(sum.word[k]) + bits_to_float(bias.word[k]);
      }
      if (residual) {
        float r[kVector];
        Chunk<T>::unpack(
            load_once(reinterpret_cast<const Vec16*>(residual + residual_of(pixel, channel))), r);
#pragma unroll
        for (int e = 0; e < kVector; ++e) v[e] += r[e];
      }
#pragma unroll
      for (int e = 0; e < kVector; ++e) v[e] = leaky(v[e], p.slope);
      if (p.activation) {
#pragma unroll
        for (int e = 0; e < kVector; ++e) v[e] = activate(v[e], p.activation);
      }
      store(reinterpret_cast<Vec16*>(
                y + element(b.image, p.y_image, pixel, p.y_pixel, channel, p.y_channel)),
            Chunk<T>::pack(v));
    }
    return;
  }
#pragma unroll 4
  for (int i = threadIdx.x; i < Tile::kBM * Tile::kBN; i += Tile::kThreads) {
    const bool channels_last = p.y_channel == 1;  // neighbouring threads write neighbours
    const int m = channels_last ? i / Tile::kBN : i % Tile::kBM;
    const int n = channels_last ? i % Tile::kBN : i / Tile::kBM;
    bool valid;
    const int64_t pixel = pixel_of(m, valid);
    if (!valid || b.n0 + n >= p.outputs) continue;
    float v = s.load<float>(b.halo + 4 * (m * row + n)) + load(p.bias + b.n0 + n);
    if (residual) v += to_float(load_once(residual + residual_of(pixel, b.n0 + n)));
    v = activate(leaky(v, p.slope), p.activation);
    const int64_t at = element(b.image, p.y_image, pixel, p.y_pixel, b.n0 + n, p.y_channel);
    if (p.y_kind == kFloat)
      store(static_cast<float*>(b.y) + at, v);
    else
      store(y + at, from_float(v, T{}));
  }
}

// Count, mean and sum of squared differences of every channel of the tile. Two passes over shared
// memory, so that a large mean costs no digits; then Chan's formula, in a fixed order.
template <class Tile>
FASTGEN_DEVICE void reduce_tile(const ConvArgs& p, const ConvBlock& b, const Shared& s, int row) {
  constexpr int kGroups = Tile::kThreads / Tile::kBN;
  const int n = threadIdx.x % Tile::kBN, group = threadIdx.x / Tile::kBN;
  const int scratch = b.halo + 4 * Tile::kBM * (Tile::kBN + kTileSkew);
  const int width = 1 << p.tile_w_log;
  const float bias = b.n0 + n < p.outputs ? load(p.bias + b.n0 + n) : 0.0f;
  float count = 0, sum = 0, squares = 0;
  const auto each = [&](auto&& use) {
    for (int m = group; m < Tile::kBM; m += kGroups)
      if (b.row0 + (m >> p.tile_w_log) < b.rows && b.column0 + (m & (width - 1)) < b.columns)
        use(s.load<float>(b.halo + 4 * (m * row + n)) + bias);
  };
  each([&](float v) {
    count += 1.0f;
    sum += v;
  });
  float mean = count > 0 ? sum / count : 0.0f;
  each([&](float v) { squares += (v - mean) * (v - mean); });
  const int mine = scratch + 12 * static_cast<int>(threadIdx.x);
  s.store(mine, count);
  s.store(mine + 4, mean);
  s.store(mine + 8, squares);
  barrier();
  if (group != 0 || b.n0 + n >= p.outputs) return;
  for (int g = 1; g < kGroups; ++g) {
    const int other = mine + 12 * g * Tile::kBN;
    const float their_count = s.load<float>(other);
    if (their_count == 0) continue;
    const float difference = s.load<float>(other + 4) - mean, total = count + their_count;
    mean += difference * (their_count / total);
    squares += s.load<float>(other + 8) + difference * difference * (count * their_count / total);
    count = total;
  }
  const int64_t tiles = static_cast<int64_t>(p.tiles_x) * p.tiles_y * p.phases * p.phases;
  float* to = p.partial + 3 * ((b.image * p.outputs + b.n0 + n) * tiles + b.tile_index);
  store(to, count);
  store(to + 1, mean);
  store(to + 2, squares);
}

}  // namespace gpu
}  // namespace fastgen
