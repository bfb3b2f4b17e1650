// The engine: plans, memory, execution.
#include "engine.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <new>
#include <stdexcept>

#include "bands.h"
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
    const size_t planned =
        plan.bands ? plan.bands->steps.size() - plan.bands->image_steps.size() : plan.steps.size();
    return plan.owner == this && planned == steps.size() && plan.slot_offset.size() == slots.size();
  }

  // What does not depend on where the values lie.
  void prepare(const std::vector<ValueShape>& shapes, Plan* plan) const;
  void measure(Plan* plan) const;
  Context context(const Plan& plan, const std::vector<float*>& externals, const NormArrays& norms);
  void check_norms(const Plan& plan, const NormArrays& norms) const {
    require(!plan.bands || plan.bands->given == (norms.given != nullptr),
            "the plan is with or without given statistics, unlike the run");
    require(!norms.given || !norms.wanted, "statistics are given or wanted, not both");
  }
  void execute(const Plan& plan, const std::vector<float*>& externals, const NormArrays& norms,
               const ImageCall* image);
  void run_step(const Step& step, Context* context, bool again, std::vector<StepTime>* times) const;
  std::vector<NormSpec> norms;  // of the steps, in order

  // Before and after a run: given statistics to scale and shift, computed ones to the caller.
  void give(const Context& c, const float* given) const;
  void take(const Context& c, float* wanted) const;
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
  if (spec.norm.slot >= 0) impl_->norms.push_back(spec.norm);
  impl_->steps.push_back(spec.groups > 1 ? make_grouped(std::move(spec))
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

namespace {

void check_counts(int64_t values, size_t given, int externals) {
  require(static_cast<int64_t>(given) == values, "wrong number of values");
  require(externals >= 0 && externals <= 4096, "wrong number of external arrays");
}

// Of a photo's value.
void check_image(const ValueShape& s, const ImageShape& image) {
  require(s.planar && s.c == 3 && s.n == image.n && s.h >= image.height && s.w >= image.width &&
              image.height >= 1 && image.width >= 1,
          "the network's input or output does not hold this image");
}

}  // namespace

void Engine::Impl::prepare(const std::vector<ValueShape>& shapes, Plan* plan) const {
  plan->owner = this;
  plan->external_floats.assign(plan->externals, 0);
  for (const ValueShape& s : shapes) {
    const int64_t floats = value_floats(s), plane = s.h * s.w;
    if (s.offset < 0) {
      require(-1 - s.offset < plan->externals && s.planar,
              "a value lies outside the external arrays");
      plan->external_floats[-1 - s.offset] = std::max(plan->external_floats[-1 - s.offset], floats);
    }
    plan->values.push_back(
        s.planar ? Value{s, s.c * plane, plane, s.w, 1}
                 : Value{s, blocks_of(s.c) * plane * kBlock, plane * kBlock, s.w * kBlock, kBlock});
  }
  const int64_t images = shapes.empty() ? 0 : shapes.front().n;
  for (const Slot& slot : slots) {
    const int64_t padded = blocks_of(slot.channels) * kBlock;
    plan->slot_offset.push_back(plan->slot_floats);
    plan->slot_padded.push_back(padded);
    plan->slot_images.push_back(images);
    plan->slot_floats += images * 2 * padded;
    if (plan->slot_floats > kMaxFloats) throw OutOfMemory("the batch is too large");
  }
  for (const auto& step : steps) {
    plan->steps.emplace_back();
    step->plan(*plan, slots, *isa, threads, &plan->steps.back());
  }
}

void Engine::Impl::measure(Plan* plan) const {
  for (const StepPlan& step : plan->steps) {
    plan->panel_floats = std::max(plan->panel_floats, align_up(step.panel_floats));
    if (!plan->bands)
      plan->stats_floats = std::max(plan->stats_floats, align_up(step.stats_floats));
  }
  plan->total_floats = plan->value_floats + 2 * plan->slot_floats + plan->stats_floats +
                       threads * plan->panel_floats;
  if (plan->total_floats > kMaxFloats) throw OutOfMemory("the network needs more than 4 TiB");
}

std::shared_ptr<const Plan> Engine::plan(const std::vector<ValueShape>& values,
                                         int64_t arena_floats, int externals) const {
  check_counts(impl_->values, values.size(), externals);
  require(arena_floats >= 0, "arena size is out of range");
  if (arena_floats > kMaxFloats) throw OutOfMemory("the network needs more than 4 TiB");
  auto plan = std::make_shared<Plan>();
  plan->externals = externals;
  plan->value_floats = align_up(arena_floats);
  for (const ValueShape& s : values) {
    const int64_t floats = value_floats(s);
    require(s.offset < 0 || (s.offset % kAlign == 0 && s.offset <= arena_floats &&
                             floats <= arena_floats - s.offset),
            "a value lies outside the arena");
  }
  impl_->prepare(values, plan.get());
  impl_->measure(plan.get());
  return plan;
}

std::shared_ptr<const Plan> Engine::plan_bands(const std::vector<ValueShape>& values, int externals,
                                               const BandSpec& spec,
                                               const ImageShape& image) const {
  check_counts(impl_->values, values.size(), externals);
  require(spec.rows >= 1 && spec.rows <= kMaxSide && spec.limit >= 0 && spec.most_work >= 1,
          "the height of the bands or their limits are out of range");
  auto plan = std::make_shared<Plan>();
  plan->externals = externals;
  impl_->prepare(values, plan.get());
  auto bands = std::make_shared<Bands>();
  bands->image = image;
  bands->given = spec.given_norms;
  for (const auto& step : impl_->steps) bands->steps.push_back(step.get());
  if (image.n > 0) {
    for (int value : {image.input, image.output}) {
      require(value >= 0 && value < impl_->values && values[value].offset >= 0,
              "unknown image value");
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
  std::vector<char> external;
  for (const ValueShape& s : values) external.push_back(s.offset < 0);
  plan->bands = bands;
  impl_->measure(plan.get());
  Plan base = *plan;
  base.bands = nullptr;
  fastgen::plan_bands(base, external, spec, plan->total_floats, spec.given_norms, bands.get());
  plan->value_floats = align_up(bands->arena_floats);
  plan->steps.clear();
  plan->total_floats += plan->value_floats;
  if (plan->total_floats > kMaxFloats) throw OutOfMemory("the network needs more than 4 TiB");
  return plan;
}

int64_t Engine::plan_bytes(const Plan& plan) { return plan.total_floats * 4; }

BandReport Engine::band_report(const Plan& plan) {
  return plan.bands ? plan.bands->report : BandReport{};
}

std::vector<StepCost> Engine::plan_costs(const Plan& plan) {
  std::vector<StepCost> costs;
  for (const StepPlan& step : plan.steps) costs.push_back({step.flops, step.products});
  return costs;
}

Context Engine::Impl::context(const Plan& plan, const std::vector<float*>& externals,
                              const NormArrays& norms) {
  Context context{};
  context.plan = &plan;
  context.isa = isa;
  context.pool = &workers();
  context.arena = arena.data();
  context.slots = arena.data() + plan.value_floats;
  context.stats = context.slots + 2 * plan.slot_floats;
  context.panels = context.stats + plan.stats_floats;
  context.externals = &externals;
  context.storing = true;
  context.statistics = !norms.given;
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
  return context;
}

void Engine::Impl::give(const Context& c, const float* given) const {
  for (const NormSpec& norm : norms) {
    const int64_t channels = slots[norm.slot].channels, images = c.plan->slot_images[norm.slot];
    const float *mean = given, *variance = given + images * channels;
    for (int64_t n = 0; n < images; ++n) {
      float *scale = c.scale(norm.slot, n), *shift = c.shift(norm.slot, n);
      std::fill_n(scale, 2 * c.plan->slot_padded[norm.slot], 0.0f);
      for (int64_t i = 0; i < channels; ++i)
        put_norm(norm, i, double{mean[n * channels + i]}, double{variance[n * channels + i]},
                 scale + i, shift + i);
    }
    given += 2 * images * channels;
  }
}

void Engine::Impl::take(const Context& c, float* wanted) const {
  for (const NormSpec& norm : norms) {
    const int64_t channels = slots[norm.slot].channels, images = c.plan->slot_images[norm.slot];
    for (int64_t n = 0; n < images; ++n, wanted += channels)
      std::copy_n(c.mean(norm.slot, n), channels, wanted);
    for (int64_t n = 0; n < images; ++n, wanted += channels)
      std::copy_n(c.variance(norm.slot, n), channels, wanted);
  }
}

// `again`: it may be one of several parts of the step.
void Engine::Impl::run_step(const Step& step, Context* context, bool again,
                            std::vector<StepTime>* measured) const {
  if (!profiling) return step.run(*context);
  const auto start = std::chrono::steady_clock::now();
  step.run(*context);
  const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - start;
  const double share = static_cast<double>(context->last_unit - context->first_unit) /
                       static_cast<double>(context->step->units);
  for (StepTime& time : *measured) {
    if (time.label != step.label || !again) continue;
    time.milliseconds += took.count();
    time.flops += context->step->flops * share;
    return;
  }
  measured->push_back({step.label, took.count(), context->step->flops * share});
}

void Engine::Impl::execute(const Plan& plan, const std::vector<float*>& externals,
                           const NormArrays& norms, const ImageCall* image) {
  check_norms(plan, norms);
  Context c = context(plan, externals, norms);
  const Pool::Busy busy(c.pool);
  c.image = image;
  if (norms.given) give(c, norms.given);
  std::vector<StepTime> measured;
  for (size_t i = 0; i < steps.size() && !plan.bands; ++i) {
    c.step = &plan.steps[i];
    c.last_unit = c.step->units;
    if (c.statistics || !steps[i]->only_statistics()) run_step(*steps[i], &c, false, &measured);
  }
  for (size_t p = 0; plan.bands && p < plan.bands->passes.size(); ++p) {
    const BandPass& pass = plan.bands->passes[p];
    c.plan = &pass.plan;
    for (const BandRun& run : pass.runs) {
      c.step = &pass.plan.steps[run.step];
      c.first_unit = run.first;
      c.last_unit = run.last;
      c.stats = arena.data() + pass.stats[run.step];
      c.statistics = pass.statistics[run.step];
      c.storing = pass.storing[run.step];
      run_step(*plan.bands->steps[run.step], &c, true, &measured);
    }
  }
  c.plan = &plan;
  if (norms.wanted) take(c, norms.wanted);
  if (profiling) times = std::move(measured);
}

int64_t Engine::norm_floats(const Plan& plan) const {
  int64_t floats = 0;
  for (const NormSpec& norm : impl_->norms)
    floats += 2 * plan.slot_images[norm.slot] * impl_->slots[norm.slot].channels;
  return floats;
}

void Engine::run(const Plan& plan, const std::vector<float*>& externals, const NormArrays& norms) {
  impl_->after_fork();
  std::lock_guard<std::mutex> lock(impl_->mutex);
  require(impl_->owns(plan), "the plan belongs to another engine");
  require(static_cast<int>(externals.size()) == plan.externals, "wrong number of arrays");
  impl_->arena.reserve(static_cast<size_t>(plan.total_floats) * 4);
  impl_->execute(plan, externals, norms, nullptr);
}

void Engine::run_image(const Plan& plan, int input, int output, const void* photo, void* out,
                       bool is_byte, int64_t n, int64_t height, int64_t width, const ImageIO& io,
                       const NormArrays& norms) {
  impl_->after_fork();
  std::lock_guard<std::mutex> lock(impl_->mutex);
  require(impl_->owns(plan) && plan.externals == 0, "the plan does not take images");
  for (int value : {input, output}) {
    require(value >= 0 && value < impl_->values, "unknown image value");
    check_image(plan.values[value].shape, {n, height, width, input, output});
  }
  impl_->arena.reserve(static_cast<size_t>(plan.total_floats) * 4);
  const ImageCall image{photo, out, is_byte, n, height, width, io};
  if (plan.bands) {
    const ImageShape& planned = plan.bands->image;
    require(planned.n == n && planned.height == height && planned.width == width &&
                planned.input == input && planned.output == output,
            "the plan is of an image of another size");
    return impl_->execute(plan, {}, norms, &image);
  }
  const Value &from = plan.values[input], &to = plan.values[output];
  float* arena = impl_->arena.data();
  Pool* pool = &impl_->workers();
  image_load(*impl_->isa, pool, image, 0, from.shape.h, from, arena + from.shape.offset);
  impl_->execute(plan, {}, norms, nullptr);
  image_store(*impl_->isa, pool, to, arena + to.shape.offset, 0, height, image);
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
  impl_->arena.release();
  impl_->pool.reset();
}

}  // namespace fastgen
