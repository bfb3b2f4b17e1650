// Winograd products of at most 8 outputs: the lanes of a vector are each output twice, once for
// each of two neighbouring inputs (or pairs of them). 64 bits of inputs are one broadcast, so none
// of the products is of padding. Included inside an instruction set's anonymous namespace.
#pragma once
#include "micro_bf16.inl"
#include "winograd.inl"

#if FASTGEN_VL == 16
// Even and odd values of a and then b.
inline vf evens(vf a, vf b) {
  const vi at = {0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30};
  return reinterpret_cast<vf>(_mm512_permutex2var_ps(
      reinterpret_cast<__m512>(a), reinterpret_cast<__m512i>(at), reinterpret_cast<__m512>(b)));
}
inline vf odds(vf a, vf b) {
  const vi at = {1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31};
  return reinterpret_cast<vf>(_mm512_permutex2var_ps(
      reinterpret_cast<__m512>(a), reinterpret_cast<__m512i>(at), reinterpret_cast<__m512>(b)));
}

typedef int64_t vl __attribute__((vector_size(VL * 4)));

inline vf splat_64(const void* p) {
  int64_t both;
  __builtin_memcpy(&both, p, sizeof(both));
  return reinterpret_cast<vf>(both - vl{});
}

// P tiles x 8 outputs; MicroArgs of one tap, the weights [block of inputs][64 bits of them][16].
template <int P, class T>
void halves_tile(const MicroArgs& a) {
  constexpr int STEP = 8 / sizeof(T);
  vf acc[P + 1] = {};
  const float* w = static_cast<const float*>(a.weights);
  for (int b = 0; b < a.blocks; ++b) {
    const int count = b + 1 == a.blocks ? a.last : kBlock;
    const T* row = static_cast<const T*>(a.panel) + b * a.panel_block;
    for (int i = 0; i < count; i += STEP, w += VL) {
      __asm__("" : "+r"(i));  // opaque, as in micro_bf16_tile
      const vf weight = load(w);
#pragma GCC unroll 32
      for (int p = 0; p < P; ++p) {
        const vf value = splat_64(row + p * kBlock + i);
        acc[p] = sizeof(T) == 2
                     ? dot(acc[p], reinterpret_cast<vi>(value), reinterpret_cast<vi>(weight))
                     : acc[p] + value * weight;
      }
    }
  }
#pragma GCC unroll 32
  for (int p = 0; p < P; p += 2) {
    const vf sums = evens(acc[p], acc[p + 1]) + odds(acc[p], acc[p + 1]);
    p + 1 < P ? store(a.out + p * 8, sums) : store_part(a.out + p * 8, sums, 8);
  }
}

template <class T, int... P>
inline void halves_pick(const MicroArgs& a, int pixels, std::integer_sequence<int, P...>) {
  static constexpr MicroFn table[] = {halves_tile<P + 1, T>...};
  table[pixels - 1](a);
}

template <class T>
void halves(const MicroArgs& a, int pixels) {
  halves_pick<T>(a, pixels, std::make_integer_sequence<int, kHalvesPixels>());
}

// As winograd_finish_of, two tiles at a time: in is [n_y*6][tile][8].
template <int NY, int MY, class T, bool WHOLE>
void halves_finish_of(const WinogradOutput& a) {
  constexpr int MX = 4;
  const FinishArgs& f = *a.finish;
  const vf slope = splat(f.act == kActLeaky ? f.slope : 1.0f);
  const vi some = vi{} + (f.act == kActRelu ? 0 : -1);
  const vf bias = reinterpret_cast<vf>(
      _mm512_maskz_shuffle_f32x4(0xffff, reinterpret_cast<__m512>(load(a.bias)),
                                 reinterpret_cast<__m512>(load(a.bias)), 0x44));
  const int64_t element = a.in_element, pixel = f.out_pixel;
  for (int t = 0; t < a.tiles; t += 2) {
    const float* in = a.in + t * 8;
    vf half[MY][6];
#pragma GCC unroll 6
    for (int x = 0; x < 6; ++x) {
      vf line[NY], y[MY];
#pragma GCC unroll 6
      for (int i = 0; i < NY; ++i) line[i] = load(in + i * 6 * element);
      in = opaque(in + element);
      winograd_values(line, y);
#pragma GCC unroll 6
      for (int i = 0; i < MY; ++i) half[i][x] = y[i];
    }
    const int columns = f.pixels - t * MX;
#pragma GCC unroll 6
    for (int i = 0; i < MY; ++i) {
      if (!a.rows[i]) continue;
      T* out = static_cast<T*>(a.rows[i]) + t * MX * pixel;
      vf y[MX];
      winograd_values(half[i], y);
#pragma GCC unroll 4
      for (int x = 0; x < MX; ++x) {
        const vf v = y[x] + bias;
        const vf low = reinterpret_cast<vf>(reinterpret_cast<vi>(v * slope) & some);
        const __m512 both = reinterpret_cast<__m512>(larger(low, v));
        // Behind the 8 outputs are zeros, where there is room for them.
        if (x < columns)
          store_some<WHOLE>(out + x * pixel, reinterpret_cast<vf>(_mm512_maskz_mov_ps(0xff, both)),
                            f.channels);
        if (x + MX < columns)
          store_some<WHOLE>(
              out + (x + MX) * pixel,
              reinterpret_cast<vf>(_mm512_maskz_shuffle_f32x4(0xff, both, both, 0x4e)), f.channels);
      }
    }
  }
}

template <class T>
void halves_finish_as(const WinogradOutput& a) {
  if (a.m_y == 2) {
    a.finish->exact ? halves_finish_of<4, 2, T, false>(a) : halves_finish_of<4, 2, T, true>(a);
  } else {
    a.finish->exact ? halves_finish_of<6, 4, T, false>(a) : halves_finish_of<6, 4, T, true>(a);
  }
}

void halves_finish(const WinogradOutput& a) {
  a.finish->dtype == kBFloat16 ? halves_finish_as<bf16>(a) : halves_finish_as<float>(a);
}
#endif
