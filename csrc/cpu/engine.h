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

constexpr int64_t kAllRows = INT64_MAX;

struct Value {
  ValueShape shape;
  int64_t image, block, row, pixel;  // strides in elements
  bool shared = false;               // in a segment's plan: of the whole batch
  // A run in bands keeps some rows only: row y is the (y + first) % rows-th one in memory.
  int64_t rows = kAllRows, first = 0;

  int64_t place(int64_t y) const { return (y + first) % rows; }
};

// Source rows and columns of every window position of a step, residual included. Of rows the ones
// in memory: Step::locate.
struct Maps {
  std::vector<int32_t> src_y, src_x, res_y, res_x, store_y;
  int64_t height = 0, width = 0;  // after the views
};

// How a step goes through its rows: in units, from the first to the last, one or several at a time.
struct Flow {
  struct Rows {
    int64_t first = 0, last = 0;
  };
  struct Reading {
    int value;
    std::vector<Rows> rows;  // that each unit reads
    int64_t together = 1;    // rows, from a multiple of this on, that must be neighbours in memory
  };
  struct Writing {
    int value;
    std::vector<int64_t> ready;  // rows that exist after each unit
    bool late = false;           // written by the last unit only
    int64_t together = 1;        // as in Reading
  };
  std::vector<Reading> reads;
  std::vector<Writing> writes;
  std::vector<int> slots;   // that are read
  int slot = -1;            // that the last unit writes
  bool statistics = false;  // it is an instance norm of the step's output
};

struct StepPlan {
  Maps maps;
  // convolutions: a domain of rows x columns cut into tiles of tile_rows x tile_columns
  int64_t domain_rows = 0, domain_columns = 0, tile_rows = 1, tile_columns = 1;
  int64_t tiles_y = 1, tiles_x = 1, chunks = 1;  // chunks: parts of the output channels
  int64_t panel_floats = 0, stats_floats = 0;
  int64_t batch = 1, image_floats = 0;  // images in a tile, the panel's floats of each
  int64_t first_y = 0, first_x = 0;     // window position 0 in input coordinates
  int64_t part_rows = 1;                // domain rows whose statistics are summed together
  int64_t units = 1;                    // see Flow
  double flops = 0;                     // of the convolution as it was given
  double products = 0;                  // multiply-adds that are done
};

struct Slot {
  int channels;
  std::vector<float> scale, shift;  // padded; empty when computed at run time
};

struct Plan;
class Bands;

// Steps that a thread runs for one image after the other, so that what passes from one to the next
// stays in its cache.
struct Segment {
  int first = 0, last = 0;
  std::shared_ptr<const Plan> plan;  // of one image
  int64_t value_floats = 0;          // of a thread
};

struct Plan {
  const void* owner = nullptr;
  uint64_t number = 0;                 // of all plans of the process
  std::shared_ptr<const Bands> bands;  // null: step by step
  std::vector<Value> values;
  std::vector<StepPlan> steps;
  std::vector<int64_t> slot_offset;  // floats from the start of the slot memory
  std::vector<int64_t> slot_padded;  // channels rounded up to whole blocks
  std::vector<int64_t> slot_images;
  int64_t slot_floats = 0, value_floats = 0, panel_floats = 0, stats_floats = 0, total_floats = 0;
  int externals = 0;
  std::vector<int64_t> external_floats;
  std::vector<Segment> segments;
  bool keeping = true;                    // the constant steps can be left out
  int64_t images = 0, thread_floats = 0;  // thread_floats: what segments need in each thread
};

// A photo on its way through a run in bands.
struct ImageCall {
  const void* photo;
  void* out;
  bool is_byte;
  int64_t n, height, width;
  ImageIO io;
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
  float* shared;  // the arena of the whole batch, and the image of it that a segment is at
  int64_t image;
  int64_t first_unit, last_unit;  // what is to be run; the units before them were
  bool statistics;                // whether those of the step's norm are wanted
  bool storing;                   // whether the step's other output (Source::store) is
  const ImageCall* photo;         // of runs in bands

  bool complete() const { return last_unit == step->units; }
  const Value& value(int index) const { return plan->values[index]; }
  // Where the value's elements start, whatever their type.
  float* data(int index) const {
    const Value& v = plan->values[index];
    const int64_t offset = v.shape.offset;
    float* const from =
        offset < 0 ? (*externals)[-1 - offset] : (v.shared ? shared : arena) + offset;
    if (!v.shared) return from;
    return reinterpret_cast<float*>(reinterpret_cast<char*>(from) +
                                    image * v.image * element_bytes(v.shape.dtype));
  }
  // [image][scale: padded channels][shift: padded channels]
  float* scale(int slot, int64_t n) const {
    return slots + plan->slot_offset[slot] + (image + n) * 2 * plan->slot_padded[slot];
  }
  float* shift(int slot, int64_t n) const { return scale(slot, n) + plan->slot_padded[slot]; }
  // What they were made of lies behind all slots, in the same order.
  float* mean(int slot, int64_t n) const { return scale(slot, n) + plan->slot_floats; }
  float* variance(int slot, int64_t n) const { return shift(slot, n) + plan->slot_floats; }
  float* panel(int thread) const { return panels + thread * plan->panel_floats; }
};

class Step {
 public:
  explicit Step(std::string label) : label(std::move(label)) {}
  virtual ~Step() = default;
  // Checks all sizes (nothing may be out of bounds afterwards) and fills the step's plan.
  virtual void plan(const Plan& plan, const std::vector<Slot>& slots, const Kernels& isa,
                    int threads, StepPlan* out) const = 0;
  virtual void flow(const Plan& plan, const StepPlan& step, Flow* out) const = 0;
  // Turns the rows of the step's maps into places in memory.
  virtual void locate(const Plan& plan, StepPlan* step) const;
  virtual void run(const Context& context) const = 0;
  virtual bool only_statistics() const { return false; }

  std::string label;
};

std::unique_ptr<Step> make_conv(ConvSpec spec, const Kernels& isa);
std::unique_ptr<Step> make_grouped(ConvSpec spec);
std::unique_ptr<Step> make_linear(ConvSpec spec);
std::unique_ptr<Step> make_copy(const std::string& label, const Source& source, int out);
std::unique_ptr<Step> make_stats(const std::string& label, int value, NormSpec norm);
std::unique_ptr<Step> make_given(const std::string& label, int mean, int var, NormSpec norm);
std::unique_ptr<Step> make_pool(const std::string& label, int value, int out, const PoolSpec& spec);
std::unique_ptr<Step> make_concat(const std::string& label, std::vector<int> values,
                                  std::vector<int> first, int out);
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
// Rows [first, last) among `count` entries of a map.
Flow::Rows reach(const std::vector<int32_t>& map, int64_t first, int64_t count);
// Appends what the source reads; unit i reads map entries [i*step, i*step + count).
void source_flow(const Source& source, const Maps& maps, int64_t units, int64_t step, int64_t count,
                 Flow* out);
void locate_source(const Plan& plan, const Source& source, Maps* maps);
// All rows at once, in one unit.
Flow::Reading read_all(const Plan& plan, int value);
// (h, w) of the source after its views.
void source_size(const Plan& plan, const Source& source, int64_t* height, int64_t* width);
PackArgs source_args(const Context& context, const Source& source, int64_t image);
// Where a norm goes, per channel; mean and variance may be null.
struct NormTarget {
  float *scale, *shift, *mean, *variance;

  NormTarget at(int64_t i) const {
    return {scale + i, shift + i, mean ? mean + i : nullptr, variance ? variance + i : nullptr};
  }
};
// Turns moments [pivot|sum|squares] of `parts` parts into scale and shift of channels
// [first, first + channels), at most one block; `to` is the first of them.
void write_norm(const NormSpec& norm, int64_t first, int64_t channels, const float* stats,
                int64_t part_stride, const int64_t* counts, int64_t parts, const NormTarget& to);
// The same of given moments.
void put_norm(const NormSpec& norm, int64_t channel, double mean, double variance, float* scale,
              float* shift);
void check_norm(const std::vector<Slot>& slots, const NormSpec& norm, int64_t channels,
                const std::string& label);
// Tiles of a convolution whose domain is set, with panels of elements of `bytes`.
void geometry(int channels, int format, int64_t span_y, int64_t span_x, int stride, int64_t items,
              int most_pixels, int threads, int64_t bytes, StepPlan* out);

}  // namespace fastgen
