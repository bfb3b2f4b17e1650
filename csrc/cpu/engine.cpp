// The engine: plans, memory, execution.
#include "engine.h"

#include <unistd.h>

#include <algorithm>
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
  pid_t owner = getpid();
  Arena arena;
  bool profiling = false;
  std::vector<StepTime> times;

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

  void execute(const Plan& plan, const std::vector<float*>& externals);
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
void Engine::add_concat(const std::string& label, const std::vector<int>& values, int out) {
  impl_->steps.push_back(make_concat(label, values, out));
}
void Engine::add_broadcast(const std::string& label, int value, int out) {
  impl_->steps.push_back(make_broadcast(label, value, out));
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
                                         int64_t arena_floats, int externals) const {
  require(static_cast<int>(values.size()) == impl_->values, "wrong number of values");
  require(arena_floats >= 0, "arena size is out of range");
  if (arena_floats > kMaxFloats) throw OutOfMemory("the network needs more than 4 TiB");
  require(externals >= 0 && externals <= 4096, "wrong number of external arrays");
  auto plan = std::make_shared<Plan>();
  plan->owner = impl_.get();
  plan->externals = externals;
  plan->external_floats.assign(externals, 0);
  plan->value_floats = align_up(arena_floats);
  for (const ValueShape& s : values) {
    const int64_t floats = value_floats(s);
    if (s.offset >= 0) {
      require(
          s.offset % kAlign == 0 && s.offset <= arena_floats && floats <= arena_floats - s.offset,
          "a value lies outside the arena");
    } else {
      require(-1 - s.offset < externals && s.planar, "a value lies outside the external arrays");
      plan->external_floats[-1 - s.offset] = std::max(plan->external_floats[-1 - s.offset], floats);
    }
    const int64_t plane = s.h * s.w;
    plan->values.push_back(
        s.planar ? Value{s, s.c * plane, plane, s.w, 1}
                 : Value{s, blocks_of(s.c) * plane * kBlock, plane * kBlock, s.w * kBlock, kBlock});
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
  for (const auto& step : impl_->steps) {
    plan->steps.emplace_back();
    step->plan(*plan, impl_->slots, *impl_->isa, impl_->threads, &plan->steps.back());
    plan->panel_floats = std::max(plan->panel_floats, plan->steps.back().panel_floats);
    plan->stats_floats = std::max(plan->stats_floats, plan->steps.back().stats_floats);
  }
  plan->panel_floats = align_up(plan->panel_floats);
  plan->stats_floats = align_up(plan->stats_floats);
  plan->total_floats = plan->value_floats + plan->slot_floats + plan->stats_floats +
                       impl_->threads * plan->panel_floats;
  if (plan->total_floats > kMaxFloats) throw OutOfMemory("the network needs more than 4 TiB");
  return plan;
}

int64_t Engine::plan_bytes(const Plan& plan) { return plan.total_floats * 4; }

std::vector<StepCost> Engine::plan_costs(const Plan& plan) {
  std::vector<StepCost> costs;
  for (const StepPlan& step : plan.steps) costs.push_back({step.flops, step.products});
  return costs;
}

void Engine::Impl::execute(const Plan& plan, const std::vector<float*>& externals) {
  Context context{};
  context.plan = &plan;
  context.isa = isa;
  context.pool = &workers();
  context.arena = arena.data();
  context.slots = arena.data() + plan.value_floats;
  context.stats = context.slots + plan.slot_floats;
  context.panels = context.stats + plan.stats_floats;
  context.externals = &externals;
  for (size_t s = 0; s < slots.size(); ++s) {
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
  for (size_t i = 0; i < steps.size(); ++i) {
    context.step = &plan.steps[i];
    if (!profiling) {
      steps[i]->run(context);
      continue;
    }
    const auto start = std::chrono::steady_clock::now();
    steps[i]->run(context);
    const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - start;
    measured.push_back({steps[i]->label, took.count(), plan.steps[i].flops});
  }
  if (profiling) times = std::move(measured);
}

void Engine::run(const Plan& plan, const std::vector<float*>& externals) {
  impl_->after_fork();
  std::lock_guard<std::mutex> lock(impl_->mutex);
  require(impl_->owns(plan), "the plan belongs to another engine");
  require(static_cast<int>(externals.size()) == plan.externals, "wrong number of arrays");
  impl_->arena.reserve(static_cast<size_t>(plan.total_floats) * 4);
  impl_->execute(plan, externals);
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
  impl_->execute(plan, {});
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
  impl_->arena.release();
  impl_->pool.reset();
}

}  // namespace fastgen
