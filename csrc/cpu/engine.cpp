// The engine: steps, plans, memory.
#include <algorithm>
#include <atomic>
#include <new>
#include <stdexcept>

#include "bands.h"
#include "engine_impl.h"
#include "image.h"
#include "isa.h"

namespace fastgen {
namespace {

constexpr int64_t kMaxSide = int64_t{1} << 24;
constexpr int64_t kMaxFloats = int64_t{1} << 40;
constexpr int64_t kAlign = 16;  // floats

int64_t align_up(int64_t floats) { return ceil_div(floats, kAlign) * kAlign; }

}  // namespace

void check_image(const ValueShape& s, const ImageShape& image) {
  require(s.planar && s.c == 3 && s.n == image.n && s.h >= image.height && s.w >= image.width &&
              image.height >= 1 && image.width >= 1,
          "the network's input or output does not hold this image");
}

void fail(const std::string& message) { throw std::invalid_argument(message); }
void require(bool ok, const std::string& message) {
  if (!ok) fail(message);
}

void Weights::resize(size_t floats) {
  storage_.assign(floats + kAlign, 0.0f);
  const auto address = reinterpret_cast<uintptr_t>(storage_.data());
  data_ = reinterpret_cast<float*>((address + 63) & ~uintptr_t{63});
}

Engine::Engine(int threads, const std::string& isa) : impl_(std::make_unique<Impl>()) {
  require(threads >= 0 && threads <= 1024, "threads is out of range; must be 1..1024");
  impl_->isa = &isa_kernels(isa);
  impl_->threads = threads ? threads : default_threads();
}

Engine::~Engine() { impl_->after_fork(); }

int Engine::add_slot(int channels, const std::vector<float>& scale,
                     const std::vector<float>& shift) {
  require(channels >= 1 && channels <= kMaxSide && scale.size() == shift.size() &&
              (scale.empty() || scale.size() == static_cast<size_t>(channels)),
          "scale and shift do not fit their channels");
  impl_->slots.push_back({channels, scale, shift});
  return static_cast<int>(impl_->slots.size()) - 1;
}

int Engine::add_value() { return impl_->values++; }

void Engine::add_conv(ConvSpec spec) {
  require(spec.out >= 0 && spec.out < impl_->values, spec.label + ": unknown output value");
  if (spec.norm.slot >= 0) impl_->norms.push_back(spec.norm);
  impl_->steps.push_back(spec.flat         ? make_linear(std::move(spec))
                         : spec.groups > 1 ? make_grouped(std::move(spec))
                                           : make_conv(std::move(spec), *impl_->isa));
}
void Engine::add_copy(const std::string& label, const Source& source, int out) {
  impl_->steps.push_back(make_copy(label, source, out));
}
void Engine::add_stats(const std::string& label, int value, NormSpec norm) {
  impl_->norms.push_back(norm);
  impl_->steps.push_back(make_stats(label, value, std::move(norm)));
}
void Engine::add_given(const std::string& label, int mean, int var, NormSpec norm) {
  impl_->steps.push_back(make_given(label, mean, var, std::move(norm)));
}
void Engine::add_pool(const std::string& label, int value, int out, const PoolSpec& spec) {
  impl_->steps.push_back(make_pool(label, value, out, spec));
}
void Engine::add_concat(const std::string& label, const std::vector<int>& values,
                        const std::vector<int>& first, int out) {
  impl_->steps.push_back(make_concat(label, values, first, out));
}
void Engine::add_broadcast(const std::string& label, int value, int out) {
  impl_->steps.push_back(make_broadcast(label, value, out));
}
void Engine::set_constant_steps(int count) {
  require(count >= 0 && count <= static_cast<int>(impl_->steps.size()),
          "number of constant steps is out of range");
  impl_->constant_steps = count;
}
void Engine::add_reshape(const std::string& label, int value, int out) {
  impl_->steps.push_back(make_reshape(label, value, out));
}

int64_t Engine::value_floats(const ValueShape& s) {
  for (int64_t size : {s.n, s.c, s.h, s.w})
    require(size >= 1 && size <= kMaxSide, "a size is outside 1..2^24");
  // Images of dense values begin at whole floats, whatever their type.
  require(!s.dense || (!s.planar && s.c < kBlock && s.c * s.h * s.w % kBlock == 0),
          "a value of these sizes cannot be dense");
  const int64_t channels = s.planar || s.dense ? s.c : blocks_of(s.c) * kBlock;
  int64_t floats = 1;
  for (int64_t size : {s.n, channels, s.h, s.w}) {
    floats *= size;  // at most 2^40 * 2^24 before the check
    if (floats > kMaxFloats) throw OutOfMemory("a value has more than 2^40 elements");
  }
  require(s.dtype == kFloat32 || (s.dtype == kBFloat16 && !s.planar),
          "a value must be float32, or bfloat16 in blocks");
  return ceil_div(floats * element_bytes(s.dtype), 4);
}

namespace {

std::atomic<uint64_t> plans{0};

void check_counts(int values, size_t given, int externals) {
  require(static_cast<int>(given) == values, "wrong number of values");
  require(externals >= 0 && externals <= 4096, "wrong number of external arrays");
}

}  // namespace

// Where values lie, and memory for scale and shift.
void Engine::Impl::place(const std::vector<ValueShape>& values, const std::vector<bool>& local,
                         int64_t arena_floats, Plan* plan) const {
  plan->owner = this;
  plan->number = ++plans;
  plan->external_floats.assign(plan->externals, 0);
  for (const ValueShape& s : values) {
    const int64_t floats = value_floats(s), own = floats / s.n;
    require(s.image == 0 || (s.image >= own && s.image <= kMaxFloats && !s.planar),
            "a value's images overlap");
    const int64_t image = s.image ? s.image : own;
    if (local[plan->values.size()]) {  // checked with its segment
    } else if (s.offset >= 0) {
      require(image <= kMaxFloats / s.n && s.offset % kAlign == 0 && s.offset <= arena_floats &&
                  (s.n - 1) * image + own <= arena_floats - s.offset,
              "a value lies outside the arena");
    } else {
      require(-1 - s.offset < plan->externals && s.planar,
              "a value lies outside the external arrays");
      plan->external_floats[-1 - s.offset] = std::max(plan->external_floats[-1 - s.offset], floats);
    }
    const int64_t plane = s.h * s.w, elements = image * 4 / element_bytes(s.dtype);
    const int64_t pixel = s.dense ? s.c : kBlock;
    plan->values.push_back(s.planar ? Value{s, elements, plane, s.w, 1}
                                    : Value{s, elements, plane * pixel, s.w * pixel, pixel});
  }
  const int64_t images = values.empty() ? 0 : values.front().n;
  for (const Slot& slot : slots) {
    const int64_t padded = blocks_of(slot.channels) * kBlock;
    plan->slot_offset.push_back(plan->slot_floats);
    plan->slot_padded.push_back(padded);
    plan->slot_images.push_back(images);
    plan->slot_floats += images * 2 * padded;
    if (plan->slot_floats > kMaxFloats) throw OutOfMemory("the batch is too large");
  }
  plan->images = images;
  plan->steps.resize(steps.size());
}

std::shared_ptr<const Plan> Engine::plan(const std::vector<ValueShape>& values,
                                         int64_t arena_floats, int externals,
                                         const std::vector<SegmentSpec>& segments) const {
  check_counts(impl_->values, values.size(), externals);
  require(arena_floats >= 0, "arena size is out of range");
  if (arena_floats > kMaxFloats) throw OutOfMemory("the network needs more than 4 TiB");
  auto plan = std::make_shared<Plan>();
  plan->externals = externals;
  plan->value_floats = align_up(arena_floats);
  impl_->place(values, impl_->local_values(segments), arena_floats, plan.get());
  size_t next = 0;
  for (const SegmentSpec& segment : segments) {
    impl_->plan_steps(next, segment.first, impl_->threads, plan.get());
    plan->segments.push_back(impl_->plan_segment(*plan, segment));
    plan->keeping &=
        segment.first >= impl_->constant_steps || segment.last <= impl_->constant_steps;
    const Plan& one = *plan->segments.back().plan;
    plan->thread_floats = std::max(plan->thread_floats, one.total_floats);
    next = segment.last;
  }
  impl_->plan_steps(next, impl_->steps.size(), impl_->threads, plan.get());
  plan->total_floats = plan->value_floats + 2 * plan->slot_floats + plan->stats_floats +
                       impl_->threads * (plan->panel_floats + plan->thread_floats);
  if (plan->total_floats > kMaxFloats) throw OutOfMemory("the network needs more than 4 TiB");
  return plan;
}

std::shared_ptr<const Plan> Engine::plan_bands(const std::vector<ValueShape>& values, int externals,
                                               const BandSpec& spec, const ImageShape& image,
                                               const std::vector<JoinSpec>& joins) const {
  check_counts(impl_->values, values.size(), externals);
  require(spec.rows >= 1 && spec.rows <= kMaxSide && spec.limit >= 0 && spec.most_work >= 1,
          "the height of the bands or their limits are out of range");
  std::vector<bool> local(values.size());
  std::vector<char> external;
  for (size_t v = 0; v < values.size(); ++v) {
    external.push_back(values[v].offset < 0);
    local[v] = values[v].offset >= 0;  // placed by the passes
    require(values[v].image == 0, "a value's place is chosen here");
  }
  for (const JoinSpec& join : joins) {
    const auto known = [&](int v) {
      return v >= 0 && v < impl_->values && !external[v] && !values[v].planar;
    };
    require(known(join.inner) && known(join.outer) && join.channel >= 0 &&
                join.channel % kBlock == 0 && join.channel <= values[join.outer].c,
            "a joined value is unknown or not in blocks");
    const ValueShape &in = values[join.inner], &out = values[join.outer];
    const int64_t before = join.channel * out.h * out.w * element_bytes(out.dtype) / 4;
    require(in.n == out.n && in.dtype == out.dtype &&
                value_floats(in) / in.n <= value_floats(out) / out.n - before,
            "a joined value is not part of the other");
  }
  auto plan = std::make_shared<Plan>();
  plan->externals = externals;
  impl_->place(values, local, 0, plan.get());
  impl_->plan_steps(0, impl_->steps.size(), impl_->threads, plan.get());
  auto bands = std::make_shared<Bands>();
  bands->image = image;
  bands->given = spec.given_norms;
  for (const auto& step : impl_->steps) bands->steps.push_back(step.get());
  if (image.n > 0) {
    for (int value : {image.input, image.output}) {
      require(value >= 0 && value < impl_->values && !external[value], "unknown image value");
      check_image(values[value], image);
    }
    bands->image_steps.push_back(make_image_load(image.input));
    bands->image_steps.push_back(make_image_store(image.output, image.height));
    bands->steps.insert(bands->steps.begin(), bands->image_steps[0].get());
    bands->steps.push_back(bands->image_steps[1].get());
    StepPlan load, store;
    bands->steps.front()->plan(*plan, impl_->slots, *impl_->isa, impl_->threads, &load);
    bands->steps.back()->plan(*plan, impl_->slots, *impl_->isa, impl_->threads, &store);
    plan->steps.insert(plan->steps.begin(), std::move(load));
    plan->steps.push_back(std::move(store));
  }
  plan->stats_floats = 0;  // of each pass its own, in the arena
  plan->total_floats = 2 * plan->slot_floats + impl_->threads * plan->panel_floats;
  fastgen::plan_bands(*plan, external, spec, plan->total_floats, joins, bands.get());
  plan->bands = bands;
  plan->value_floats = align_up(bands->arena_floats);
  plan->steps.clear();
  plan->total_floats += plan->value_floats;
  if (plan->total_floats > kMaxFloats) throw OutOfMemory("the network needs more than 4 TiB");
  return plan;
}

std::vector<bool> Engine::Impl::local_values(const std::vector<SegmentSpec>& segments) const {
  std::vector<bool> local(values, false);
  int64_t end = 0;
  for (const SegmentSpec& segment : segments) {
    require(segment.first >= end && segment.last > segment.first &&
                segment.last <= static_cast<int>(steps.size()),
            "segments are out of order");
    require(segment.floats >= 0 && segment.floats <= kMaxFloats, "a segment is too large");
    end = segment.last;
    for (const auto& [value, offset] : segment.values) {
      require(value >= 0 && value < values && !local[value], "a segment has an unknown value");
      local[value] = true;
    }
  }
  return local;
}

void Engine::Impl::plan_steps(size_t first, size_t last, int workers, Plan* plan) const {
  for (size_t i = first; i < last; ++i) {
    StepPlan* const step = &plan->steps[i];
    steps[i]->plan(*plan, slots, *isa, workers, step);
    plan->panel_floats = std::max(plan->panel_floats, align_up(step->panel_floats));
    plan->stats_floats = std::max(plan->stats_floats, align_up(step->stats_floats));
  }
}

Segment Engine::Impl::plan_segment(const Plan& plan, const SegmentSpec& spec) const {
  auto one = std::make_shared<Plan>();
  one->slot_offset = plan.slot_offset;
  one->slot_padded = plan.slot_padded;
  one->slot_images.assign(plan.slot_images.size(), 1);
  one->slot_floats = plan.slot_floats;
  one->values = plan.values;
  one->images = 1;
  one->steps.resize(steps.size());
  for (Value& v : one->values) {
    v.shape.n = 1;
    v.shared = true;
  }
  for (const auto& [value, offset] : spec.values) {
    Value& v = one->values[value];
    const int64_t floats = value_floats(v.shape);
    require(offset >= 0 && offset % kAlign == 0 && floats <= spec.floats &&
                offset <= spec.floats - floats,
            "a value lies outside its segment");
    v.shape.offset = offset;
    v.shared = false;
  }
  plan_steps(spec.first, spec.last, 1, one.get());
  one->value_floats = align_up(spec.floats);
  one->total_floats = one->value_floats + one->stats_floats + one->panel_floats;
  return {spec.first, spec.last, one, one->value_floats};
}

int64_t Engine::plan_bytes(const Plan& plan) { return plan.total_floats * 4; }

BandReport Engine::band_report(const Plan& plan) {
  return plan.bands ? plan.bands->report : BandReport{};
}

int64_t Engine::norm_floats(const Plan& plan) const {
  int64_t floats = 0;
  for (const NormSpec& norm : impl_->norms)
    floats += 2 * plan.slot_images[norm.slot] * impl_->slots[norm.slot].channels;
  return floats;
}

std::vector<StepCost> Engine::plan_costs(const Plan& plan) {
  std::vector<StepCost> costs;
  for (const StepPlan& step : plan.steps) costs.push_back({step.flops, step.products});
  return costs;
}

void Engine::after_fork() const { impl_->after_fork(); }

void Engine::set_profile(bool on) {
  impl_->after_fork();
  std::lock_guard<std::mutex> lock(impl_->mutex);
  impl_->profiling = on;
  impl_->times.clear();
}
std::vector<StepTime> Engine::profile() const {
  impl_->after_fork();
  std::lock_guard<std::mutex> lock(impl_->mutex);
  return impl_->times;
}
int Engine::threads() const { return impl_->threads; }
size_t Engine::arena_bytes() const {
  impl_->after_fork();
  std::lock_guard<std::mutex> lock(impl_->mutex);
  return impl_->arena.size();
}
std::string Engine::isa() const { return impl_->isa->name; }
void Engine::release_memory() {
  impl_->after_fork();
  std::lock_guard<std::mutex> lock(impl_->mutex);
  impl_->kept_plan = impl_->kept_constants = 0;
  impl_->arena.release();
  impl_->pool.reset();
}

}  // namespace fastgen
