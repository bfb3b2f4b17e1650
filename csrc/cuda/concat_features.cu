// Concatenation of feature maps along the channels: a copy at the speed of memory.
//
// Both layouts are rows of two parts: an image's planes (NCHW) or a pixel's channels (NHWC). The
// widest unit that divides every part and address is moved, 16 bytes where possible, four
// independent units per thread. A style of one value per channel is repeated while it is read.
#include <algorithm>
#include <stdexcept>

#include "../fastgen.h"
#include "common.cuh"

namespace fastgen {
namespace gpu {
namespace {

constexpr int kThreads = 256, kUnroll = 4;

struct ConcatArgs {
  const void *content, *style;
  void* out;
  int64_t rows, content_units, style_units;  // units of a row
  int64_t rows_per_style;                    // rows that share a style row
  int64_t styles;                            // style rows; they repeat from the start
  int64_t repeat;                            // units that one style element fills; 0: a plain copy
};

// `Element` repeated to fill a `Unit`.
template <class Unit, class Element>
FASTGEN_DEVICE Unit filled(Element value) {
  if constexpr (sizeof(Unit) == sizeof(Element)) {
    return Unit(value);
  } else {
    const uint32_t word =
        sizeof(Element) == 4 ? static_cast<uint32_t>(value) : value * uint32_t{0x10001};
    if constexpr (sizeof(Unit) == 4) {
      return word;
    } else {
      Unit unit;
#pragma unroll
      for (int i = 0; i < int{sizeof(Unit) / 4}; ++i) unit.word[i] = word;
      return unit;
    }
  }
}

// Index is 32 bits wide where every count fits: a 64-bit division per unit would be slower than
// the memory.
template <class Unit, class Element, class Index>
__global__ void __launch_bounds__(kThreads) concat_kernel(const ConcatArgs p) {
  const Unit* content = static_cast<const Unit*>(p.content);
  Unit* out = static_cast<Unit*>(p.out);
  const Index content_units = static_cast<Index>(p.content_units);
  const Index style_units = static_cast<Index>(p.style_units);
  const Index width = content_units + style_units, total = static_cast<Index>(p.rows) * width;
  const Index first = static_cast<Index>(blockIdx.x) * (kThreads * kUnroll) + threadIdx.x;
  Unit values[kUnroll];
#pragma unroll
  for (int u = 0; u < kUnroll; ++u) {
    const Index i = first + static_cast<Index>(u) * kThreads;
    if (i >= total) continue;
    const Index row = i / width, column = i - row * width;
    if (column < content_units) {
      values[u] = load_once(content + (row * content_units + column));
      continue;
    }
    const Index unit = column - content_units;
    const Index style = row / static_cast<Index>(p.rows_per_style) % static_cast<Index>(p.styles);
    if (p.repeat == 0) {
      values[u] = load(static_cast<const Unit*>(p.style) + (style * style_units + unit));
    } else {
      const Index repeat = static_cast<Index>(p.repeat);
      values[u] = filled<Unit>(load(static_cast<const Element*>(p.style) +
                                    (style * (style_units / repeat) + unit / repeat)));
    }
  }
#pragma unroll
  for (int u = 0; u < kUnroll; ++u) {
    const Index i = first + static_cast<Index>(u) * kThreads;
    if (i < total) store(out + i, values[u]);
  }
}

template <class Unit, class Element>
int launch_concat(const ConcatArgs& args, cudaStream_t stream) {
  const int64_t total = args.rows * (args.content_units + args.style_units);
  const int64_t blocks = (total + kThreads * kUnroll - 1) / (kThreads * kUnroll);
  if (blocks > 0x7fffffff) throw std::invalid_argument("concat_features: the output is too large");
  const dim3 grid(static_cast<unsigned>(blocks));
  if (total < int64_t{1} << 31) {  // so that no unsigned index wraps in the last block
    auto kernel = concat_kernel<Unit, Element, uint32_t>;
    FASTGEN_LAUNCH(kernel, grid, dim3(kThreads), 0, stream, args);
  } else {
    auto kernel = concat_kernel<Unit, Element, uint64_t>;
    FASTGEN_LAUNCH(kernel, grid, dim3(kThreads), 0, stream, args);
  }
  return launch_error();
}

template <class Element>
int launch_unit(int unit, const ConcatArgs& args, cudaStream_t stream) {
  if (unit == 16) return launch_concat<Vec16, Element>(args, stream);
  if (unit == 8) return launch_concat<Vec8, Element>(args, stream);
  if (unit == 4) return launch_concat<uint32_t, Element>(args, stream);
  if constexpr (sizeof(Element) == 2) return launch_concat<uint16_t, Element>(args, stream);
  throw std::invalid_argument("concat_features: an address is not aligned to its elements");
}

}  // namespace
}  // namespace gpu

int cuda_concat_features(const void* content, const void* style, void* out, int64_t n,
                         int64_t content_channels, int64_t style_channels, int64_t pixels,
                         int64_t style_n, int64_t style_pixels, bool channels_last,
                         int element_bytes, void* stream) {
  if (n < 1 || content_channels < 1 || style_channels < 1 || pixels < 1 ||
      (style_n != 1 && style_n != n) || (style_pixels != 1 && style_pixels != pixels) ||
      (element_bytes != 2 && element_bytes != 4))
    throw std::invalid_argument("concat_features: a size is wrong");
  const bool plane = style_pixels == pixels;
  gpu::ConcatArgs args{};
  args.content = content;
  args.style = style;
  args.out = out;
  int64_t content_elements, style_elements;
  if (channels_last) {
    args.rows = n * pixels;
    content_elements = content_channels;
    style_elements = style_channels;
    // A style map has a row for every pixel, a style vector one for every image.
    args.rows_per_style = plane ? 1 : pixels;
    args.styles = style_n * style_pixels;
  } else {
    args.rows = n;
    content_elements = content_channels * pixels;
    style_elements = style_channels * pixels;
    args.rows_per_style = 1;
    args.styles = style_n;
  }
  const bool repeats = !channels_last && !plane;  // one value fills a whole plane
  // The widest unit that divides all of these.
  const uint64_t all = reinterpret_cast<uintptr_t>(content) | reinterpret_cast<uintptr_t>(out) |
                       (repeats ? 0 : reinterpret_cast<uintptr_t>(style)) |
                       static_cast<uint64_t>(content_elements * element_bytes) |
                       static_cast<uint64_t>((repeats ? pixels : style_elements) * element_bytes);
  const int unit = static_cast<int>(std::min<uint64_t>(16, all & (~all + 1)));
  args.content_units = content_elements * element_bytes / unit;
  args.style_units = style_elements * element_bytes / unit;
  args.repeat = repeats ? pixels * element_bytes / unit : 0;
  const auto s = static_cast<cudaStream_t>(stream);
  return element_bytes == 4 ? gpu::launch_unit<uint32_t>(unit, args, s)
                            : gpu::launch_unit<uint16_t>(unit, args, s);
}

}  // namespace fastgen
