// Convolutions with few outputs: vector lanes are the pixels of a row. Included inside an
// instruction set's anonymous namespace.
#include "micro_bf16.inl"

// 32 bits in every lane: a float, or a pair of bfloat16 that need not be one.
inline vf splat_bits(const float* p) {
  int32_t bits;
  __builtin_memcpy(&bits, p, sizeof(bits));
  return reinterpret_cast<vf>(bits - vi{});
}

// Few output channels: XV vectors of pixels x O outputs stay in registers.
template <int O, int XV, bool BF16>
void small_tile(const SmallArgs& a, int x0) {
  vf acc[XV][O];
#pragma GCC unroll 16
  for (int v = 0; v < XV; ++v)
#pragma GCC unroll 4
    for (int o = 0; o < O; ++o) acc[v][o] = splat(a.bias[o]);
  const float* w = a.weights;
  for (int i = 0; i < a.inputs; ++i)
    for (int ky = 0; ky < a.kh; ++ky) {
      const float* x = a.panel + i * a.panel_channel + ky * a.panel_row + x0;
      for (int kx = 0; kx < a.kw; ++kx, ++x, w += O) {
        vf weight[O];
#pragma GCC unroll 4
        for (int o = 0; o < O; ++o) weight[o] = splat_bits(w + o);
#pragma GCC unroll 16
        for (int v = 0; v < XV; ++v) {
          vf value = load(x + v * VL);
          keep(value);
#pragma GCC unroll 4
          for (int o = 0; o < O; ++o)
            acc[v][o] =
                BF16 ? dot(acc[v][o], reinterpret_cast<vi>(value), reinterpret_cast<vi>(weight[o]))
                     : acc[v][o] + value * weight[o];
        }
      }
    }
#pragma GCC unroll 16
  for (int v = 0; v < XV; ++v) {
    const int x = x0 + v * VL, left = a.pixels - x;
#pragma GCC unroll 4
    for (int o = 0; o < O; ++o) {
      const vf y = activate(acc[v][o], a.act, a.slope);
      float* out = a.out + o * a.out_channel + x;
      if (left >= VL) {
        store(out, y);
      } else {
        for (int l = 0; l < left; ++l) out[l] = y[l];
      }
    }
  }
}

template <int O, bool BF16>
void small_row(const SmallArgs& a) {
  constexpr int MOST = O == 4 ? FASTGEN_SMALL4 : FASTGEN_SMALL3;
  int x = 0;
  for (; a.pixels - x > (MOST - 1) * VL; x += MOST * VL) small_tile<O, MOST, BF16>(a, x);
  if constexpr (MOST > 4)
    for (; a.pixels - x > 3 * VL; x += 4 * VL) small_tile<O, 4, BF16>(a, x);
  if constexpr (MOST > 2)
    for (; a.pixels - x > VL; x += 2 * VL) small_tile<O, 2, BF16>(a, x);
  for (; x < a.pixels; x += VL) small_tile<O, 1, BF16>(a, x);
}

template <bool BF16>
void small_as(const SmallArgs& a) {
  switch (a.outputs) {
    case 1:
      return small_row<1, BF16>(a);
    case 2:
      return small_row<2, BF16>(a);
    case 3:
      return small_row<3, BF16>(a);
    default:
      return small_row<4, BF16>(a);
  }
}
