// Portable.
#include <cstdint>

#include "color.h"

namespace fastgen {
namespace {
#include "color.inl"
}  // namespace

ColorKernels color_scalar() { return {yuv_to_rgb, rgb_to_yuv}; }

}  // namespace fastgen
