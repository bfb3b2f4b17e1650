// Pooling, 16 channels at a time. Included inside an instruction set's anonymous namespace.
#pragma once
#include "vec.inl"

template <bool MAX>
inline vf pool_join(vf acc, vf x) {
  if (!MAX) return acc + x;
  return select((x > acc) | (x != x), x, acc);  // NaN passes through, and stays
}

// Outputs [first, last) of windows that are K columns wide; 0: of any width, cut off at the sides.
template <bool MAX, int K>
void pool_some(const PoolArgs& a, int64_t first, int64_t last) {
  for (int64_t x = first; x < last; ++x) {
    const int64_t left = x * a.stride - a.padding, right = left + a.kernel;
    const int64_t x0 = left > 0 ? left : 0, x1 = right < a.width ? right : a.width;
    const int64_t pixels = x1 > x0 ? (x1 - x0) * a.count : 0;
    const float share = MAX || pixels == 0 ? 1.0f : 1.0f / static_cast<float>(pixels);
    vf acc[VPB];
    for (int j = 0; j < VPB; ++j) acc[j] = splat(MAX ? -__builtin_inff() : 0.0f);
    for (int r = 0; r < a.count; ++r) {
      const float* from = a.rows[r] + x0 * kBlock;
      if (K) {
#pragma GCC unroll 3
        for (int q = 0; q < K; ++q)
          for (int j = 0; j < VPB; ++j)
            acc[j] = pool_join<MAX>(acc[j], load(from + q * kBlock + j * VL));
      } else {
        for (int64_t q = x0; q < x1; ++q, from += kBlock)
          for (int j = 0; j < VPB; ++j) acc[j] = pool_join<MAX>(acc[j], load(from + j * VL));
      }
    }
    for (int j = 0; j < VPB; ++j) store(a.out + x * kBlock + j * VL, acc[j] * share);
  }
}

template <bool MAX>
void pool_row(const PoolArgs& a) {
  // Those whose windows lie inside.
  int64_t first = (a.padding + a.stride - 1) / a.stride;
  int64_t last =
      a.width + a.padding < a.kernel ? 0 : (a.width + a.padding - a.kernel) / a.stride + 1;
  last = last < a.outputs ? last : a.outputs;
  first = first < last ? first : last;
  pool_some<MAX, 0>(a, 0, first);
  a.kernel == 2   ? pool_some<MAX, 2>(a, first, last)
  : a.kernel == 3 ? pool_some<MAX, 3>(a, first, last)
                  : pool_some<MAX, 0>(a, first, last);
  pool_some<MAX, 0>(a, last, a.outputs);
}

void pool(const PoolArgs& a) { a.max ? pool_row<true>(a) : pool_row<false>(a); }

// Adds `count` pixels of 16 channels to double sums.
void pool_sum(const float* x, int64_t count, double* total) {
  typedef float part __attribute__((vector_size(32), aligned(4), may_alias));
  typedef double sums __attribute__((vector_size(64)));
  constexpr int APART = 4;  // sums of every fourth pixel, so that none waits for another
  sums low[APART] = {}, high[APART] = {};
  const auto add = [&](int at) {
    const part* pixel = reinterpret_cast<const part*>(x + at * kBlock);
    low[at] += __builtin_convertvector(pixel[0], sums);
    high[at] += __builtin_convertvector(pixel[1], sums);
  };
  int64_t i = 0;
  for (; i + APART <= count; i += APART, x += APART * kBlock) {
#pragma GCC unroll 4
    for (int at = 0; at < APART; ++at) add(at);
  }
  for (; i < count; ++i, x += kBlock) add(0);
  const sums l = (low[0] + low[1]) + (low[2] + low[3]);
  const sums h = (high[0] + high[1]) + (high[2] + high[3]);
  for (int k = 0; k < 8; ++k) total[k] += l[k], total[8 + k] += h[k];
}
