// What the engine's files share: its state.
#pragma once

#include <unistd.h>

#include <memory>
#include <mutex>
#include <new>
#include <vector>

#include "bands.h"

namespace fastgen {

// Throws where a photo's value does not hold it.
void check_image(const ValueShape& s, const ImageShape& image);

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
    const size_t planned =
        plan.bands ? plan.bands->steps.size() - plan.bands->image_steps.size() : plan.steps.size();
    return plan.owner == this && planned == steps.size() && plan.slot_offset.size() == slots.size();
  }

  // Values that only segments know, each of which belongs to one.
  std::vector<bool> local_values(const std::vector<SegmentSpec>& segments) const;
  void plan_steps(size_t first, size_t last, int workers, Plan* plan) const;
  Segment plan_segment(const Plan& plan, const SegmentSpec& spec) const;
  void run_segment(const Context& whole, const Segment& segment, std::vector<double>* seconds);

  bool keeps(const Plan& plan, uint64_t constants) const {
    return constants != 0 && constants == kept_constants && plan.number == kept_plan;
  }

  void place(const std::vector<ValueShape>& values, const std::vector<bool>& local,
             int64_t arena_floats, Plan* plan) const;
  void check_norms(const Plan& plan, const NormArrays& norms) const {
    require(!plan.bands || plan.bands->given == (norms.given != nullptr),
            "the plan is with or without given statistics, unlike the run");
    require(!norms.given || !norms.wanted, "statistics are given or wanted, not both");
  }
  Context context(const Plan& plan, const std::vector<float*>& externals, bool kept);
  void execute(const Plan& plan, const std::vector<float*>& externals, const NormArrays& norms,
               uint64_t constants, const ImageCall* photo);
  void run_steps(Context* c, const NormArrays& norms, bool kept, std::vector<StepTime>* measured);
  void run_bands(Context* c, std::vector<StepTime>* measured);

  // Before and after a run: given statistics to scale and shift, computed ones to the caller.
  void give(const Context& c, const float* given) const;
  void take(const Context& c, float* wanted) const;
  std::vector<NormSpec> norms;  // of the steps, in order
};

}  // namespace fastgen
