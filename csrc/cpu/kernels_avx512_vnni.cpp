// Kernels for AVX512_VNNI: products of bytes; the rest is that of AVX-512.
#include <immintrin.h>

#include <cstdint>
#include <cstring>
#include <utility>

#include "kernels.h"

#define FASTGEN_VL 16
#define FASTGEN_NB 2
#define FASTGEN_PIXELS1 28
#define FASTGEN_PIXELS2 14

namespace fastgen {
namespace {
#include "micro_int8.inl"

// As that of the other instruction sets, of bytes.
double peak(int64_t rounds) {
  constexpr int CHAINS = 24;
  vi acc[CHAINS] = {};
  vi a = vi{} + 0x01010101, b = vi{};
  __asm__ volatile("" : "+m"(a), "+m"(b));
  for (int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 32
    for (int i = 0; i < CHAINS; ++i) acc[i] = dot4(acc[i], Activations{a}, ByteWeights{b});
  }
  vi total{};
  for (int i = 0; i < CHAINS; ++i) total += acc[i];
  __asm__ volatile("" : : "m"(total));
  return 8.0 * VL * CHAINS * static_cast<double>(rounds);
}
}  // namespace

const Kernels* kernels_avx512_vnni() {
  static const Kernels table = [] {
    Kernels k = *kernels_avx512();
    k.name = "avx512_vnni";
    k.micro_int8 = micro_int8;
    k.small_int8 = small_int8;
    k.peak = peak;
    return k;
  }();
  return &table;
}

}  // namespace fastgen
