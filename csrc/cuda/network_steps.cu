// The steps of a network that are no matrix products: loads and stores with their arithmetic,
// pooling, reshapes, and convolutions of unusual shapes.
#include "common.cuh"
#include "network.h"
#include "pixels.cuh"

namespace fastgen {
namespace gpu {
namespace {

constexpr int kThreads = 256;

FASTGEN_DEVICE int64_t thread_index() { return int64_t{blockIdx.x} * kThreads + threadIdx.x; }

dim3 blocks_for(int64_t items) {
  const int64_t blocks = (items + kThreads - 1) / kThreads;
  if (blocks > 0x7fffffff) throw std::invalid_argument("a map is too large for one launch");
  return dim3(static_cast<unsigned>(blocks < 1 ? 1 : blocks));
}

template <class Kernel, class Args>
int launch_items(Kernel* kernel, int64_t items, void* stream, const Args& args) {
  FASTGEN_LAUNCH(kernel, blocks_for(items), dim3(kThreads), 0, static_cast<cudaStream_t>(stream),
                 args);
  return launch_error();
}

FASTGEN_DEVICE float slope_or(int kind, float slope, float x) {
  if (kind == kRelu) return leaky(x, 0.0f);
  if (kind == kLeaky) return leaky(x, slope);
  return activate(x, kind);
}

FASTGEN_DEVICE float arithmetic(const ApplyArgs& p, float x, float residual) {
  x = slope_or(p.pre, p.pre_slope, x);
  if (p.combine == 1) x += residual;
  if (p.combine == 2) x *= residual;
  return slope_or(p.post, p.post_slope, x);
}

// An element of a tensor of the network or of the caller.
template <class T>
FASTGEN_DEVICE float read(const Io* io, const void* x, int kind, int64_t at) {
  if (kind == kOwn) return to_float(load(static_cast<const T*>(x) + at));
  const float value = kind == kByte ? to_float(load(static_cast<const uint8_t*>(x) + at))
                                    : load(static_cast<const float*>(x) + at);
  return value * load(&io->gain) + load(&io->low);
}

struct Place {
  int64_t x, residual;  // pixels, -1 for a zero
};

FASTGEN_DEVICE Place place_of(const ApplyArgs& p, int row, int column) {
  const int y = p.row_map ? load(p.row_map + row) : row;
  const int x = p.column_map ? load(p.column_map + column) : column;
  const int ry = p.residual_row_map ? load(p.residual_row_map + row) : y;
  const int rx = p.residual_column_map ? load(p.residual_column_map + column) : x;
  const bool inside = y >= 0 && x >= 0;
  return {inside ? int64_t{y} * p.x_width + x : -1,
          inside ? int64_t{ry} * p.residual_width + rx : -1};
}

// One thread for 16 bytes of channels of one pixel.
template <class T>
__global__ void __launch_bounds__(kThreads) apply_vectors(const ApplyArgs p) {
  constexpr int kVector = Chunk<T>::kSize;
  const int pieces = p.channels / kVector;
  const int64_t i = thread_index(), plane = int64_t{p.height} * p.width;
  if (i >= p.n * plane * pieces) return;
  const int channel = static_cast<int>(i % pieces) * kVector;
  const int64_t image = i / pieces / plane, pixel = i / pieces % plane;
  const Place place =
      place_of(p, static_cast<int>(pixel / p.width), static_cast<int>(pixel % p.width));
  float x[kVector], r[kVector];
#pragma unroll
  for (int e = 0; e < kVector; ++e) x[e] = r[e] = 0.0f;
  if (place.x >= 0) {
    Chunk<T>::unpack(load_once(reinterpret_cast<const Vec16*>(
                         static_cast<const T*>(p.x) +
                         element(image, p.x_image, place.x, p.x_pixel, channel, 1))),
                     x);
    if (p.scale) {
#pragma unroll
      for (int e = 0; e < kVector; ++e)
        x[e] = x[e] * load(p.scale + image * p.scale_image + channel + e) +
               load(p.shift + image * p.scale_image + channel + e);
    }
    if (p.combine)
      Chunk<T>::unpack(
          load_once(reinterpret_cast<const Vec16*>(
              static_cast<const T*>(p.residual) +
              element(image, p.residual_image, place.residual, p.residual_pixel, channel, 1))),
          r);
#pragma unroll
    for (int e = 0; e < kVector; ++e) x[e] = arithmetic(p, x[e], r[e]);
  }
  store(reinterpret_cast<Vec16*>(static_cast<T*>(p.y) +
                                 element(image, p.y_image, pixel, p.y_pixel, channel, 1)),
        Chunk<T>::pack(x));
}

template <class T>
FASTGEN_DEVICE float apply_one(const ApplyArgs& p, const void* x, int64_t image, const Place& place,
                               int channel) {
  if (place.x < 0) return 0.0f;
  float value = read<T>(p.io, x, p.x_kind,
                        element(image, p.x_image, place.x, p.x_pixel, channel, p.x_channel));
  if (p.scale)
    value = value * load(p.scale + image * p.scale_image + channel) +
            load(p.shift + image * p.scale_image + channel);
  float residual = 0;
  if (p.combine)
    residual = to_float(load(static_cast<const T*>(p.residual) +
                             element(image, p.residual_image, place.residual, p.residual_pixel,
                                     channel, p.residual_channel)));
  return arithmetic(p, value, residual);
}

// One thread for one element.
template <class T>
__global__ void __launch_bounds__(kThreads) apply_elements(const ApplyArgs p) {
  const int64_t i = thread_index(), plane = int64_t{p.height} * p.width;
  if (i >= p.n * plane * p.channels) return;
  const bool last = p.y_channel == 1;  // neighbouring threads write neighbours
  const int64_t image = i / (plane * p.channels), rest = i % (plane * p.channels);
  const int64_t pixel = last ? rest / p.channels : rest % plane;
  const int channel = static_cast<int>(last ? rest % p.channels : rest / plane);
  const Place place =
      place_of(p, static_cast<int>(pixel / p.width), static_cast<int>(pixel % p.width));
  const float value = apply_one<T>(p, tensor_of(p.io, p.x_tensor, p.x), image, place, channel);
  void* y = const_cast<void*>(tensor_of(p.io, p.y_tensor, p.y));
  const int64_t at = element(image, p.y_image, pixel, p.y_pixel, channel, p.y_channel);
  if (p.y_kind == kFloat)
    store(static_cast<float*>(y) + at, value);
  else
    store(static_cast<T*>(y) + at, from_float(value, T{}));
}

// One thread for one pixel of the caller's image.
template <class T>
__global__ void __launch_bounds__(kThreads) apply_image(const ApplyArgs p) {
  const int64_t i = thread_index(), plane = int64_t{p.height} * p.width;
  if (i >= p.n * plane) return;
  const int64_t image = i / plane, pixel = i % plane;
  const Place place =
      place_of(p, static_cast<int>(pixel / p.width), static_cast<int>(pixel % p.width));
  const void* x = tensor_of(p.io, p.x_tensor, p.x);
  float rgb[3];
#pragma unroll
  for (int c = 0; c < 3; ++c) rgb[c] = apply_one<T>(p, x, image, place, c);
  void* y = const_cast<void*>(tensor_of(p.io, p.y_tensor, p.y));
  const int64_t at = element(image, p.y_image, pixel, p.y_pixel, 0, 0);
  if (p.y_kind == kByte)
    store_pixel<uint8_t>(*p.io, y, at, p.y_channel, rgb);
  else
    store_pixel<float>(*p.io, y, at, p.y_channel, rgb);
}

template <class T>
__global__ void __launch_bounds__(kThreads) direct_kernel(const DirectArgs p) {
  const int rows = (p.out_height - p.phase_y + p.out_stride - 1) / p.out_stride;
  const int columns = (p.out_width - p.phase_x + p.out_stride - 1) / p.out_stride;
  // 32 bits: divisions of 64 are calls, for which registers are spilled.
  const unsigned i = blockIdx.x * kThreads + threadIdx.x;
  if (i >= static_cast<unsigned>(rows) * columns * p.outputs) return;
  const int64_t image = blockIdx.y;
  const int place = static_cast<int>(i / p.outputs), output = static_cast<int>(i % p.outputs);
  const int row = place / columns, column = place % columns;
  const int inputs = p.inputs / p.groups, first = output / (p.outputs / p.groups) * inputs;
  const void* x = tensor_of(p.io, p.x_tensor, p.x);
  const float* weights = p.weights + int64_t{output} * inputs * p.kernel_h * p.kernel_w;
  float sum = load(p.bias + output);
  for (int ky = 0; ky < p.kernel_h; ++ky) {
    const int from_y = load(p.row_map + row * p.stride + ky);
    for (int kx = 0; kx < p.kernel_w; ++kx) {
      const int from_x = load(p.column_map + column * p.stride + kx);
      if (from_y < 0 || from_x < 0) continue;
      const int64_t pixel = int64_t{from_y} * p.x_width + from_x;
      for (int c = 0; c < inputs; ++c)
        sum += read<T>(p.io, x, p.x_kind,
                       element(image, p.x_image, pixel, p.x_pixel, first + c, p.x_channel)) *
               load(weights + (c * p.kernel_h + ky) * p.kernel_w + kx);
    }
  }
  const int y_row = row * p.out_stride + p.phase_y, y_column = column * p.out_stride + p.phase_x;
  const int64_t pixel = int64_t{y_row} * p.out_width + y_column;
  if (p.residual) {
    const int64_t from =
        p.residual_side ? int64_t{compact(y_row, p.out_height, p.residual_side)} * p.residual_side +
                              compact(y_column, p.out_width, p.residual_side)
                        : pixel;
    sum += to_float(load(static_cast<const T*>(p.residual) +
                         element(image, p.residual_image, from, p.residual_pixel, output, 1)));
  }
  sum = activate(leaky(sum, p.slope), p.activation);
  void* y = const_cast<void*>(tensor_of(p.io, p.y_tensor, p.y));
  const int64_t at = element(image, p.y_image, pixel, p.y_pixel, output, p.y_channel);
  if (p.y_kind == kFloat)
    store(static_cast<float*>(y) + at, sum);
  else
    store(static_cast<T*>(y) + at, from_float(sum, T{}));
}

enum Pool : int { kMax = 0, kAverage = 1, kGlobal = 2 };

template <class T>
__global__ void __launch_bounds__(kThreads) pool_kernel(const PoolArgs p) {
  const int64_t i = thread_index(), plane = int64_t{p.out_height} * p.out_width;
  if (i >= p.n * plane * p.channels) return;
  const int channel = static_cast<int>(i % p.channels);
  const int64_t image = i / p.channels / plane, pixel = i / p.channels % plane;
  const T* x = static_cast<const T*>(p.x) + image * p.x_image + channel;
  int top = 0, left = 0, bottom = p.height, right = p.width;
  float size = static_cast<float>(p.height) * static_cast<float>(p.width);
  if (p.kind != kGlobal) {
    top = static_cast<int>(pixel / p.out_width) * p.stride - p.padding;
    left = static_cast<int>(pixel % p.out_width) * p.stride - p.padding;
    bottom = top + p.kernel < p.height ? top + p.kernel : p.height;
    right = left + p.kernel < p.width ? left + p.kernel : p.width;
    top = top > 0 ? top : 0;
    left = left > 0 ? left : 0;
    size = static_cast<float>((bottom - top) * (right - left));  // padding does not count
  }
  float best = -INFINITY, sum = 0;
  for (int y = top; y < bottom; ++y) {
    float row = 0;  // sums of sums: a large map costs fewer digits
    for (int column = left; column < right; ++column) {
      const float v = to_float(load(x + (int64_t{y} * p.width + column) * p.x_pixel));
      best = v > best || v != v ? v : best;  // NaN stays
      row += v;
    }
    sum += row;
  }
  store(static_cast<T*>(p.y) + image * p.y_image + pixel * p.y_pixel + channel,
        from_float(p.kind == kMax ? best : sum / size, T{}));
}

template <class T>
__global__ void __launch_bounds__(kThreads) reshape_kernel(const ReshapeArgs p) {
  const int64_t i = thread_index(), size = p.y_channels * p.y_pixels;
  if (i >= p.n * size) return;
  const int64_t image = i / size, channel = i % p.y_channels, pixel = i / p.y_channels % p.y_pixels;
  const int64_t number = channel * p.y_pixels + pixel;
  store(static_cast<T*>(p.y) + image * p.y_image + pixel * p.y_pixel + channel,
        load(static_cast<const T*>(p.x) + image * p.x_image + number % p.x_pixels * p.x_pixel +
             number / p.x_pixels));
}

__global__ void __launch_bounds__(32) io_kernel(Io* io, const Io values) {
  const int i = threadIdx.x;
  if (i < kIoTensors) store(&io->address[i], values.address[i]);
  if (i != 0) return;
  store(&io->gain, values.gain);
  store(&io->low, values.low);
  store(&io->out_low, values.out_low);
  store(&io->out_scale, values.out_scale);
  store(&io->photo_scale, values.photo_scale);
  store(&io->strength, values.strength);
  store(&io->preserve_color, values.preserve_color);
  store(&io->bgr, values.bgr);
}

}  // namespace

int apply(int dtype, const ApplyArgs& p, void* stream) {
  const int64_t pixels = p.n * p.height * p.width;
  const int vector = dtype == kFloat32 ? 4 : 8;
  const auto whole = [&](const void* base, int64_t image, int64_t pixel, int64_t channel) {
    return reinterpret_cast<uintptr_t>(base) % 16 == 0 && image % vector == 0 &&
           pixel % vector == 0 && channel == 1;
  };
  const bool vectors =
      p.channels % vector == 0 && p.x_tensor < 0 && p.y_tensor < 0 && p.x_kind == kOwn &&
      p.y_kind == kOwn && !p.is_image && whole(p.x, p.x_image, p.x_pixel, p.x_channel) &&
      whole(p.y, p.y_image, p.y_pixel, p.y_channel) &&
      (!p.combine || whole(p.residual, p.residual_image, p.residual_pixel, p.residual_channel));
  return with_type(dtype, [&](auto type) {
    using T = decltype(type);
    if (p.is_image) return launch_items(apply_image<T>, pixels, stream, p);
    if (vectors) return launch_items(apply_vectors<T>, pixels * (p.channels / vector), stream, p);
    return launch_items(apply_elements<T>, pixels * p.channels, stream, p);
  });
}

int direct_conv(int dtype, const DirectArgs& p, void* stream) {
  const int64_t rows = (p.out_height - p.phase_y + p.out_stride - 1) / p.out_stride;
  const int64_t columns = (p.out_width - p.phase_x + p.out_stride - 1) / p.out_stride;
  if (rows < 1 || columns < 1) return 0;
  const int64_t items = rows * columns * p.outputs;
  if (items > 0x7fffffff || p.n > 65535)
    throw std::invalid_argument("a convolution of this shape is too large for one launch");
  const dim3 blocks(blocks_for(items).x, static_cast<unsigned>(p.n));
  return with_type(dtype, [&](auto type) {
    auto kernel = direct_kernel<decltype(type)>;
    FASTGEN_LAUNCH(kernel, blocks, dim3(kThreads), 0, static_cast<cudaStream_t>(stream), p);
    return launch_error();
  });
}

int pool(int dtype, const PoolArgs& p, void* stream) {
  return with_type(dtype, [&](auto type) {
    return launch_items(pool_kernel<decltype(type)>, p.n * p.out_height * p.out_width * p.channels,
                        stream, p);
  });
}

int reshape(int dtype, const ReshapeArgs& p, void* stream) {
  return with_type(dtype, [&](auto type) {
    return launch_items(reshape_kernel<decltype(type)>, p.n * p.y_channels * p.y_pixels, stream, p);
  });
}

int write_io(Io* io, const Io& values, void* stream) {
  auto kernel = io_kernel;
  FASTGEN_LAUNCH(kernel, dim3(1), dim3(32), 0, static_cast<cudaStream_t>(stream), io, values);
  return launch_error();
}

}  // namespace gpu
}  // namespace fastgen
