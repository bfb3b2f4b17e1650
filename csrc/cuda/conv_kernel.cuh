// Implicit matrix product of a convolution: output pixels x output channels, depth = channels x
// taps.
//
// A block computes kBM pixels (a rectangle of one image) by kBN output channels. For 64 bytes of
// input channels at a time it keeps the rectangle's whole neighbourhood (the halo) in shared memory
// and runs over the taps: a tap only changes the row addresses that ldmatrix gets, so an input
// element is loaded, and its norm computed, once per block instead of once per tap. Weights stream
// through a ring of kStages slots, the halo through a ring of two or more.
//
// With stride 2 the halo's rows and columns are separated by parity, so that neighbouring pixels
// stay neighbours in shared memory. In row mode (few channels) a tap is a whole kernel row: element
// kx * channels + c of position (row, output column).
#pragma once

#include "common.cuh"
#include "conv_geometry.h"
#include "conv_limits.h"
#include "conv_store.cuh"

namespace fastgen {
namespace gpu {

template <class T_, int kBM_, int kBN_, int kWarpsM_, int kWarpsN_>
struct ConvTile {
  using T = T_;
  static constexpr int kBM = kBM_, kBN = kBN_, kWarpsM = kWarpsM_, kWarpsN = kWarpsN_;
  static constexpr int kThreads = 32 * kWarpsM * kWarpsN;
  static constexpr int kM = kBM / kWarpsM / 16, kN = kBN / kWarpsN / 8;
  static constexpr int kVector = Chunk<T>::kSize;
  static constexpr int kDepth = 4 * kVector;  // channels of a step
};

// 16-byte piece `chunk` of a 64-byte row: eight neighbouring rows lie in different banks.
FASTGEN_DEVICE int swizzled(int row, int chunk) {
  return row * kRowBytes + ((chunk ^ (row >> 1 & 3)) << 4);
}

FASTGEN_DEVICE ConvBlock conv_block(const ConvArgs& p, int bm, int bn) {
  ConvBlock b;
  const int tiles = p.tiles_x * p.tiles_y, phases = p.phases * p.phases;
  const int index = blockIdx.x / phases, phase = blockIdx.x % phases;
  b.phase_y = phase / p.phases;
  b.phase_x = phase % p.phases;
  b.image = index / tiles;
  b.tile = index % tiles;
  b.tile_index = b.tile * phases + phase;
  b.row0 = b.tile / p.tiles_x * (bm >> p.tile_w_log);
  b.column0 = b.tile % p.tiles_x * ((1 << p.tile_w_log) - p.fold);
  b.rows = (p.out_height - b.phase_y + p.phases - 1) / p.phases;
  b.columns = (p.out_width - b.phase_x + p.phases - 1) / p.phases;
  b.n0 = blockIdx.y * bn;
  b.halo = (p.halo_rows * p.row_parities * p.table_columns * 4 + 127) & ~127;
  b.weights = b.halo + p.halo_buffers * p.positions * kRowBytes;
  b.x = tensor_of(p.io, p.x_tensor, p.x);
  b.y = const_cast<void*>(tensor_of(p.io, p.y_tensor, p.y));
  return b;
}

// table[position] = pixel of x that the halo shows there, -1 for a zero. Row mode: one entry per
// (row, kernel column of the tile).
FASTGEN_DEVICE void fill_table(const ConvArgs& p, const ConvBlock& b, const Shared& s,
                               int threads) {
  const int total = p.halo_rows * p.row_parities * p.table_columns;
  for (int i = threadIdx.x; i < total; i += threads) {
    const int row = i / p.table_columns, column = i % p.table_columns;
    const int y = (b.row0 + row % p.halo_rows) * p.stride + row / p.halo_rows;
    const int x = p.rows_of_taps
                      ? b.column0 * p.stride + column
                      : (b.column0 + column % p.halo_columns) * p.stride + column / p.halo_columns;
    const int at_y = y + p.phase_origin_y[b.phase_y], at_x = x + p.phase_origin_x[b.phase_x];
    int from_y, from_x;
    if (p.row_map) {  // what lies beyond belongs to a partial tile: computed, never stored
      from_y = at_y < p.map_rows ? load(p.row_map + at_y) : -1;
      from_x = at_x < p.map_columns ? load(p.column_map + at_x) : -1;
    } else {
      from_y = source_index(at_y, p.height, p.upsample, p.border);
      from_x = source_index(at_x, p.width, p.upsample, p.border);
    }
    s.store<int>(4 * i, from_y < 0 || from_x < 0 ? -1 : from_y * p.width + from_x);
  }
}

// A 16-byte piece of the halo on its way through the registers.
struct Staged {
  Vec16 x, residual;
  int offset = -1;   // in shared memory; -1: nothing
  int channel = -1;  // first channel if norm and residual are still to be applied
};

// Reads piece `index` of block `block` of channels into registers, 16 bytes of one position: four
// neighbouring threads read the 64 bytes of it.
template <class T>
FASTGEN_DEVICE Staged fetch_vector(const ConvArgs& p, const ConvBlock& b, const Shared& s,
                                   int index, int block, int halo) {
  Staged result;
  if (index >= 4 * p.positions) return result;
  const int position = index >> 2, chunk = index & 3;
  const int pixel = s.load<int>(4 * position);
  const int channel = (4 * block + chunk) * Chunk<T>::kSize;
  result.offset = halo + swizzled(position, chunk);
  result.x = result.residual = Vec16{};
  if (pixel >= 0 && channel < p.channels) {
    const int64_t at = element(b.image, p.x_image, pixel, p.x_pixel, channel, 1);
    result.channel = channel;
    result.x = load(reinterpret_cast<const Vec16*>(static_cast<const T*>(b.x) + at));
    if (p.load_residual)
      result.residual = load(reinterpret_cast<const Vec16*>(
          static_cast<const T*>(p.load_residual) +
          element(b.image, p.load_residual_image, pixel, p.load_residual_pixel, channel, 1)));
  }
  return result;
}

// The same for any layout and number of channels, element by element and down into the halo:
// neighbouring threads read neighbouring positions. Four elements at once: enough loads on their
// way, few enough registers beside the sums.
template <class T>
FASTGEN_DEVICE void gather(const ConvArgs& p, const ConvBlock& b, const Shared& s, int index,
                           int block, int halo) {
  constexpr int kVector = Chunk<T>::kSize, kGroup = 4;
  if (index >= 4 * p.positions) return;
  const int position = index % p.positions, chunk = index / p.positions;
  const int entry = p.rows_of_taps ? (position >> p.tile_w_log) * p.table_columns +
                                         (position & ((1 << p.tile_w_log) - 1)) * p.stride
                                   : position;
  const auto at = [&](int pixel, int channel) {
    return element(b.image, p.x_image, pixel, p.x_pixel, channel, p.x_channel);
  };
#pragma unroll 1
  for (int group = 0; group < kVector; group += kGroup) {
    const int first = (4 * block + chunk) * kVector + group;
    const int first_column = p.rows_of_taps ? first / p.channels : 0;
    float values[kGroup];
    int pixels[kGroup];
    const auto each = [&](auto&& use) {  // (element, channel, kernel column)
      int column = first_column, channel = first - first_column * p.channels;
#pragma unroll
      for (int e = 0; e < kGroup; ++e) {
        use(e, channel, column);
        ++channel;
        if (p.rows_of_taps && channel == p.channels) channel = 0, ++column;
      }
    };
    each([&](int e, int channel, int column) {
      const bool inside = p.rows_of_taps ? column < p.kernel_w : channel < p.channels;
      pixels[e] = inside ? s.load<int>(4 * (entry + column)) : -1;
    });
    const auto read = [&](auto type) {
      using Element = decltype(type);
      Element raw[kGroup];
      each([&](int e, int channel, int) {
        raw[e] = pixels[e] >= 0 ? load(static_cast<const Element*>(b.x) + at(pixels[e], channel))
                                : Element{};
      });
#pragma unroll
      for (int e = 0; e < kGroup; ++e) values[e] = to_float(raw[e]);
    };
    if (p.x_kind == kOwn) {
      read(T{});
    } else {
      if (p.x_kind == kByte) {
        read(uint8_t{});
      } else {
        read(float{});
      }
      const float gain = load(&p.io->gain), low = load(&p.io->low);
#pragma unroll
      for (int e = 0; e < kGroup; ++e) values[e] = pixels[e] >= 0 ? values[e] * gain + low : 0.0f;
    }
    if (p.scale) {
      const int64_t image = b.image * p.scale_image;
      each([&](int e, int channel, int) {
        if (pixels[e] >= 0)
          values[e] = values[e] * load(p.scale + image + channel) + load(p.shift + image + channel);
      });
    }
#pragma unroll
    for (int e = 0; e < kGroup; ++e) values[e] = leaky(values[e], p.load_slope);
    if (p.load_residual)
      each([&](int e, int channel, int) {
        if (pixels[e] >= 0)
          values[e] += to_float(load(static_cast<const T*>(p.load_residual) +
                                     element(b.image, p.load_residual_image, pixels[e],
                                             p.load_residual_pixel, channel, p.x_channel)));
      });
    const int to = halo + swizzled(position, chunk) + group * int{sizeof(T)};
    if constexpr (sizeof(T) == 4) {
      s.store(to, Chunk<T>::pack(values));
    } else {
      const auto pair = [&](int e) {
        return from_float(values[e], T{}).bits |
               static_cast<uint32_t>(from_float(values[e + 1], T{}).bits) << 16;
      };
      s.store(to, Vec8{{pair(0), pair(2)}});
    }
  }
}

// Applies norm and residual to what `fetch_vector` read and puts it into the halo.
template <class T>
FASTGEN_DEVICE void settle(const ConvArgs& p, const ConvBlock& b, const Shared& s, Staged& staged) {
  constexpr int kVector = Chunk<T>::kSize;
  if (staged.offset < 0) return;
  if (staged.channel >= 0) {
    float x[kVector];
    Chunk<T>::unpack(staged.x, x);
    if (p.scale) {
      const int64_t i = b.image * p.scale_image + staged.channel;
#pragma unroll
      for (int e = 0; e < kVector; e += 4) {
        const Vec16 scale = load(reinterpret_cast<const Vec16*>(p.scale + i + e));
        const Vec16 shift = load(reinterpret_cast<const Vec16*>(p.shift + i + e));
#pragma unroll
        for (int k = 0; k < 4; ++k)
          x[e + k] = x[e + k] * bits_to_float(scale.word[k]) + bits_to_float(shift.word[k]);
      }
    }
#pragma unroll
    for (int e = 0; e < kVector; ++e) x[e] = leaky(x[e], p.load_slope);
    if (p.load_residual) {
      float r[kVector];
      Chunk<T>::unpack(staged.residual, r);
#pragma unroll
      for (int e = 0; e < kVector; ++e) x[e] += r[e];
    }
    staged.x = Chunk<T>::pack(x);
  }
  s.store(staged.offset, staged.x);
}

template <class T>
FASTGEN_DEVICE void copy_halo(const ConvArgs& p, const ConvBlock& b, const Shared& s, int block,
                              int halo, int threads) {
  const T* image = static_cast<const T*>(b.x) + b.image * p.x_image;
#pragma unroll 2
  for (int i = threadIdx.x; i < 4 * p.positions; i += threads) {
    const int position = i >> 2, chunk = i & 3;
    const int pixel = s.load<int>(4 * position);
    const int channel = (4 * block + chunk) * Chunk<T>::kSize;
    const bool valid = pixel >= 0 && channel < p.channels;
    const T* from = valid ? image + pixel * p.x_pixel + channel : static_cast<const T*>(b.x);
    cp_async16(s, halo + swizzled(position, chunk), from, valid);
  }
}

template <class Tile, int kMinBlocks>
__global__ void __launch_bounds__(Tile::kThreads, kMinBlocks) conv_kernel(const ConvArgs p) {
  using T = typename Tile::T;
  constexpr int kM = Tile::kM, kN = Tile::kN;
  const Shared s = shared_memory();
  const ConvBlock b = conv_block(p, Tile::kBM, Tile::kBN);
  const int thread = threadIdx.x, lane = thread & 31, warp = thread >> 5;
  const int warp_m = warp / Tile::kWarpsN, warp_n = warp % Tile::kWarpsN;
  const int halo_bytes = p.positions * kRowBytes;
  const int steps = p.blocks * p.taps;
  // What needs no arithmetic on load goes straight to shared memory.
  const bool direct = p.vector_x && !p.scale && !p.load_residual && p.load_slope == 1.0f;

  fill_table(p, b, s, Tile::kThreads);
  barrier();

  // This thread's pieces of a step's weights stay at the same place of every step.
  constexpr int kPieces = (4 * Tile::kBN + Tile::kThreads - 1) / Tile::kThreads;
  constexpr bool kEven = 4 * Tile::kBN % Tile::kThreads == 0;
  const int64_t step_bytes = int64_t{kRowBytes} * p.padded_outputs;
  const unsigned char* weights_from = static_cast<const unsigned char*>(p.weights) +
                                      (b.phase_y * p.phases + b.phase_x) * (steps * step_bytes) +
                                      int64_t{kRowBytes} * b.n0 + 16 * thread;
  const int weights_to = b.weights + swizzled(thread >> 2, thread & 3);
  const auto load_weights = [&](int slot) {
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      const int n = (i * Tile::kThreads + thread) >> 2;
      if (!kEven && n >= Tile::kBN) continue;
      const bool valid = b.n0 + n < p.padded_outputs;
      cp_async16(s, weights_to + slot * (Tile::kBN * kRowBytes) + i * (16 * Tile::kThreads),
                 valid ? weights_from + i * (16 * Tile::kThreads) : p.weights, valid);
    }
    weights_from += step_bytes;
  };

  // Halo blocks that are on their way before the first step.
  for (int block = 0; block < p.ahead; ++block) {
    if (direct) {
      copy_halo<T>(p, b, s, block, b.halo + block * halo_bytes, Tile::kThreads);
    } else {
      for (int i = thread; i < 4 * p.positions; i += Tile::kThreads) {
        const int halo = b.halo + block * halo_bytes;
        if (!p.vector_x) {
          gather<T>(p, b, s, i, block, halo);
          continue;
        }
        Staged staged = fetch_vector<T>(p, b, s, i, block, halo);
        settle<T>(p, b, s, staged);
      }
    }
  }
#pragma unroll
  for (int step = 0; step < kStages - 1; ++step) {
    if (step < steps) load_weights(step);
    cp_async_commit();
  }

  // Rows of the operands that this lane names to ldmatrix.
  int a_position[kM];
  const int a_chunk = lane >> 4;
  const int halo_row = p.rows_of_taps ? 1 << p.tile_w_log : p.halo_columns * p.column_parities;
#pragma unroll
  for (int i = 0; i < kM; ++i) {
    const int m = (warp_m * kM + i) * 16 + (lane & 15);
    a_position[i] = (m >> p.tile_w_log) * halo_row + (m & ((1 << p.tile_w_log) - 1));
  }
  const int b_row = warp_n * kN * 8 + (kN > 1 ? (lane >> 4) * 8 : 0) + (lane & 7);
  const int b_chunk = lane >> 3 & 1;

  WarpTile<T, kM, kN> tile;
  tile.clear();

  const int shift = p.stride - 1;  // stride 1 or 2
  int tap_y = 0, tap_x = 0, tap = 0, block = 0, buffer = 0, next_buffer = p.ahead % p.halo_buffers;
  const int pieces = 4 * p.positions;
  const int share = (pieces + Tile::kThreads * p.taps - 1) / (Tile::kThreads * p.taps);
  for (int step = 0; step < steps; ++step) {
    cp_async_wait<kStages - 2>();
    barrier();
    if (step + kStages - 1 < steps) load_weights((step + kStages - 1) % kStages);
    const int next = block + p.ahead;
    const bool more = next < p.blocks;
    const int next_halo = b.halo + next_buffer * halo_bytes;
    if (more && direct && tap == 0) copy_halo<T>(p, b, s, next, next_halo, Tile::kThreads);
    cp_async_commit();
    // Otherwise every tap brings its share of the next block through the registers. The first
    // vector is on its way during the product; gathered elements would cost registers there.
    const int first = tap * share * Tile::kThreads + thread;
    Staged staged;
    if (more && !direct && p.vector_x) staged = fetch_vector<T>(p, b, s, first, next, next_halo);

    const int halo = b.halo + buffer * halo_bytes;
    const int weights = b.weights + step % kStages * (Tile::kBN * kRowBytes);
    const int offset = ((tap_y & shift) * p.halo_rows + (tap_y >> shift)) * halo_row +
                       (p.rows_of_taps ? 0 : (tap_x & shift) * p.halo_columns + (tap_x >> shift));
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      uint32_t fa[kM][4], fb[kN][2];
#pragma unroll
      for (int i = 0; i < kM; ++i)
        ldmatrix4(fa[i], s, halo + swizzled(a_position[i] + offset, 2 * half + a_chunk));
      if constexpr (kN == 1) {
        ldmatrix2(fb[0], s, weights + swizzled(b_row, 2 * half + b_chunk));
      } else {
#pragma unroll
        for (int j = 0; j < kN; j += 2) {
          uint32_t pair[4];
          ldmatrix4(pair, s, weights + swizzled(b_row + 8 * j, 2 * half + b_chunk));
          fb[j][0] = pair[0], fb[j][1] = pair[1];
          fb[j + 1][0] = pair[2], fb[j + 1][1] = pair[3];
        }
      }
      tile.multiply(fa, fb);
    }

    if (more && !direct) {
      for (int i = 0; i < share; ++i) {
        const int index = first + i * Tile::kThreads;
        if (!p.vector_x) {
          gather<T>(p, b, s, index, next, next_halo);
          continue;
        }
        if (i > 0) staged = fetch_vector<T>(p, b, s, index, next, next_halo);
        settle<T>(p, b, s, staged);
      }
    }
    ++tap;
    if (p.rows_of_taps || ++tap_x == p.kernel_w) {
      tap_x = 0;
      ++tap_y;
    }
    if (tap == p.taps) {
      tap = tap_y = 0;
      ++block;
      buffer = buffer + 1 == p.halo_buffers ? 0 : buffer + 1;
      next_buffer = next_buffer + 1 == p.halo_buffers ? 0 : next_buffer + 1;
    }
  }

  // The tile through shared memory: whole rows for the stores, whole columns for the statistics.
  cp_async_wait<0>();
  barrier();
  const int row = p.vector_y ? Tile::kBN + kTileSkew : Tile::kBN + 1;
#pragma unroll
  for (int i = 0; i < kM; ++i) {
#pragma unroll
    for (int j = 0; j < kN; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int m = (warp_m * kM + i) * 16 + (lane >> 2) + 8 * (e >> 1);
        const int n = (warp_n * kN + j) * 8 + 2 * (lane & 3) + (e & 1);
        s.store(b.halo + 4 * (m * row + n), tile.c[i][j][e]);
      }
    }
  }
  barrier();
  if (p.fold) {
    store_folded<Tile>(p, b, s, row);
    return;
  }
  store_tile<Tile>(p, b, s, row);
  if (p.partial) reduce_tile<Tile>(p, b, s, row);
}

}  // namespace gpu
}  // namespace fastgen
