// Kernels for AVX2 with FMA: 16 registers of 8 floats.
#include <immintrin.h>

#include <cstdint>
#include <cstring>
#include <utility>

#include "kernels.h"

#define FASTGEN_VL 8
#define FASTGEN_NB 1
#define FASTGEN_PIXELS1 6  // 6 pixels x 2 vectors, 2 weights, 1 input
#define FASTGEN_PIXELS2 0
#define FASTGEN_SMALL3 3  // vectors of pixels x 3 outputs in the small kernel
#define FASTGEN_SMALL4 2
#define FASTGEN_GRAM_COLS 2  // 4x2 vectors of sums
#define FASTGEN_GRAM_ROWS 4  // times vectors of sums, for channels_last
#define FASTGEN_GRAM_VECTORS 3

namespace fastgen {
namespace {
#include "finish.inl"
#include "gram_matrix.inl"
#include "image.inl"
#include "linear.inl"
#include "micro.inl"
#include "micro_bf16.inl"
#include "micro_int8.inl"
#include "move.inl"
#include "pack.inl"
#include "pack_int8.inl"
#include "pool.inl"
#include "small.inl"
#include "winograd.inl"
#include "winograd_int8.inl"
}  // namespace

const Kernels* kernels_avx2() {
  static constexpr Kernels table = {"avx2",
                                    FASTGEN_NB,
                                    {0, FASTGEN_PIXELS1, FASTGEN_PIXELS2},
                                    FASTGEN_SMALL3 * VL,
                                    pack,
                                    micro,
                                    micro_bf16,
                                    finish,
                                    small_as<false>,
                                    small_as<true>,
                                    rows,
                                    winograd_input,
                                    winograd_output,
                                    lines_input,
                                    lines_output,
                                    moments,
                                    depthwise,
                                    image_load,
                                    image_store,
                                    peak,
                                    gram_pack,
                                    gram_tiles,
                                    move,
                                    join,
                                    pack_int8,
                                    micro_int8,
                                    small_int8,
                                    winograd2_input,
                                    winograd2_output,
                                    linear,
                                    linear_pack,
                                    pool,
                                    pool_sum};
  return &table;
}

}  // namespace fastgen
