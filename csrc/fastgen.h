// The contract between the bindings and the kernels: every entry point, declared once.
//
// No torch and no Python here. Kernels take plain pointers, sizes and (CUDA) a stream; they never
// allocate, synchronize or keep a pointer. Wrong arguments throw std::invalid_argument with one
// line, missing memory throws OutOfMemory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "dtype.h"

namespace fastgen {

// ------------------------------------------------------------------ cpu: engine

// A step that moves pixels without arithmetic, applied while loading.
struct ViewOp {
  enum Kind : int { kUpsample = 0, kCrop = 1, kPadZeros = 2, kPadReflect = 3 };
  int kind = 0;
  int64_t left = 0, right = 0, top = 0, bottom = 0;  // kUpsample: left is the factor
};

// How a step reads a value: y = post(combine(pre(scale*x + shift), residual)), then the views.
struct Source {
  int value = -1;
  int slot = -1;  // scale and shift per image and channel; -1: none
  int pre = 0;    // Act
  float pre_slope = 0;
  int combine = 0;  // Combine
  int residual = -1;
  int post = 0;
  float post_slope = 0;
  std::vector<ViewOp> views, residual_views;
  int store = -1;  // value that receives a copy of what is loaded
};

// Instance statistics of a step's output become a slot: scale = weight/sqrt(var + eps).
struct NormSpec {
  int slot = -1;
  float eps = 0;
  std::vector<float> weight, bias;  // per channel, or empty
};

// A convolution that contributes output pixels (rx + i*out_stride, ry + j*out_stride).
struct PhaseSpec {
  int kh = 0, kw = 0;
  int dy = 0, dx = 0;  // input offset of the first tap
  int ry = 0, rx = 0;
  std::vector<float> weights;  // (outputs, inputs/groups, kh, kw)
};

struct ConvSpec {
  std::string label;
  Source source;
  int out = -1;
  int inputs = 0, outputs = 0, groups = 1;
  int stride = 1, out_stride = 1;
  int pad_mode = 0;  // 0 zeros, 1 reflect, 2 repeat the border
  std::vector<PhaseSpec> phases;
  // Factors of the products: kFloat32, or rounded to kBFloat16; sums are float32 either way. Or
  // kInt8, where there are enough products and few enough for a sum in int32 (else float32): bytes
  // round(x*quant + zero) of the inputs meet weights with a scale for each output.
  // `fine`: Winograd convolutions of the latter take a third more products, for 4 dB less error.
  int products = kFloat32;
  bool fine = false;
  bool direct = false;  // never by Winograd: the maps are so small that its weights would cost more
  std::vector<float> quant, zero;   // per input of kInt8; empty: from the range of each image
  std::vector<float> mean, spread;  // of an input's bytes, or empty: not known, so no Winograd
  std::vector<float> bias;          // per output, or empty
  int act = 0;
  float slope = 0;
  NormSpec norm;
  bool small = false;  // at most 4 outputs, planar
  bool flat = false;   // a linear layer
  bool step = false;   // of an engine: all tensors are float32 or bfloat16, not planar unless small
  // Value added to the output before the activation, or -1. Where it is smaller than the output its
  // middle row and column are repeated: it holds what a convolution makes of a constant map.
  int residual = -1;
};

struct PoolSpec {
  int kind = 0;  // 0 max, 1 avg, 2 global_avg
  int kernel = 1, stride = 1, padding = 0;
};

struct ValueShape {
  int64_t n = 0, c = 0, h = 0, w = 0;
  bool planar = false;
  int dtype = kFloat32;  // in memory; kBFloat16: blocked values in the arena only
  int64_t offset = -1;  // floats from the arena's start; negative: -1 - index of the external array
  int64_t image = 0;    // floats from image to image where it is part of a larger value; 0: its own
  bool dense = false;   // fewer than a block of channels side by side: (n, h, w, c); a convolution
                        // writes it, and what is inside it is read in its place
};

// Steps [first, last) that a thread may run for one image after the other. `values` are read and
// written by them alone: (value, offset in a thread's memory of `floats`).
struct SegmentSpec {
  int first = 0, last = 0;
  int64_t floats = 0;
  std::vector<std::pair<int, int64_t>> values;
};

struct ImageIO {
  float input_low = 0, input_high = 255, output_low = 0, output_high = 255, strength = 1;
  bool preserve_color = false, bgr = false;
};

// A run in bands (csrc/cpu/bands.h).
struct BandSpec {
  int64_t rows = 64;     // of the largest values, in each band
  int64_t limit = 0;     // bytes: the least arithmetic that fits; 0: the least memory that costs
  double most_work = 2;  // at most this much arithmetic, a run without bands being 1
  bool given_norms = false;  // statistics come with the run
};

struct BandReport {
  int64_t bytes = 0, kept_bytes = 0;  // in all; of values that are kept whole, at most
  double work = 1;                    // arithmetic, a run without bands being 1
  int passes = 0;                     // over the frame; 0: not in bands
  int64_t bands = 0;
};

// A photo that a run in bands reads and writes by itself; n = 0: none.
struct ImageShape {
  int64_t n = 0, height = 0, width = 0;
  int input = -1, output = -1;  // values
};

// Value `inner` is channels `channel` (a multiple of 16) and following of value `outer`.
struct JoinSpec {
  int inner, outer;
  int64_t channel;
};

// Statistics of all instance norms, in the order in which they were added: means (n, channels),
// then variances. Null: they are computed; not wanted.
struct NormArrays {
  const float* given = nullptr;
  float* wanted = nullptr;
};

struct StepTime {
  std::string label;
  double milliseconds;
  double flops;
};

struct StepCost {
  double flops;     // of the step as it was given
  double products;  // multiply-adds that are done
};

struct Plan;  // step geometry for one set of input shapes

// Owns prepacked weights, threads and the arena. Calls are serialised by a mutex.
class Engine {
 public:
  Engine(int threads, const std::string& isa);  // 0: default_threads(); "": the best
  ~Engine();

  int add_slot(int channels, const std::vector<float>& scale, const std::vector<float>& shift);
  int add_value();
  void add_conv(ConvSpec spec);
  void add_copy(const std::string& label, const Source& source, int out);
  void add_stats(const std::string& label, int value, NormSpec norm);
  void add_given(const std::string& label, int mean, int var, NormSpec norm);
  void add_pool(const std::string& label, int value, int out, const PoolSpec& spec);
  // Copies values to channels `first` and following of `out`, which may have others, too.
  void add_concat(const std::string& label, const std::vector<int>& values,
                  const std::vector<int>& first, int out);
  void add_broadcast(const std::string& label, int value, int out);
  void add_reshape(const std::string& label, int value, int out);

  // Floats that `shape` takes in memory.
  static int64_t value_floats(const ValueShape& shape);
  std::shared_ptr<const Plan> plan(const std::vector<ValueShape>& values, int64_t arena_floats,
                                   int externals,
                                   const std::vector<SegmentSpec>& segments = {}) const;
  static int64_t plan_bytes(const Plan& plan);
  static std::vector<StepCost> plan_costs(const Plan& plan);
  // Of values only shapes are read, and whether they are external (a negative offset). `joins`:
  // (value, the one whose memory it is part of, first channel there), inner ones first.
  std::shared_ptr<const Plan> plan_bands(const std::vector<ValueShape>& values, int externals,
                                         const BandSpec& spec, const ImageShape& image,
                                         const std::vector<JoinSpec>& joins) const;
  static BandReport band_report(const Plan& plan);
  int64_t norm_floats(const Plan& plan) const;  // of each of NormArrays
  // The first `count` steps depend on inputs alone that stay the same over many runs.
  void set_constant_steps(int count);
  // externals[i] has the floats of the value with offset -1 - i. `constants` is a number for the
  // contents of the constant inputs: the constant steps are left out where the last run had the
  // same number and plan. 0 is never the same.
  void run(const Plan& plan, const std::vector<float*>& externals, const NormArrays& norms,
           uint64_t constants = 0);
  // Photo (n, height, width, 3) into planar value `input`, run, planar value `output` to `out`.
  void run_image(const Plan& plan, int input, int output, const void* photo, void* out,
                 bool is_byte, int64_t n, int64_t height, int64_t width, const ImageIO& io,
                 const NormArrays& norms);

  // Makes the engine usable in a forked child. The functions below do it too, but two threads of
  // the child must not do it at once: bindings call it before they release the GIL.
  void after_fork() const;
  void set_profile(bool on);
  std::vector<StepTime> profile() const;
  int threads() const;
  std::string isa() const;
  size_t arena_bytes() const;  // held now
  void release_memory();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// ------------------------------------------------------------------ cpu: machine

int default_threads();
// Bytes that this process can still have: what the system calls available, less where the process
// is in a container or control group with a limit.
size_t memory_available();
std::vector<std::string> isa_available();
// Multiply-adds per second times 2, on `threads` threads for about `seconds`: of float32 factors,
// for avx512_bf16 of bfloat16 factors.
double peak_flops(const std::string& isa, double seconds, int threads);
// Seconds of each of `repeats` runs of the same multiply-adds in registers, `rounds` loop rounds in
// all, handed out to `threads` threads as tiles are: how even the machine itself is, and what its
// second thread gives.
std::vector<double> fixed_work_seconds(const std::string& isa, int64_t rounds, int threads,
                                       int repeats);
// Bytes per second (read plus written) of a copy of `bytes` on `threads` threads.
double copy_bandwidth(int64_t bytes, double seconds, int threads);

// ------------------------------------------------------------------ fused operations

// A (N,C,H,W) tensor as the caller has it: any strides, counted in elements.
struct Strided {
  const void* data = nullptr;
  int64_t n = 0, c = 0, h = 0, w = 0;
  int64_t stride_n = 0, stride_c = 0, stride_h = 0, stride_w = 0;
  int dtype = kFloat32;
};

// Where element (n, c, y, x) lies, counted from the first: 64-bit throughout.
inline int64_t element_offset(const Strided& t, int64_t n, int64_t c, int64_t y, int64_t x) {
  return n * t.stride_n + c * t.stride_c + y * t.stride_h + x * t.stride_w;
}

// The stride from one position to the next in row order, when there is one; otherwise -1.
int64_t position_stride(const Strided& t);

// Throws std::invalid_argument where `t` is empty, its strides are negative, or its elements or
// bytes cannot be counted in 64 bits. `name` starts the message.
void check_strided(const Strided& t, const char* name);

// out (n, c, c) = sum over positions of x[i] * x[j] / (c*h*w). Sums are float32 over blocks of 512
// positions and float64 over blocks, in an order that depends on the shape only: the result is the
// same for every number of threads. Either the channels or the positions have stride 1.
void gram_matrix(const Strided& x, float* out, const std::string& isa);

// out (n, c1 + c2, h, w), dense in the order (n, c, h, w), or (n, h, w, c) when `last`. Strides of
// positions or of channels are 1, or (b) of positions 0: a style without positions.
void concat_features(const Strided& a, const Strided& b, void* out, bool last,
                     const std::string& isa);

// ------------------------------------------------------------------ cpu: colours of video frames

// A frame of 8-bit 4:2:0 YCbCr with even sides. kr and kb are the matrix's weights of red and blue
// (BT.601: 0.299 and 0.114).
struct YuvFrame {
  uint8_t *y = nullptr, *u = nullptr, *v = nullptr;
  int64_t y_row = 0, uv_row = 0;  // bytes
  int width = 0, height = 0;
  double kr = 0, kb = 0;
  bool full_range = false;
};

// To and from (height, width, 3) bytes without gaps; chroma is interpolated and averaged at the
// places where H.264 has it. Each byte is right to its rounding.
void yuv420_to_rgb(const YuvFrame& frame, uint8_t* rgb, const std::string& isa);
void rgb_to_yuv420(const uint8_t* rgb, const YuvFrame& frame, const std::string& isa);

// What a fused convolution is packed from: y = leaky_relu(conv(pad(upsample(x))) + bias +
// residual), or with statistics y = conv(pad(upsample(load(x)))) + bias, where load(x) =
// leaky_relu(x*scale + shift, load_slope) + residual; scale is 1 and shift 0 where they are not
// given.
struct PackedConvSpec {
  int inputs = 0, outputs = 0, kh = 0, kw = 0;
  std::vector<float> weight, bias;  // (outputs, inputs, kh, kw) and (outputs)
  int stride = 1, padding = 0, upsample = 1;
  bool reflect = false;
  float slope = 1, load_slope = 1;
  int dtype = kFloat32;            // of input, output and residual
  bool statistics = false;         // instance statistics of the output, for conv_instance_norm
  float eps = 0;                   // of that norm
  std::vector<float> gamma, beta;  // per output
};

// Prepacked weights and the plans of the last input sizes. Calls from several threads are safe.
class PackedConv {
 public:
  PackedConv(PackedConvSpec spec, const std::string& isa);  // isa "": the best
  ~PackedConv();

  // x and y dense in (N,C,H,W) or both in (N,H,W,C) order. The residual (data null: none) has the
  // shape of y or one image of it; with statistics it has the shape of x and is added on load.
  // scale and shift, (N, inputs) or null, are applied on load; with statistics the output's go to
  // out_scale and out_shift, (N, outputs). Throws std::invalid_argument, OutOfMemory.
  void run(const Strided& x, const Strided& y, const Strided& residual, const float* scale,
           const float* shift, float* out_scale, float* out_shift) const;
  const PackedConvSpec& spec() const;
  std::string isa() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// ------------------------------------------------------------------ cuda

struct CudaDevice {
  std::string name;
  int major, minor;
  uint64_t memory_bytes;
  int multiprocessors;
  int shared_bytes;  // that a block can have after opting in
};

// Number of devices; on failure 0 and the reason in *error. Never throws.
int cuda_device_count(std::string* error);
CudaDevice cuda_device(int index);
std::string cuda_compiled_archs();
int cuda_runtime_version();

// Image batch (n,height,width,3), uint8 or float32, to planar floats (n,3,rows,columns) in
// [low, high], continued by reflection to rows x columns. Returns a cudaError_t.
int cuda_image_load(const void* photo, float* out, int64_t n, int64_t height, int64_t width,
                    int64_t rows, int64_t columns, float low, float high, bool bgr, bool is_byte,
                    void* stream);
// Planar floats back to an image batch: crop, clamp, strength, colour keep, rounding.
int cuda_image_store(const float* y, const void* photo, void* out, int64_t n, int64_t height,
                     int64_t width, int64_t rows, int64_t columns, float low, float high,
                     float strength, bool preserve_color, bool bgr, bool is_byte, void* stream);
const char* cuda_error_name(int error);

// ------------------------------------------------------------------ cuda: fused operations

// What a launch is planned for: read off the device once by the caller.
struct CudaLimits {
  int multiprocessors = 0;
  int shared_bytes = 0;  // per block, after opting in
};

// x: (n,c,pixels) or, channels last, (n,pixels,c); out: (n,c,c) = F F^T / (c pixels), both
// triangles. The result does not depend on timing: partial sums are added in a fixed order.
int64_t cuda_gram_matrix_workspace(int64_t n, int64_t c, int64_t pixels, bool channels_last,
                                   int dtype, const CudaLimits& limits);  // floats
int cuda_gram_matrix(const void* x, float* out, float* workspace, int64_t n, int64_t c,
                     int64_t pixels, bool channels_last, int dtype, const CudaLimits& limits,
                     void* stream);

// out = content and style along the channels. style_n: n, or 1 for all images; style_pixels:
// pixels, or 1 for one value per channel.
int cuda_concat_features(const void* content, const void* style, void* out, int64_t n,
                         int64_t content_channels, int64_t style_channels, int64_t pixels,
                         int64_t style_n, int64_t style_pixels, bool channels_last,
                         int element_bytes, void* stream);

// A packed convolution; the caller owns the device memory. fastgen/ops/_cuda_pack.py packs it.
struct CudaConv {
  int dtype = kFloat32;
  int inputs = 0, outputs = 0;
  int kernel_h = 0, kernel_w = 0;            // of a phase when phases is 2
  int full_kernel_h = 0, full_kernel_w = 0;  // as the caller gave them
  int stride = 1, upsample = 1, padding = 0;
  int border = 0;         // Border in csrc/cuda/conv_geometry.h
  int phases = 1;         // 2: upsampling x2 became four convolutions on the small map
  bool row_mode = false;  // weights of a kernel row are one run of elements
  float slope = 1, load_slope = 1;
  float eps = 0;
  const void* weights = nullptr;  // [phase][step][outputs, padded to 8][64 bytes]
  const float *bias = nullptr, *gamma = nullptr, *beta = nullptr;  // bias padded to 8
};

struct CudaConvCall {
  const void* x = nullptr;
  int64_t n = 0, height = 0, width = 0;
  bool channels_last = false;                      // of x, load_residual, residual and y
  const float *scale = nullptr, *shift = nullptr;  // (n, inputs), norm on load
  const void* load_residual = nullptr;             // shape of x
  const void* residual = nullptr;                  // shape of y, or its first image for all
  bool residual_broadcast = false;
  void* y = nullptr;
  float* workspace = nullptr;                        // statistics only
  float *out_scale = nullptr, *out_shift = nullptr;  // (n, outputs), statistics only
  int tile = -1;  // a tile configuration, -1: the one that is expected to be fastest
};

struct CudaConvPlan {
  int tile = 0, width_log = 0;  // of the rectangle of pixels
  int64_t out_height = 0, out_width = 0;
  int64_t blocks_x = 0, blocks_y = 0;
  int threads = 0, shared_bytes = 0;
  int64_t workspace_floats = 0;
};

constexpr int kCudaConvTiles = 6;
CudaConvPlan cuda_conv_plan(const CudaConv& conv, int64_t n, int64_t height, int64_t width,
                            const CudaLimits& limits, int tile = -1);
int cuda_conv(const CudaConv& conv, const CudaConvCall& call, const CudaLimits& limits,
              void* stream);

}  // namespace fastgen
