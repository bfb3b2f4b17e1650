// AVX2 for every processor that has it: wider vectors gain nothing here.
#include <immintrin.h>

#include <cstdint>

#include "color.h"

namespace fastgen {
namespace {
#include "color.inl"
}  // namespace

ColorKernels color_avx2() { return {yuv_to_rgb, rgb_to_yuv}; }

}  // namespace fastgen
