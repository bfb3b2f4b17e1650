// What is done with single numbers and pixels: activations, and the way from and to the caller's
// tensors and photos.
#pragma once

#include "common.cuh"
#include "conv_geometry.h"

namespace fastgen {
namespace gpu {

FASTGEN_DEVICE float leaky(float x, float slope) { return x > 0.0f ? x : x * slope; }

// As ACTIVATIONS in fastgen/backends/_lower.py; relu and leaky_relu are a slope.
enum Activation : int { kNone = 0, kRelu = 1, kLeaky = 2, kTanh = 3, kSigmoid = 4 };

FASTGEN_DEVICE float activate(float x, int kind) {
  if (kind == kTanh) return tanhf(x);
  if (kind == kSigmoid) return 1.0f / (1.0f + expf(-x));
  return x;
}

// A tensor of the caller where `index` is one, else `own`.
FASTGEN_DEVICE const void* tensor_of(const Io* io, int index, const void* own) {
  return io && index >= 0 ? reinterpret_cast<const void*>(load(&io->address[index])) : own;
}

// Where position `at` of `size` lies in what holds the two ends and, once, the middle.
FASTGEN_DEVICE int compact(int at, int size, int count) {
  const int edge = count / 2, end = count - (size - at);
  return at < edge ? at : (end > edge ? end : edge);
}

FASTGEN_DEVICE float to_float(uint8_t x) { return static_cast<float>(x); }

FASTGEN_DEVICE float unit(float x) { return fminf(fmaxf(x, 0.0f), 1.0f); }  // NaN -> 0

FASTGEN_DEVICE uint8_t from_float(float x, uint8_t) {
  return static_cast<uint8_t>(rintf(unit(x) * 255.0f));
}

// Writes the network's RGB as a pixel of the caller's image, whose channels are elements `at` and,
// `step` elements apart, those that follow. The photo is the caller's tensor 0. The arithmetic of
// cpu/image.inl.
template <class T>
FASTGEN_DEVICE void store_pixel(const Io& io, void* out, int64_t at, int64_t step,
                                const float (&rgb)[3]) {
  const float low = load(&io.out_low), scale = load(&io.out_scale);
  const float strength = load(&io.strength);
  const int64_t first = load(&io.bgr) ? 2 * step : 0, last = 2 * step - first;
  float r = unit((rgb[0] - low) * scale);
  float g = unit((rgb[1] - low) * scale);
  float b = unit((rgb[2] - low) * scale);
  const int preserve_color = load(&io.preserve_color);
  if (preserve_color || strength != 1.0f) {
    const T* photo = static_cast<const T*>(tensor_of(&io, 0, nullptr)) + at;
    const float photo_scale = load(&io.photo_scale);
    const float pr = to_float(load(photo + first)) * photo_scale;
    const float pg = to_float(load(photo + step)) * photo_scale;
    const float pb = to_float(load(photo + last)) * photo_scale;
    if (preserve_color) {  // BT.601: the photo plus the difference of the lumas
      const float d = 0.299f * (r - pr) + 0.587f * (g - pg) + 0.114f * (b - pb);
      r = unit(pr + d);
      g = unit(pg + d);
      b = unit(pb + d);
    }
    r = pr + (r - pr) * strength;
    g = pg + (g - pg) * strength;
    b = pb + (b - pb) * strength;
  }
  T* to = static_cast<T*>(out) + at;
  store(to + first, from_float(r, T{}));
  store(to + step, from_float(g, T{}));
  store(to + last, from_float(b, T{}));
}

}  // namespace gpu
}  // namespace fastgen
