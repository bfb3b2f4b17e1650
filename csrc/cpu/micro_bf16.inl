// Convolution and products with bfloat16 factors and float32 sums. Every 32 bits hold two
// neighbouring input channels: one broadcast of them meets 16 pairs of weights. Included inside an
// instruction set's anonymous namespace; without AVX512_BF16 the same numbers come from float32.
#pragma once
#include "half.inl"
#include "pixels.inl"

typedef int32_t viu __attribute__((vector_size(VL * 4), aligned(4), may_alias));

inline vi load_pairs(const int32_t* p) { return *reinterpret_cast<const viu*>(p); }
inline vi splat_pair(const bf16* p) {
  int32_t pair;
  __builtin_memcpy(&pair, p, sizeof(pair));
  return pair - vi{};
}

// acc + both products of the pairs.
inline vf dot(vf acc, vi x, vi w) {
#if defined(__AVX512BF16__)
  return reinterpret_cast<vf>(_mm512_dpbf16_ps(
      reinterpret_cast<__m512>(acc), reinterpret_cast<__m512bh>(x), reinterpret_cast<__m512bh>(w)));
#else
  acc += reinterpret_cast<vf>(x & ~0xffff) * reinterpret_cast<vf>(w & ~0xffff);
  return acc + reinterpret_cast<vf>(x << 16) * reinterpret_cast<vf>(w << 16);
#endif
}

// As micro_tile: P pixels x NB channel blocks stay in registers over all inputs and taps.
template <int P, int NB, int PS>
void micro_bf16_tile(const MicroArgs& a) {
  constexpr int J = NB * VPB;
  vf acc[P][J];
#pragma GCC unroll 32
  for (int p = 0; p < P; ++p)
#pragma GCC unroll 8
    for (int j = 0; j < J; ++j) acc[p][j] = load(a.bias + j * VL);
  const Pixels<bf16> pixels(a.pixel);
  const int32_t* w = static_cast<const int32_t*>(a.weights);
  for (int b = 0; b < a.blocks; ++b) {
    const int count = b + 1 == a.blocks ? a.last : a.channels;
    const int most = count > 1 ? count - 2 : 0;
    for (int ky = 0; ky < a.kh; ++ky) {
      const bf16* row = static_cast<const bf16*>(a.panel) + b * a.panel_block + ky * a.panel_row;
      for (int kx = 0; kx < a.kw; ++kx, row += a.channels) {
        if (a.ahead && b % 2 == 0) {  // two blocks are a line
#pragma GCC unroll 32
          for (int p = 0; p < P; ++p)
            __builtin_prefetch(PS ? row + (P + p) * PS : pixels.at(row, P + p));
        }
        for (int i = 0; i < count; i += 2, w += NB * kBlock) {
          // Opaque: the compiler would split the loop, and spill registers in its second part.
          __asm__("" : "+r"(i));
          const bf16* x = row + (i < most ? i : most);
          vi weight[J];
#pragma GCC unroll 8
          for (int j = 0; j < J; ++j) weight[j] = load_pairs(w + j * VL);
#pragma GCC unroll 32
          for (int p = 0; p < P; ++p) {
            const vi value = splat_pair(PS ? x + p * PS : pixels.at(x, p));
#pragma GCC unroll 8
            for (int j = 0; j < J; ++j) acc[p][j] = dot(acc[p][j], value, weight[j]);
          }
        }
      }
    }
  }
#pragma GCC unroll 32
  for (int p = 0; p < P; ++p)
#pragma GCC unroll 8
    for (int j = 0; j < J; ++j) store(a.out + p * NB * kBlock + j * VL, acc[p][j]);
}

typedef void (*MicroFn)(const MicroArgs&);

template <int NB, int PS, int... P>
inline MicroFn micro_bf16_pick(int pixels, std::integer_sequence<int, P...>) {
  static constexpr MicroFn table[] = {micro_bf16_tile<P + 1, NB, PS>...};
  return table[pixels - 1];
}

template <int NB, int MAX>
inline MicroFn micro_bf16_stride(int pixels, int stride) {
  constexpr auto sequence = std::make_integer_sequence<int, MAX>();
  switch (stride) {
    case 3:
      return micro_bf16_pick<NB, 3>(pixels, sequence);
    case 16:
      return micro_bf16_pick<NB, 16>(pixels, sequence);
    case 32:
      return micro_bf16_pick<NB, 32>(pixels, sequence);
    default:
      return micro_bf16_pick<NB, 0>(pixels, sequence);
  }
}

void micro_bf16(const MicroArgs& a, int pixels, int nb) {
#if FASTGEN_NB == 2
  if (nb == 2) return micro_bf16_stride<2, FASTGEN_PIXELS2>(pixels, a.pixel)(a);
#endif
  (void)nb;
  micro_bf16_stride<1, FASTGEN_PIXELS1>(pixels, a.pixel)(a);
}
