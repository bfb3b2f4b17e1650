// Linear layers: images by outputs, with float32 factors or pairs of bfloat16. Included inside an
// instruction set's anonymous namespace.
#pragma once
#include "micro_bf16.inl"

// Few images would wait for their own sums: so many vectors of them, for different inputs, hide it.
constexpr int kLinearSums = VL == 16 ? 16 : 8;
// Long runs of weights for one image are asked for so many floats ahead.
constexpr int kLinearAhead = 512, kLinearLong = 1024;

// What a tile of sums becomes in memory.
template <class T>
void linear_store(const LinearArgs& a, const float* tile, int images, int lanes, T* out) {
  const bool leaky = a.act == kActNone || a.act == kActLeaky;
  const float slope = a.act == kActNone ? 1.0f : a.slope;
  for (int p = 0; p < images; ++p, tile += lanes, out += a.out_row)
    for (int j = 0; j < lanes; j += VL) {
      const vf x = load(tile + j);
      store_as(out + j, leaky ? (x < 0 ? x * slope : x) : activate(x, a.act, a.slope));
    }
}

inline vf linear_product(vf sum, const float* x, const float* w) {
  return sum + splat(*x) * load(w);
}
inline vf linear_product(vf sum, const bf16* x, const float* w) {
  return dot(sum, splat_pair(x), load_pairs(reinterpret_cast<const int32_t*>(w)));
}

// P images x NB blocks of 16 outputs stay in registers over all inputs of the call.
template <class X, int P, int NB>
void linear_tile(const LinearArgs& a, int64_t image, int64_t block) {
  constexpr int J = NB * VPB, PAIR = 4 / sizeof(X);
  constexpr int U = P * J * 8 <= kLinearSums   ? 8
                    : P * J * 4 <= kLinearSums ? 4
                    : P * J * 2 <= kLinearSums ? 2
                                               : 1;
  const float* from = a.sums + image * a.sums_row + block * kBlock;
  const float* bias = a.bias + block * kBlock;
  vf acc[U][P][J];
#pragma GCC unroll 8
  for (int u = 0; u < U; ++u)
#pragma GCC unroll 32
    for (int p = 0; p < P; ++p)
#pragma GCC unroll 8
      for (int j = 0; j < J; ++j)
        acc[u][p][j] = u         ? vf{}
                       : a.first ? load(bias + j * VL)
                                 : load(from + p * a.sums_row + j * VL);
  const X* x = static_cast<const X*>(a.x) + image * kLinearRow;
  const float* w = static_cast<const float*>(a.weights) + block * a.block;
  const int words = (a.inputs + PAIR - 1) / PAIR;
  const auto step = [&](int u, int k) {
#pragma GCC unroll 32
    for (int p = 0; p < P; ++p)
#pragma GCC unroll 8
      for (int j = 0; j < J; ++j)
        acc[u][p][j] = linear_product(acc[u][p][j], x + p * kLinearRow + k * PAIR,
                                      w + j / VPB * a.block + k * kBlock + j % VPB * VL);
  };
  const bool ahead = words >= kLinearLong;
  int k = 0;
  for (; k + U <= words; k += U, x += U * PAIR, w += U * kBlock) {
    __asm__("" : "+r"(x));
    if (P == 1 && ahead) {
#pragma GCC unroll 8
      for (int u = 0; u < U; ++u)
#pragma GCC unroll 2
        for (int b = 0; b < NB; ++b)
          __builtin_prefetch(w + b * a.block + u * kBlock + kLinearAhead);
    }
#pragma GCC unroll 8
    for (int u = 0; u < U; ++u) step(u, u);
  }
  for (; k < words; ++k, x += PAIR, w += kBlock) step(0, 0);
#pragma GCC unroll 8
  for (int s = U / 2; s > 0; s /= 2)
#pragma GCC unroll 8
    for (int u = 0; u < s; ++u)
#pragma GCC unroll 32
      for (int p = 0; p < P; ++p)
#pragma GCC unroll 8
        for (int j = 0; j < J; ++j) acc[u][p][j] += acc[u + s][p][j];
  if (!a.last) {
    float* to = a.sums + image * a.sums_row + block * kBlock;
#pragma GCC unroll 32
    for (int p = 0; p < P; ++p)
#pragma GCC unroll 8
      for (int j = 0; j < J; ++j) store(to + p * a.sums_row + j * VL, acc[0][p][j]);
    return;
  }
  alignas(64) float tile[P * NB * kBlock];
#pragma GCC unroll 32
  for (int p = 0; p < P; ++p)
#pragma GCC unroll 8
    for (int j = 0; j < J; ++j) store(tile + p * NB * kBlock + j * VL, acc[0][p][j]);
  const int64_t at = image * a.out_row + block * kBlock;
  if (a.dtype == kBFloat16)
    linear_store(a, tile, P, NB * kBlock, static_cast<bf16*>(a.out) + at);
  else
    linear_store(a, tile, P, NB * kBlock, static_cast<float*>(a.out) + at);
}

template <class X, int P>
void linear_images(const LinearArgs& a, int64_t image) {
  int64_t block = 0;
#if FASTGEN_NB == 2
  for (; block + 2 <= a.blocks; block += 2) linear_tile<X, P, 2>(a, image, block);
#endif
  for (; block < a.blocks; ++block) linear_tile<X, P, 1>(a, image, block);
}

typedef void (*LinearFn)(const LinearArgs&, int64_t image);

template <class X, int... P>
inline LinearFn linear_pick(int images, std::integer_sequence<int, P...>) {
  static constexpr LinearFn table[] = {linear_images<X, P + 1>...};
  return table[images - 1];
}

void linear(const LinearArgs& a) {
  constexpr int MOST = FASTGEN_NB == 2 ? FASTGEN_PIXELS2 : FASTGEN_PIXELS1;
  constexpr auto sequence = std::make_integer_sequence<int, MOST>();
  const int64_t pieces = (a.images + MOST - 1) / MOST;
  for (int64_t i = 0; i < pieces; ++i) {
    const int64_t first = a.images * i / pieces, last = a.images * (i + 1) / pieces;
    const int count = static_cast<int>(last - first);
    (a.bf16 ? linear_pick<bf16>(count, sequence) : linear_pick<float>(count, sequence))(a, first);
  }
}

// Inputs of one image into a row of factors, with zeros behind them. The next ones are asked for:
// those of several images lie far apart.
template <class T, class X>
inline void linear_row(const T* from, int count, X* to) {
  int i = 0;
  for (; i + VL <= count; i += VL) {
    __builtin_prefetch(from + i + count);
    store_factor(to + i, load_as(from + i));
  }
  if (i < count) store_factor(to + i, load_part(from + i, count - i));
}

void linear_pack(const LinearPack& a) {
  for (int64_t n = 0; n < a.images; ++n) {
    const int64_t at = n * kLinearRow, from = n * a.row;
    if (a.dtype == kBFloat16) {
      const bf16* x = static_cast<const bf16*>(a.x) + from;
      a.bf16 ? linear_row(x, a.inputs, static_cast<bf16*>(a.out) + at)
             : linear_row(x, a.inputs, static_cast<float*>(a.out) + at);
    } else {
      const float* x = static_cast<const float*>(a.x) + from;
      a.bf16 ? linear_row(x, a.inputs, static_cast<bf16*>(a.out) + at)
             : linear_row(x, a.inputs, static_cast<float*>(a.out) + at);
    }
  }
}
