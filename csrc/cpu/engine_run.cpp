// The engine: runs of plans.
#include <algorithm>
#include <chrono>

#include "engine_impl.h"
#include "image.h"

namespace fastgen {
namespace {

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

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
      c.last_unit = c.step->units;
      if (!c.statistics && steps[i]->only_statistics()) continue;
      const double start = seconds ? now() : 0;
      steps[i]->run(c);
      if (seconds) spent[thread][i - segment.first] += now() - start;
    }
  });
  for (const auto& thread : spent)
    for (size_t i = 0; i < thread.size(); ++i) (*seconds)[i] += thread[i] / pool->threads();
}

Context Engine::Impl::context(const Plan& plan, const std::vector<float*>& externals, bool kept) {
  Context context{};
  context.plan = &plan;
  context.isa = isa;
  context.pool = &workers();
  context.arena = arena.data();
  context.slots = arena.data() + plan.value_floats;
  context.stats = context.slots + 2 * plan.slot_floats;
  context.panels = context.stats + plan.stats_floats;
  context.externals = &externals;
  context.shared = arena.data();
  context.storing = context.statistics = true;
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

void Engine::Impl::run_steps(Context* c, const NormArrays& norms, bool kept,
                             std::vector<StepTime>* measured) {
  const Plan& plan = *c->plan;
  c->statistics = !norms.given;
  auto segment = plan.segments.begin();
  for (size_t i = kept ? constant_steps : 0; i < steps.size();) {
    while (segment != plan.segments.end() && segment->first < static_cast<int>(i)) ++segment;
    const bool together = segment != plan.segments.end() && segment->first == static_cast<int>(i);
    const size_t end = together ? segment->last : i + 1;
    std::vector<double> seconds(profiling ? end - i : 0);
    if (together) {
      run_segment(*c, *segment, profiling ? &seconds : nullptr);
    } else if (c->statistics || !steps[i]->only_statistics()) {
      const double start = profiling ? now() : 0;
      c->step = &plan.steps[i];
      c->last_unit = c->step->units;
      steps[i]->run(*c);
      if (profiling) seconds[0] = now() - start;
    }
    const double share = together ? static_cast<double>(plan.images) : 1;
    const Plan& planned = together ? *segment->plan : plan;
    for (size_t k = 0; k < seconds.size(); ++k)
      measured->push_back(
          {steps[i + k]->label, seconds[k] * 1e3, planned.steps[i + k].flops * share});
    i = end;
  }
}

void Engine::Impl::run_bands(Context* c, std::vector<StepTime>* measured) {
  const Bands& bands = *c->plan->bands;
  if (profiling)
    for (const Step* step : bands.steps) measured->push_back({step->label, 0, 0});
  for (const BandPass& pass : bands.passes) {
    c->plan = &pass.plan;
    for (const BandRun& run : pass.runs) {
      c->step = &pass.plan.steps[run.step];
      c->first_unit = run.first;
      c->last_unit = run.last;
      c->stats = arena.data() + pass.stats[run.step];
      c->statistics = pass.statistics[run.step];
      c->storing = pass.storing[run.step];
      const double start = profiling ? now() : 0;
      bands.steps[run.step]->run(*c);
      if (!profiling) continue;
      StepTime& time = (*measured)[run.step];
      time.milliseconds += (now() - start) * 1e3;
      time.flops += c->step->flops * static_cast<double>(run.last - run.first) /
                    static_cast<double>(c->step->units);
    }
  }
}

void Engine::Impl::execute(const Plan& plan, const std::vector<float*>& externals,
                           const NormArrays& norms, uint64_t constants, const ImageCall* photo) {
  check_norms(plan, norms);
  const bool kept = keeps(plan, constants);
  if (!kept) kept_plan = kept_constants = 0;
  Context c = context(plan, externals, kept);
  c.photo = photo;
  if (norms.given) give(c, norms.given);
  std::vector<StepTime> measured;
  plan.bands ? run_bands(&c, &measured) : run_steps(&c, norms, kept, &measured);
  c.plan = &plan;
  if (norms.wanted) take(c, norms.wanted);
  if (profiling) times = std::move(measured);
  if (constants) kept_plan = plan.number, kept_constants = constants;
}

void Engine::run(const Plan& plan, const std::vector<float*>& externals, const NormArrays& norms,
                 uint64_t constants) {
  impl_->after_fork();
  std::lock_guard<std::mutex> lock(impl_->mutex);
  require(impl_->owns(plan), "the plan belongs to another engine");
  require(static_cast<int>(externals.size()) == plan.externals, "wrong number of arrays");
  require(plan.keeping || !constants, "a segment has constant steps and others");
  require(!constants || (!plan.bands && !norms.given && !norms.wanted),
          "constants are for runs of the whole frame with their own statistics");
  if (!impl_->keeps(plan, constants))
    impl_->arena.reserve(static_cast<size_t>(plan.total_floats) * 4);
  impl_->execute(plan, externals, norms, constants, nullptr);
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
    return impl_->execute(plan, {}, norms, 0, &image);
  }
  const Value &from = plan.values[input], &to = plan.values[output];
  float* arena = impl_->arena.data();
  Pool* pool = &impl_->workers();
  image_load(*impl_->isa, pool, image, 0, from.shape.h, from, arena + from.shape.offset);
  impl_->execute(plan, {}, norms, 0, nullptr);
  image_store(*impl_->isa, pool, to, arena + to.shape.offset, 0, height, image);
}

}  // namespace fastgen
