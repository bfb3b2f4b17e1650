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
#define FASTGEN_GRAM_COLS 4

namespace fastgen {
namespace {
#include "finish.inl"
#include "gram_matrix.inl"
#include "micro_bf16.inl"
#include "pack.inl"
#include "winograd.inl"
}  // namespace

const Kernels* kernels_avx512_bf16() {
  static const Kernels table = [] {
    Kernels k = *kernels_avx512();
    k.name = "avx512_bf16";
    k.micro_bf16 = micro_bf16;
    k.pack = pack;
    k.finish = finish;
    k.rows = rows;
    k.winograd_input = winograd_input;
    k.winograd_output = winograd_output;
    k.gram_pack = gram_pack;
    k.gram_tiles = gram_tiles;
    return k;
  }();
  return &table;
}

}  // namespace fastgen
