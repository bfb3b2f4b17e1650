// The engine: plans, memory, execution.
#include "engine.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <new>
#include <stdexcept>

#include "image.h"
#include "isa.h"

namespace fastgen {
namespace {

constexpr int64_t kMaxSide = int64_t{1} << 24;
constexpr int64_t kMaxFloats = int64_t{1} << 40;
constexpr int64_t kAlign = 16;  // floats

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

int64_t align_up(int64_t floats) { return ceil_div(floats, kAlign) * kAlign; }

}  // namespace

void fail(const std::string& message) { throw std::invalid_argument(message); }
void require(bool ok, const std::string& message) {
  if (!ok) fail(message);
}

void Weights::resize(size_t floats) {
  storage_.assign(floats + kAlign, 0.0f);
  const auto address = reinterpret_cast<uintptr_t>(storage_.data());
  data_ = reinterpret_cast<float*>((address + 63) & ~uintptr_t{63});
}

struct Engine::Impl {
  const Kernels* isa = nullptr;
  int threads = 1;
  int values = 0;
  std::vector<Slot> slots;
  std::vector<std::unique_ptr<Step>> steps;
  std::mutex mutex;
  std::unique_ptr<Pool> pool;
  Pool alone{1};  // the pool of a step that runs in one thread
  pid_t owner = getpid();
  Arena arena;
  bool profiling = false;
  std::vector<StepTime> times;
  int constant_steps = 0;
  uint64_t kept_plan = 0, kept_constants = 0;  // whose constant values the arena holds

  // A forked child has neither the worker threads nor, perhaps, an unlocked mutex.
  void after_fork() {
    if (owner == getpid()) return;
    new (&mutex) std::mutex;
    (void)pool.release();  // its threads live in the parent only and cannot be joined here
    owner = getpid();
  }

  Pool& workers() {
    if (!pool) pool = std::make_unique<Pool>(threads);
    return *pool;
  }

  // Whether the plan was made by this engine, and nothing was added to it since.
  bool owns(const Plan& plan) const {
    return plan.owner == this && plan.steps.size() == steps.size() &&
           plan.slot_offset.size() == slots.size();
  }

  // Values that only segments know, each of which belongs to one.
  std::vector<bool> local_values(const std::vector<SegmentSpec>& segments) const;
  void plan_steps(size_t first, size_t last, int workers, Plan* plan) const;
  Segment plan_segment(const Plan& plan, const SegmentSpec& spec) const;
  void run_segment(const Context& whole, const Segment& segment, std::vector<double>* seconds);

  bool keeps(const Plan& plan, uint64_t constants) const {
    return constants != 0 && constants == kept_constants && plan.number == kept_plan;
  }

  void execute(const Plan& plan, const std::vector<float*>& externals, uint64_t constants);
};

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
  impl_->steps.push_back(spec.groups > 1 ? make_grouped(std::move(spec))
                                         : make_conv(std::move(spec), *impl_->isa));
}
void Engine::add_copy(const std::string& label, const Source& source, int out) {
  impl_->steps.push_back(make_copy(label, source, out));
}
void Engine::add_stats(const std::string& label, int value, NormSpec norm) {
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
  const int64_t channels = s.planar ? s.c : blocks_of(s.c) * kBlock;
  int64_t floats = 1;
  for (int64_t size : {s.n, channels, s.h, s.w}) {
    floats *= size;  // at most 2^40 * 2^24 before the check
    if (floats > kMaxFloats) throw OutOfMemory("a value has more than 2^40 elements");
  }
  require(s.dtype == kFloat32 || (s.dtype == kBFloat16 && !s.planar),
          "a value must be float32, or bfloat16 in blocks");
  return ceil_div(floats * element_bytes(s.dtype), 4);
}

std::shared_ptr<const Plan> Engine::plan(const std::vector<ValueShape>& values,
                                         int64_t arena_floats, int externals,
                                         const std::vector<SegmentSpec>& segments) const {
  require(static_cast<int>(values.size()) == impl_->values, "wrong number of values");
  require(arena_floats >= 0, "arena size is out of range");
  if (arena_floats > kMaxFloats) throw OutOfMemory("the network needs more than 4 TiB");
  require(externals >= 0 && externals <= 4096, "wrong number of external arrays");
  auto plan = std::make_shared<Plan>();
  static std::atomic<uint64_t> plans{0};
  plan->owner = impl_.get();
  plan->number = ++plans;
  plan->externals = externals;
  plan->external_floats.assign(externals, 0);
  plan->value_floats = align_up(arena_floats);
  const std::vector<bool> local = impl_->local_values(segments);
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
      require(-1 - s.offset < externals && s.planar, "a value lies outside the external arrays");
      plan->external_floats[-1 - s.offset] = std::max(plan->external_floats[-1 - s.offset], floats);
    }
    const int64_t plane = s.h * s.w, elements = image * 4 / element_bytes(s.dtype);
    plan->values.push_back(s.planar ? Value{s, elements, plane, s.w, 1}
                                    : Value{s, elements, plane * kBlock, s.w * kBlock, kBlock});
  }
  const int64_t images = values.empty() ? 0 : values.front().n;
  for (const Slot& slot : impl_->slots) {
    const int64_t padded = blocks_of(slot.channels) * kBlock;
    plan->slot_offset.push_back(plan->slot_floats);
    plan->slot_padded.push_back(padded);
    plan->slot_images.push_back(images);
    plan->slot_floats += images * 2 * padded;
    if (plan->slot_floats > kMaxFloats) throw OutOfMemory("the batch is too large");
  }
  plan->images = images;
  plan->steps.resize(impl_->steps.size());
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
  plan->total_floats = plan->value_floats + plan->slot_floats + plan->stats_floats +
                       impl_->threads * (plan->panel_floats + plan->thread_floats);
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

void Engine::Impl::run_segment(const Context& whole, const Segment& segment,
                               std::vector<double>* seconds) {
  const Plan& one = *segment.plan;
  float* const memory = whole.panels + pool->threads() * whole.plan->panel_floats;
  std::vector<std::vector<double>> spent(seconds ? threads : 0,
                                         std::vector<double>(segment.last - segment.first));
  pool->run(whole.plan->images, [&](int64_t image, int thread) {
    Context c = whole;
    c.plan = &one;
    c.pool = &alone;
    c.image = image;
    c.arena = memory + thread * whole.plan->thread_floats;
    c.stats = c.arena + one.value_floats;
    c.panels = c.stats + one.stats_floats;
    for (int i = segment.first; i < segment.last; ++i) {
      c.step = &one.steps[i];
      const double start = seconds ? now() : 0;
      steps[i]->run(c);
      if (seconds) spent[thread][i - segment.first] += now() - start;
    }
  });
  for (const auto& thread : spent)
    for (size_t i = 0; i < thread.size(); ++i) (*seconds)[i] += thread[i] / pool->threads();
}

int64_t Engine::plan_bytes(const Plan& plan) { return plan.total_floats * 4; }

std::vector<StepCost> Engine::plan_costs(const Plan& plan) {
  std::vector<StepCost> costs;
  for (const StepPlan& step : plan.steps) costs.push_back({step.flops, step.products});
  return costs;
}

void Engine::Impl::execute(const Plan& plan, const std::vector<float*>& externals,
                           uint64_t constants) {
  const bool kept = keeps(plan, constants);
  if (!kept) kept_plan = kept_constants = 0;
  Context context{};
  context.plan = &plan;
  context.isa = isa;
  context.pool = &workers();
  context.arena = arena.data();
  context.slots = arena.data() + plan.value_floats;
  context.stats = context.slots + plan.slot_floats;
  context.panels = context.stats + plan.stats_floats;
  context.externals = &externals;
  context.shared = arena.data();
  for (size_t s = 0; s < slots.size() && !kept; ++s) {
    if (slots[s].scale.empty()) continue;
    // Products of bfloat16 meet an odd last channel together with the one behind it: what that is
    // multiplied by is 0, but it must be a number.
    const auto fill = [&](const std::vector<float>& from, float* to) {
      std::fill(std::copy(from.begin(), from.end(), to), to + plan.slot_padded[s], 0.0f);
    };
    for (int64_t n = 0; n < plan.slot_images[s]; ++n) {
      fill(slots[s].scale, context.scale(static_cast<int>(s), n));
      fill(slots[s].shift, context.shift(static_cast<int>(s), n));
    }
  }
  std::vector<StepTime> measured;
  auto segment = plan.segments.begin();
  for (size_t i = kept ? constant_steps : 0; i < steps.size();) {
    while (segment != plan.segments.end() && segment->first < static_cast<int>(i)) ++segment;
    const bool together = segment != plan.segments.end() && segment->first == static_cast<int>(i);
    const size_t end = together ? segment->last : i + 1;
    std::vector<double> seconds(profiling ? end - i : 0);
    if (together) {
      run_segment(context, *segment, profiling ? &seconds : nullptr);
    } else {
      const double start = profiling ? now() : 0;
      context.step = &plan.steps[i];
      steps[i]->run(context);
      if (profiling) seconds[0] = now() - start;
    }
    const double share = together ? static_cast<double>(plan.images) : 1;
    const Plan& planned = together ? *segment->plan : plan;
    for (size_t k = 0; k < seconds.size(); ++k)
      measured.push_back(
          {steps[i + k]->label, seconds[k] * 1e3, planned.steps[i + k].flops * share});
    i = end;
  }
  if (profiling) times = std::move(measured);
  if (constants) kept_plan = plan.number, kept_constants = constants;
}

void Engine::run(const Plan& plan, const std::vector<float*>& externals, uint64_t constants) {
  impl_->after_fork();
  std::lock_guard<std::mutex> lock(impl_->mutex);
  require(impl_->owns(plan), "the plan belongs to another engine");
  require(static_cast<int>(externals.size()) == plan.externals, "wrong number of arrays");
  require(plan.keeping || !constants, "a segment has constant steps and others");
  if (!impl_->keeps(plan, constants))
    impl_->arena.reserve(static_cast<size_t>(plan.total_floats) * 4);
  impl_->execute(plan, externals, constants);
}

void Engine::run_image(const Plan& plan, int input, int output, const void* photo, void* out,
                       bool is_byte, int64_t n, int64_t height, int64_t width, const ImageIO& io) {
  impl_->after_fork();
  std::lock_guard<std::mutex> lock(impl_->mutex);
  require(impl_->owns(plan) && plan.externals == 0, "the plan does not take images");
  const auto planes = [&](int index) -> const ValueShape& {
    require(index >= 0 && index < impl_->values, "unknown image value");
    const ValueShape& s = plan.values[index].shape;
    require(s.planar && s.c == 3 && s.n == n && s.h >= height && s.w >= width && height >= 1 &&
                width >= 1,
            "the network's input or output does not hold this image");
    return s;
  };
  const ValueShape &from = planes(input), &to = planes(output);
  impl_->arena.reserve(static_cast<size_t>(plan.total_floats) * 4);
  Pool* pool = &impl_->workers();
  image_load(*impl_->isa, pool, photo, is_byte, n, height, width, from.h, from.w, io,
             impl_->arena.data() + from.offset);
  impl_->execute(plan, {}, 0);
  image_store(*impl_->isa, pool, impl_->arena.data() + to.offset, photo, is_byte, n, height, width,
              to.h, to.w, io, out);
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
std::string Engine::isa() const { return impl_->isa->name; }
void Engine::release_memory() {
  impl_->after_fork();
  std::lock_guard<std::mutex> lock(impl_->mutex);
  impl_->kept_plan = impl_->kept_constants = 0;
  impl_->arena.release();
  impl_->pool.reset();
}

}  // namespace fastgen
