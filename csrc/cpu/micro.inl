// Register-tiled direct convolution. Included inside an instruction set's anonymous namespace.
#include "pixels.inl"
#include "vec.inl"

// P pixels x NB channel blocks stay in registers over all inputs and taps; every input value is
// broadcast and multiplied with NB*16 weights. PS is the pixel stride (0: read it at run time).
template <int P, int NB, int PS>
void micro_tile(const MicroArgs& a) {
  constexpr int J = NB * VPB;
  vf acc[P][J];
#pragma GCC unroll 32
  for (int p = 0; p < P; ++p)
#pragma GCC unroll 8
    for (int j = 0; j < J; ++j) acc[p][j] = load(a.bias + j * VL);
  const Pixels<float> pixels(a.pixel);
  const float* w = static_cast<const float*>(a.weights);
  for (int b = 0; b < a.blocks; ++b) {
    const int count = b + 1 == a.blocks ? a.last : a.channels;
    for (int ky = 0; ky < a.kh; ++ky) {
      const float* row = static_cast<const float*>(a.panel) + b * a.panel_block + ky * a.panel_row;
      for (int kx = 0; kx < a.kw; ++kx, row += a.channels) {
        const float* x = row;
        if (a.ahead) {
#pragma GCC unroll 32
          for (int p = 0; p < P; ++p)
            __builtin_prefetch(PS ? x + (P + p) * PS : pixels.at(x, P + p));
        }
        for (const float* end = row + count; x != end; ++x, w += NB * kBlock) {
          // Opaque: the compiler would keep values for later inputs, where pixels overlap, and
          // spill registers.
          __asm__("" : "+r"(x));
          vf weight[J];
#pragma GCC unroll 8
          for (int j = 0; j < J; ++j) weight[j] = load(w + j * VL);
#pragma GCC unroll 32
          for (int p = 0; p < P; ++p) {
            const vf value = splat(PS ? x[p * PS] : *pixels.at(x, p));
#pragma GCC unroll 8
            for (int j = 0; j < J; ++j) acc[p][j] += value * weight[j];
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
inline MicroFn micro_pick(int pixels, std::integer_sequence<int, P...>) {
  static constexpr MicroFn table[] = {micro_tile<P + 1, NB, PS>...};
  return table[pixels - 1];
}

template <int NB, int MAX>
inline MicroFn micro_stride(int pixels, int stride) {
  constexpr auto sequence = std::make_integer_sequence<int, MAX>();
  switch (stride) {
    case 3:
      return micro_pick<NB, 3>(pixels, sequence);
    case 6:
      return micro_pick<NB, 6>(pixels, sequence);
    case 16:
      return micro_pick<NB, 16>(pixels, sequence);
    case 32:
      return micro_pick<NB, 32>(pixels, sequence);
    default:
      return micro_pick<NB, 0>(pixels, sequence);
  }
}

void micro(const MicroArgs& a, int pixels, int nb) {
#if FASTGEN_NB == 2
  if (nb == 2) return micro_stride<2, FASTGEN_PIXELS2>(pixels, a.pixel)(a);
#endif
  (void)nb;
  micro_stride<1, FASTGEN_PIXELS1>(pixels, a.pixel)(a);
}

void moments(const float* x, int64_t count, float* stats) {
  for (int j = 0; j < VPB; ++j) {
    float* s = stats + j * VL;
    const vf pivot = load(x + j * VL);
    vf sum{}, squares{};
    for (int64_t i = 0; i < count; ++i) sum += load(x + i * kBlock + j * VL) - pivot;
    const vf mean = sum * (1.0f / static_cast<float>(count));
    for (int64_t i = 0; i < count; ++i) {
      const vf d = load(x + i * kBlock + j * VL) - pivot - mean;
      squares += d * d;
    }
    store(s, pivot);
    store(s + kBlock, mean);
    store(s + 2 * kBlock, squares);
  }
}

void depthwise(const float* panel, int64_t panel_row, int pixel, const float* weights,
               const float* bias, int kh, int kw, int pixels, float* out) {
  for (int p = 0; p < pixels; ++p)
    for (int j = 0; j < VPB; ++j) {
      vf acc = load(bias + j * VL);
      const float* w = weights + j * VL;
      for (int ky = 0; ky < kh; ++ky) {
        const float* x = panel + ky * panel_row + p * pixel + j * VL;
        for (int kx = 0; kx < kw; ++kx, w += kBlock) acc += load(x + kx * kBlock) * load(w);
      }
      store(out + p * kBlock + j * VL, acc);
    }
}

double peak(int64_t rounds) {
  constexpr int CHAINS = VL == 16 ? 24 : 12;
  vf acc[CHAINS];
  vf a = splat(0.9999f), b = splat(1e-4f);
  __asm__ volatile("" : "+m"(a), "+m"(b));
#pragma GCC unroll 32
  for (int i = 0; i < CHAINS; ++i) acc[i] = splat(0.1f * static_cast<float>(i));
  for (int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 32
    for (int i = 0; i < CHAINS; ++i) acc[i] = acc[i] * a + b;
  }
  vf total{};
  for (int i = 0; i < CHAINS; ++i) total += acc[i];
  __asm__ volatile("" : : "m"(total));
  return 2.0 * VL * CHAINS * static_cast<double>(rounds);
}
