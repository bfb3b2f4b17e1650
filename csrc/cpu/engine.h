// What the engine's files share: prepacked steps, plans, execution context.
#pragma once

#include <sys/types.h>

#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "../fastgen.h"
#include "arena.h"
#include "kernels.h"
#include "parallel.h"

namespace fastgen {

[[noreturn]] void fail(const std::string& message);
void require(bool ok, const std::string& message);

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t blocks_of(int64_t channels) { return ceil_div(channels, kBlock); }

inline int64_t element_bytes(int dtype) { return dtype == kFloat32 ? 4 : 2; }

// 64-byte aligned weights.
class Weights {
 public:
  void resize(size_t floats);
  float* data() { return data_; }
  const float* data() const { return data_; }

 private:
  std::vector<float> storage_;
  float* data_ = nullptr;
};

struct Value {
  ValueShape shape;
  int64_t image, block, row, pixel;  // strides in elements
};

// Source rows and columns of every window position of a step, residual included.
struct Maps {
  std::vector<int32_t> src_y, src_x, res_y, res_x;
  int64_t height = 0, width = 0;  // after the views
};

struct StepPlan {
  Maps maps;
  // convolutions: a domain of rows x columns cut into tiles of tile_rows x tile_columns
  int64_t domain_rows = 0, domain_columns = 0, tile_rows = 1, tile_columns = 1;
  int64_t tiles_y = 1, tiles_x = 1, chunks = 1;  // chunks: parts of the output channels
  int64_t panel_floats = 0, stats_floats = 0;
  int64_t first_y = 0, first_x = 0;  // window position 0 in input coordinates
  int64_t part_rows = 1;             // domain rows whose statistics are summed together
  double flops = 0;                  // of the convolution as it was given
  double products = 0;               // multiply-adds that are done
};

struct Slot {
  int channels;
  std::vector<float> scale, shift;  // padded; empty when computed at run time
};

struct Plan {
  const void* owner = nullptr;
  std::vector<Value> values;
  std::vector<StepPlan> steps;
  std::vector<int64_t> slot_offset;  // floats from the start of the slot memory
  std::vector<int64_t> slot_padded;  // channels rounded up to whole blocks
  std::vector<int64_t> slot_images;
  int64_t slot_floats = 0, value_floats = 0, panel_floats = 0, stats_floats = 0, total_floats = 0;
  int externals = 0;
  std::vector<int64_t> external_floats;
};

// Everything a step needs while it runs.
struct Context {
  const Plan* plan;
  const StepPlan* step;
  const Kernels* isa;
  Pool* pool;
  float* arena;
  float* panels;  // pool threads x plan->panel_floats
  float* stats;
  float* slots;
  const std::vector<float*>* externals;

  const Value& value(int index) const { return plan->values[index]; }
  // Where the value's elements start, whatever their type.
  float* data(int index) const {
    const int64_t offset = plan->values[index].shape.offset;
    return offset >= 0 ? arena + offset : (*externals)[-1 - offset];
  }
  // [image][scale: padded channels][shift: padded channels]
  float* scale(int slot, int64_t image) const {
    return slots + plan->slot_offset[slot] + image * 2 * plan->slot_padded[slot];
  }
  float* shift(int slot, int64_t image) const {
    return scale(slot, image) + plan->slot_padded[slot];
  }
  float* panel(int thread) const { return panels + thread * plan->panel_floats; }
};

class Step {
 public:
  explicit Step(std::string label) : label(std::move(label)) {}
  virtual ~Step() = default;
  // Checks all sizes (nothing may be out of bounds afterwards) and fills the step's plan.
  virtual void plan(const Plan& plan, const std::vector<Slot>& slots, const Kernels& isa,
                    int threads, StepPlan* out) const = 0;
  virtual void run(const Context& context) const = 0;

  std::string label;
};

std::unique_ptr<Step> make_conv(ConvSpec spec, const Kernels& isa);
std::unique_ptr<Step> make_grouped(ConvSpec spec);
std::unique_ptr<Step> make_copy(const std::string& label, const Source& source, int out);
std::unique_ptr<Step> make_stats(const std::string& label, int value, NormSpec norm);
std::unique_ptr<Step> make_given(const std::string& label, int mean, int var, NormSpec norm);
std::unique_ptr<Step> make_pool(const std::string& label, int value, int out, const PoolSpec& spec);
std::unique_ptr<Step> make_concat(const std::string& label, std::vector<int> values, int out);
std::unique_ptr<Step> make_broadcast(const std::string& label, int value, int out);
std::unique_ptr<Step> make_reshape(const std::string& label, int value, int out);

// source.cpp: reading a value through its pending epilogue. The value and its residual are of the
// same type, float32 or bfloat16.
void check_source(const Plan& plan, const std::vector<Slot>& slots, const Source& source,
                  const std::string& label);
struct Extent {
  int64_t h = 0, w = 0;
};
// Maps for input rows [first_y, first_y + rows) and columns; pad_mode as in ConvSpec.
void fill_maps(Extent value, Extent residual, const Source& source, int64_t first_y, int64_t rows,
               int64_t first_x, int64_t columns, int pad_mode, Maps* maps);
void fill_maps(const Plan& plan, const Source& source, int64_t first_y, int64_t rows,
               int64_t first_x, int64_t columns, int pad_mode, Maps* maps);
// (h, w) of the source after its views.
void source_size(const Plan& plan, const Source& source, int64_t* height, int64_t* width);
PackArgs source_args(const Context& context, const Source& source, int64_t image);
// Turns moments [pivot|sum|squares] of `parts` parts into scale and shift of channels
// [first, first + channels), at most one block.
void write_norm(const NormSpec& norm, int64_t first, int64_t channels, const float* stats,
                int64_t part_stride, const int64_t* counts, int64_t parts, float* scale,
                float* shift);
void check_norm(const std::vector<Slot>& slots, const NormSpec& norm, int64_t channels,
                const std::string& label);
// Tiles of a convolution whose domain is set.
void geometry(int channels, int format, int64_t span_y, int64_t span_x, int stride, int64_t items,
              int most_pixels, int threads, StepPlan* out);

}  // namespace fastgen
