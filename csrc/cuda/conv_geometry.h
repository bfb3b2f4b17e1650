// Where a convolution reads and writes: index arithmetic shared by the kernel, the launcher and the
// tests. Element counts are 64 bits wide; sizes of one image's side are 32.
#pragma once

#include <cstdint>

#ifdef FASTGEN_EMULATE
#include "emulate.h"
#elif !defined(__CUDACC__)
#define __host__
#define __device__
#endif

namespace fastgen {
namespace gpu {

// What lies outside the image.
enum Border : int { kBorderZero = 0, kBorderReflect = 1, kBorderClamp = 2 };

// The stored row (column) that position `u` of the padded, upsampled input shows; -1: a zero.
// Reflection does not repeat the border and reaches less than one size far.
__host__ __device__ inline int source_index(int u, int size, int upsample, int border) {
  const int full = size * upsample;
  if (u < 0 || u >= full) {
    if (border == kBorderZero) return -1;
    if (border == kBorderClamp) return u < 0 ? 0 : size - 1;
    u = u < 0 ? -u : 2 * (full - 1) - u;
    if (u < 0 || u >= full) return -1;  // beyond a partial tile: computed, never stored
  }
  return upsample == 1 ? u : u >> 1;
}

// The caller's tensors of a run, and how photos become numbers and numbers photos. It lies in
// device memory and is written before every run, so that a captured graph serves any address.
constexpr int kIoTensors = 32;
struct Io {
  uint64_t address[kIoTensors];
  float gain, low;              // photo to the network's range
  float out_low, out_scale;     // and back to 0..1
  float photo_scale, strength;  // photo to 0..1
  int preserve_color, bgr;
};

// Element of (image, pixel, channel) in a tensor with these strides.
__host__ __device__ inline int64_t element(int64_t image, int64_t image_stride, int64_t pixel,
                                           int64_t pixel_stride, int64_t channel,
                                           int64_t channel_stride) {
  return image * image_stride + pixel * pixel_stride + channel * channel_stride;
}

constexpr int kMaxPhases = 8;  // per axis

// Element types of tensors that belong to the caller; `kOwn` is the network's.
enum Kind : int { kOwn = 0, kFloat = 1, kByte = 2 };

// Everything a launch needs to know. Pointers are of the element type unless they say otherwise.
struct ConvArgs {
  const void* x;
  const void* weights;   // [phase][block of channels][tap][padded output][64 bytes]
  const float* bias;     // per output
  const void* residual;  // added to the output, or null
  void* y;
  const float* scale;               // (image, channel) of the norm that is applied on load, or null
  const float* shift;               //
  const void* load_residual;        // added on load, or null; strides of x
  float* partial;                   // statistics of a tile: count, mean, sum of squares; or null
  const Io* io;                     // where the caller's tensors are, or null
  const int *row_map, *column_map;  // source row (column) of a padded one, -1 a zero; or null

  int64_t x_image, x_pixel, x_channel;  // strides
  int64_t y_image, y_pixel, y_channel;
  int64_t residual_image, residual_pixel, load_residual_image, load_residual_pixel;
  int64_t scale_image;
  int x_tensor, y_tensor;  // index in `io`, or -1
  int x_kind, y_kind;
  int map_rows, map_columns;
  int height, width, channels;  // of x
  int out_height, out_width, outputs, padded_outputs;
  int kernel_h, kernel_w;  // of a phase
  int stride, upsample, border;
  int phases;  // per axis: 1, or 2 when upsampling became four small convolutions
  int phase_origin_y[kMaxPhases], phase_origin_x[kMaxPhases];  // input position of the first tap
  // Kernel columns beyond the first that became outputs: output o * (fold + 1) + k is what column k
  // adds to pixels k further left. 0: none.
  int fold;
  int rows_of_taps;  // row mode: a tap is a kernel row of kernel_w * channels elements
  int blocks, taps;  // steps of the product: blocks of channels times taps

  int tile_w_log, tiles_x, tiles_y;
  int halo_rows, halo_columns;  // of one parity when stride is 2
  int row_parities, column_parities;
  int table_columns, positions;  // positions: of the halo, 64 bytes each
  int halo_buffers, ahead;       // slots of the ring; blocks loaded before the first step
  int vector_x, vector_y;        // 16-byte accesses along the channels
  float slope, load_slope;
  int activation;     // of the output, after `slope`; Activation in network.h
  int residual_side;  // the residual holds the ends and one middle row and column; 0: all of them
  int crop_rows, crop_columns;  // of the caller's image that y is written to
  bool is_image;                // y is an image: strength, colour and range are applied
};

}  // namespace gpu
}  // namespace fastgen
