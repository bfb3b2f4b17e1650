// Kernels for AVX512_BF16: what takes bfloat16 factors; the rest is that of AVX-512.
#include <immintrin.h>

#include <cstdint>
#include <cstring>
#include <utility>

#include "kernels.h"

#define FASTGEN_VL 16
#define FASTGEN_NB 2
#define FASTGEN_PIXELS1 28
#define FASTGEN_PIXELS2 14
#define FASTGEN_SMALL3 8
#define FASTGEN_SMALL4 6
#define FASTGEN_GRAM_COLS 4
#define FASTGEN_GRAM_ROWS 8  // times vectors of sums, for channels_last
#define FASTGEN_GRAM_VECTORS 3

namespace fastgen {
namespace {
#include "finish.inl"
#include "gram_matrix.inl"
#include "halves.inl"
#include "linear.inl"
#include "micro_bf16.inl"
#include "pack_int8.inl"
#include "small.inl"
#include "winograd.inl"

// As that of the other instruction sets, with bfloat16 factors.
double peak(int64_t rounds) {
  constexpr int CHAINS = 24;
  vf acc[CHAINS] = {};
  vi a = vi{} + 0x3c003c00, b = vi{} + 0x3c003c00;  // pairs of 2^-7
  __asm__ volatile("" : "+m"(a), "+m"(b));
  for (int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 32
    for (int i = 0; i < CHAINS; ++i) acc[i] = dot(acc[i], a, b);
  }
  vf total{};
  for (int i = 0; i < CHAINS; ++i) total += acc[i];
  __asm__ volatile("" : : "m"(total));
  return 4.0 * VL * CHAINS * static_cast<double>(rounds);
}
}  // namespace

const Kernels* kernels_avx512_bf16() {
  static const Kernels table = [] {
    Kernels k = *kernels_avx512_vnni();
    k.name = "avx512_bf16";
    k.micro_bf16 = micro_bf16;
    k.halves_bf16 = halves<bf16>;
    k.halves_finish = halves_finish;
    k.pack = pack;
    k.pack_int8 = pack_int8;
    k.peak = peak;
    k.finish = finish;
    k.rows = rows;
    k.winograd_input = winograd_input;
    k.winograd_output = winograd_output;
    k.lines_input = lines_input;
    k.lines_output = lines_output;
    k.small_bf16 = small_as<true>;
    k.gram_pack = gram_pack;
    k.linear = linear;
    k.linear_pack = linear_pack;
    k.gram_tiles = gram_tiles;
    return k;
  }();
  return &table;
}

}  // namespace fastgen
