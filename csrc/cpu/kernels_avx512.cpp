// Kernels for AVX-512 (F, DQ, BW, VL): 32 registers of 16 floats.
#include <immintrin.h>

#include <cstdint>
#include <cstring>
#include <utility>

#include "kernels.h"

#define FASTGEN_VL 16
#define FASTGEN_NB 2
#define FASTGEN_PIXELS1 28  // 28 pixels x 1 vector, 1 weight
#define FASTGEN_PIXELS2 14  // 14 pixels x 2 vectors, 2 weights, 1 input
#define FASTGEN_SMALL3 8    // vectors of pixels x 3 outputs in the small kernel
#define FASTGEN_SMALL4 6
#define FASTGEN_GRAM_COLS 4  // 4x4 vectors of sums
#define FASTGEN_GRAM_ROWS 8  // times vectors of sums, for channels_last
#define FASTGEN_GRAM_VECTORS 3

namespace fastgen {
namespace {
#include "finish.inl"
#include "gram_matrix.inl"
#include "halves.inl"
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

const Kernels* kernels_avx512() {
  static constexpr Kernels table = {"avx512",
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
                                    pool_sum,
                                    halves<float>,
                                    halves<bf16>,
                                    halves_finish};
  return &table;
}

}  // namespace fastgen
