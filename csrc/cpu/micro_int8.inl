// Convolution with products of unsigned bytes (activations) and signed bytes (weights), summed
// exactly in int32: every instruction set finds the same sums. Every 32 bits hold four neighbouring
// input channels. Included inside an instruction set's anonymous namespace.
#include "half.inl"
#include "pixels.inl"

typedef int32_t viu8 __attribute__((vector_size(VL * 4), aligned(1), may_alias));

inline vi load_quads(const void* p) { return *static_cast<const viu8*>(p); }
inline vi splat_quad(const void* p) {
  int32_t quad;
  __builtin_memcpy(&quad, p, sizeof(quad));
  return quad - vi{};
}

#if defined(__AVX512VNNI__)
struct Activations {
  vi all;
};
struct ByteWeights {
  vi all;
};
inline Activations activations(vi x) { return {x}; }
inline ByteWeights byte_weights(vi w) { return {w}; }
inline vi dot4(vi acc, const Activations& x, const ByteWeights& w) {
  return reinterpret_cast<vi>(_mm512_dpbusd_epi32(reinterpret_cast<__m512i>(acc),
                                                  reinterpret_cast<__m512i>(x.all),
                                                  reinterpret_cast<__m512i>(w.all)));
}
#else
// Bytes 0 and 2, and bytes 1 and 3, as 16-bit numbers: pairs of those products are summed exactly,
// where the older instruction for bytes (pmaddubsw) would saturate.
typedef int16_t vs __attribute__((vector_size(VL * 4)));

struct Activations {
  vi even, odd;
};
struct ByteWeights {
  vi even, odd;
};
inline Activations activations(vi x) { return {x & 0xff00ff, (x >> 8) & 0xff00ff}; }
inline ByteWeights byte_weights(vi w) {
  const vs lanes = reinterpret_cast<vs>(w);
  return {reinterpret_cast<vi>((lanes << 8) >> 8), reinterpret_cast<vi>(lanes >> 8)};
}
inline vi dot2(vi x, vi w) {
#if defined(__AVX512BW__)
  return reinterpret_cast<vi>(
      _mm512_madd_epi16(reinterpret_cast<__m512i>(x), reinterpret_cast<__m512i>(w)));
#elif defined(__AVX2__)
  return reinterpret_cast<vi>(
      _mm256_madd_epi16(reinterpret_cast<__m256i>(x), reinterpret_cast<__m256i>(w)));
#elif defined(__SSE2__)
  return reinterpret_cast<vi>(
      _mm_madd_epi16(reinterpret_cast<__m128i>(x), reinterpret_cast<__m128i>(w)));
#else
  return ((x << 16) >> 16) * ((w << 16) >> 16) + (x >> 16) * (w >> 16);
#endif
}
inline vi dot4(vi acc, const Activations& x, const ByteWeights& w) {
  return acc + dot2(x.even, w.even) + dot2(x.odd, w.odd);
}
#endif

inline vf sums(vi acc, vf scale, vf bias) {
  return __builtin_convertvector(acc, vf) * scale + bias;
}

// As micro_tile: P pixels x NB channel blocks stay in registers over all inputs and taps.
template <int P, int NB, int PS>
void micro_int8_tile(const MicroArgs& a) {
  constexpr int J = NB * VPB;
  vi acc[P][J];
#pragma GCC unroll 32
  for (int p = 0; p < P; ++p)
#pragma GCC unroll 8
    for (int j = 0; j < J; ++j) acc[p][j] = vi{};
  const Pixels<uint8_t> pixels(a.pixel);
  const int32_t* w = static_cast<const int32_t*>(a.weights);
  for (int b = 0; b < a.blocks; ++b) {
    const int count = b + 1 == a.blocks ? a.last : a.channels;
    for (int ky = 0; ky < a.kh; ++ky) {
      const uint8_t* row =
          static_cast<const uint8_t*>(a.panel) + b * a.panel_block + ky * a.panel_row;
      for (int kx = 0; kx < a.kw; ++kx, row += a.channels) {
        for (int i = 0; i < count; i += 4, w += NB * kBlock) {
          // Opaque: the compiler would keep what the next step reads again, more than it has room.
          __asm__("" : "+r"(i));
          ByteWeights weight[J];
#pragma GCC unroll 8
          for (int j = 0; j < J; ++j) weight[j] = byte_weights(load_quads(w + j * VL));
#pragma GCC unroll 32
          for (int p = 0; p < P; ++p) {
            const Activations value =
                activations(splat_quad(PS ? row + i + p * PS : pixels.at(row + i, p)));
#pragma GCC unroll 8
            for (int j = 0; j < J; ++j) acc[p][j] = dot4(acc[p][j], value, weight[j]);
          }
        }
      }
    }
  }
#pragma GCC unroll 32
  for (int p = 0; p < P; ++p)
#pragma GCC unroll 8
    for (int j = 0; j < J; ++j)
      store(a.out + p * NB * kBlock + j * VL,
            sums(acc[p][j], load(a.scale + j * VL), load(a.bias + j * VL)));
}

typedef void (*MicroInt8Fn)(const MicroArgs&);

template <int NB, int PS, int... P>
inline MicroInt8Fn micro_int8_pick(int pixels, std::integer_sequence<int, P...>) {
  static constexpr MicroInt8Fn table[] = {micro_int8_tile<P + 1, NB, PS>...};
  return table[pixels - 1];
}

template <int NB, int MAX>
inline MicroInt8Fn micro_int8_stride(int pixels, int stride) {
  constexpr auto sequence = std::make_integer_sequence<int, MAX>();
#if defined(__AVX512VNNI__)  // elsewhere the addresses are the least of the work
  switch (stride) {
    case 3:
      return micro_int8_pick<NB, 3>(pixels, sequence);
    case 16:
      return micro_int8_pick<NB, 16>(pixels, sequence);
    case 32:
      return micro_int8_pick<NB, 32>(pixels, sequence);
    case 64:
      return micro_int8_pick<NB, 64>(pixels, sequence);
    case 128:
      return micro_int8_pick<NB, 128>(pixels, sequence);
    default:
      break;
  }
#endif
  (void)stride;
  return micro_int8_pick<NB, 0>(pixels, sequence);
}

void micro_int8(const MicroArgs& a, int pixels, int nb) {
#if FASTGEN_NB == 2
  if (nb == 2) return micro_int8_stride<2, FASTGEN_PIXELS2>(pixels, a.pixel)(a);
#endif
  (void)nb;
  micro_int8_stride<1, FASTGEN_PIXELS1>(pixels, a.pixel)(a);
}

// Few output channels: XV vectors of pixels x O outputs stay in registers.
template <int O, int XV>
void small_int8_tile(const SmallInt8Args& a, int x0) {
  vi acc[XV][O] = {};
  const int32_t* w = a.weights;
  for (int b = 0; b < a.blocks; ++b)
    for (int ky = 0; ky < a.kh; ++ky) {
      const uint8_t* x = a.panel + b * a.panel_block + ky * a.panel_row + int64_t{x0} * 4;
      for (int kx = 0; kx < a.kw; ++kx, x += 4, w += O) {
        ByteWeights weight[O];
#pragma GCC unroll 4
        for (int o = 0; o < O; ++o) weight[o] = byte_weights(splat_quad(w + o));
#pragma GCC unroll 16
        for (int v = 0; v < XV; ++v) {
          const Activations value = activations(load_quads(x + v * VL * 4));
#pragma GCC unroll 4
          for (int o = 0; o < O; ++o) acc[v][o] = dot4(acc[v][o], value, weight[o]);
        }
      }
    }
#pragma GCC unroll 16
  for (int v = 0; v < XV; ++v) {
    const int x = x0 + v * VL, left = a.pixels - x;
    if (left <= 0) break;
#pragma GCC unroll 4
    for (int o = 0; o < O; ++o) {
      const vf y = activate(sums(acc[v][o], splat(a.scale[o]), splat(a.bias[o])), a.act, a.slope);
      float* out = a.out + o * a.out_channel + x;
      left >= VL ? store(out, y) : store_part(out, y, left);
    }
  }
}

template <int O>
void small_int8_row(const SmallInt8Args& a) {
  constexpr int MOST = VL == 16 ? 6 : 2;
  int x = 0;
  for (; a.pixels - x > (MOST - 1) * VL; x += MOST * VL) small_int8_tile<O, MOST>(a, x);
  if constexpr (MOST > 2)
    for (; a.pixels - x > VL; x += 2 * VL) small_int8_tile<O, 2>(a, x);
  for (; x < a.pixels; x += VL) small_int8_tile<O, 1>(a, x);
}

void small_int8(const SmallInt8Args& a) {
  switch (a.outputs) {
    case 1:
      return small_int8_row<1>(a);
    case 2:
      return small_int8_row<2>(a);
    case 3:
      return small_int8_row<3>(a);
    default:
      return small_int8_row<4>(a);
  }
}
