// Image batches (n,height,width,3) to planar floats and back; the arithmetic of cpu/image.inl.
#include <cuda_runtime.h>

#include <cstdint>

#include "../fastgen.h"

namespace fastgen {
namespace {

constexpr int kThreads = 256;

// Triangle wave: reflection that does not repeat the border and works for any size.
__device__ int64_t reflect(int64_t i, int64_t size) {
  if (i < size) return i;
  if (size == 1) return 0;
  const int64_t period = 2 * (size - 1);
  i %= period;
  return i < period - i ? i : period - i;
}

__device__ float unit(float x) { return fminf(fmaxf(x, 0.0f), 1.0f); }  // NaN -> 0

__device__ float read(const uint8_t* p) { return static_cast<float>(*p); }
__device__ float read(const float* p) { return *p; }
__device__ void write(uint8_t* p, float x) {
  *p = static_cast<uint8_t>(__float2int_rn(unit(x) * 255.0f));
}
__device__ void write(float* p, float x) { *p = x; }

// One thread per padded pixel; neighbouring threads are neighbouring columns.
template <typename T>
__global__ void load_kernel(const T* __restrict__ photo, float* __restrict__ out, int64_t n,
                            int64_t height, int64_t width, int64_t rows, int64_t columns,
                            float gain, float low, int first) {
  const int64_t plane = rows * columns, total = n * plane;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < total;
       i += step) {
    const int64_t image = i / plane, pixel = i % plane;
    const int64_t y = reflect(pixel / columns, height), x = reflect(pixel % columns, width);
    const T* from = photo + ((image * height + y) * width + x) * 3;
    float* to = out + image * 3 * plane + pixel;
    to[0] = read(from + first) * gain + low;
    to[plane] = read(from + 1) * gain + low;
    to[2 * plane] = read(from + 2 - first) * gain + low;
  }
}

template <typename T>
__global__ void store_kernel(const float* __restrict__ y, const T* __restrict__ photo,
                             T* __restrict__ out, int64_t n, int64_t height, int64_t width,
                             int64_t rows, int64_t columns, float low, float scale,
                             float photo_scale, float strength, bool preserve_color, int first) {
  const int64_t plane = rows * columns, total = n * height * width;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < total;
       i += step) {
    const int64_t image = i / (height * width), pixel = i % (height * width);
    const float* from = y + image * 3 * plane + pixel / width * columns + pixel % width;
    float r = unit((from[0] - low) * scale);
    float g = unit((from[plane] - low) * scale);
    float b = unit((from[2 * plane] - low) * scale);
    if (preserve_color || strength != 1.0f) {
      const float pr = read(photo + 3 * i + first) * photo_scale;
      const float pg = read(photo + 3 * i + 1) * photo_scale;
      const float pb = read(photo + 3 * i + 2 - first) * photo_scale;
      if (preserve_color) {  // BT.601: the photo plus the difference of the lumas
        const float d = 0.299f * (r - pr) + 0.587f * (g - pg) + 0.114f * (b - pb);
        r = unit(pr + d), g = unit(pg + d), b = unit(pb + d);
      }
      r = pr + (r - pr) * strength;
      g = pg + (g - pg) * strength;
      b = pb + (b - pb) * strength;
    }
    write(out + 3 * i + first, r);
    write(out + 3 * i + 1, g);
    write(out + 3 * i + 2 - first, b);
  }
}

int grid(int64_t items) {
  const int64_t blocks = (items + kThreads - 1) / kThreads;
  return static_cast<int>(blocks < 65535 ? blocks : 65535);  // kernels loop over the rest
}

}  // namespace

int cuda_image_load(const void* photo, float* out, int64_t n, int64_t height, int64_t width,
                    int64_t rows, int64_t columns, float low, float high, bool bgr, bool is_byte,
                    void* stream) {
  const auto s = static_cast<cudaStream_t>(stream);
  const int blocks = grid(n * rows * columns), first = bgr ? 2 : 0;
  if (is_byte) {
    load_kernel<<<blocks, kThreads, 0, s>>>(static_cast<const uint8_t*>(photo), out, n, height,
                                            width, rows, columns, (high - low) / 255.0f, low,
                                            first);
  } else {
    load_kernel<<<blocks, kThreads, 0, s>>>(static_cast<const float*>(photo), out, n, height, width,
                                            rows, columns, high - low, low, first);
  }
  return cudaGetLastError();
}

int cuda_image_store(const float* y, const void* photo, void* out, int64_t n, int64_t height,
                     int64_t width, int64_t rows, int64_t columns, float low, float high,
                     float strength, bool preserve_color, bool bgr, bool is_byte, void* stream) {
  const auto s = static_cast<cudaStream_t>(stream);
  const int blocks = grid(n * height * width), first = bgr ? 2 : 0;
  const float scale = 1.0f / (high - low);
  if (is_byte) {
    store_kernel<<<blocks, kThreads, 0, s>>>(
        y, static_cast<const uint8_t*>(photo), static_cast<uint8_t*>(out), n, height, width, rows,
        columns, low, scale, 1.0f / 255.0f, strength, preserve_color, first);
  } else {
    store_kernel<<<blocks, kThreads, 0, s>>>(
        y, static_cast<const float*>(photo), static_cast<float*>(out), n, height, width, rows,
        columns, low, scale, 1.0f, strength, preserve_color, first);
  }
  return cudaGetLastError();
}

}  // namespace fastgen
