// A dense convolution as a step of the engine.
#include "conv.h"

namespace fastgen {
namespace {

class ConvStep final : public Step {
 public:
  ConvStep(ConvSpec spec, const Kernels& isa)
      : Step(spec.label), source_(spec.source), conv_(std::move(spec), isa) {}

  void plan(const Plan& plan, const std::vector<Slot>& slots, const Kernels&, int threads,
            StepPlan* out) const override {
    const ConvSpec& spec = conv_.spec();
    check_source(plan, slots, source_, label);
    const ValueShape& in = plan.values[source_.value].shape;
    const ValueShape& result = plan.values[spec.out].shape;
    require(in.c == spec.inputs && result.c == spec.outputs && in.n == result.n,
            label + ": value has the wrong number of channels or images");
    require(result.planar == spec.small, label + ": output has the wrong layout");
    check_norm(slots, spec.norm, result.c, label);
    require(spec.norm.slot < 0 || plan.slot_images[spec.norm.slot] == result.n,
            label + ": statistics do not fit the value");
    if (spec.residual >= 0) {
      require(spec.residual < static_cast<int>(plan.values.size()), label + ": unknown residual");
      const ValueShape& r = plan.values[spec.residual].shape;
      const auto fits = [&](int64_t size, int64_t full) {
        return size == full || (size % 2 == 1 && size < full && spec.out_stride == 1);
      };
      require(r.n == result.n && r.c == result.c && !r.planar && !r.dense &&
                  r.dtype == result.dtype && !spec.small && fits(r.h, result.h) &&
                  fits(r.w, result.w),
              label + ": the output's residual has another shape");
    }
    conv_.plan(shape(plan), threads, out);
  }

  void flow(const Plan& plan, const StepPlan& step, Flow* out) const override {
    conv_.flow(step, plan.values[conv_.spec().out].shape.h, out);
    const int residual = conv_.spec().residual;
    if (residual < 0) return;
    const ValueShape &r = plan.values[residual].shape,
                     &result = plan.values[conv_.spec().out].shape;
    Flow::Reading reading = read_all(plan, residual);
    reading.together = 1;
    reading.rows.resize(step.units, reading.rows[0]);
    for (int64_t u = 0; r.h == result.h && u < step.units; ++u)
      reading.rows[u] = {u ? out->writes[0].ready[u - 1] : 0, out->writes[0].ready[u]};
    out->reads.push_back(std::move(reading));
  }

  void locate(const Plan& plan, StepPlan* step) const override {
    locate_source(plan, source_, &step->maps);
  }

  void run(const Context& c) const override {
    const ConvSpec& spec = conv_.spec();
    const ConvShape sizes = shape(*c.plan);
    ConvCall call;
    call.step = c.step;
    call.shape = &sizes;
    call.pool = c.pool;
    call.in = tensor(c, source_.value);
    if (source_.combine != kCombineNone) call.load_residual = tensor(c, source_.residual);
    if (source_.store >= 0 && c.storing) call.copy = tensor(c, source_.store);
    call.out = tensor(c, spec.out);
    if (spec.residual >= 0) {
      call.residual = tensor(c, spec.residual);
      const ValueShape &r = c.value(spec.residual).shape, &out = c.value(spec.out).shape;
      if (r.h != out.h || r.w != out.w) call.repeated = {r.h, r.w};
    }
    if (source_.slot >= 0) {
      call.scale = c.scale(source_.slot, 0);
      call.shift = c.shift(source_.slot, 0);
      call.slot_image = 2 * c.plan->slot_padded[source_.slot];
    }
    call.panels = c.panels;
    call.panel_stride = c.plan->panel_floats;
    call.stats = c.stats;
    if (spec.norm.slot >= 0) {
      call.out_scale = c.scale(spec.norm.slot, 0);
      call.out_shift = c.shift(spec.norm.slot, 0);
      call.out_mean = c.mean(spec.norm.slot, 0);
      call.out_variance = c.variance(spec.norm.slot, 0);
      call.out_slot_image = 2 * c.plan->slot_padded[spec.norm.slot];
    }
    call.first_unit = c.first_unit;
    call.last_unit = c.last_unit;
    call.statistics = c.statistics;
    conv_.run(call);
  }

 private:
  ConvShape shape(const Plan& plan) const {
    const ValueShape& in = plan.values[source_.value].shape;
    const ValueShape& out = plan.values[conv_.spec().out].shape;
    ConvShape s{out.n, {in.h, in.w}, {}, {out.h, out.w}};
    if (source_.combine != kCombineNone) {
      const ValueShape& residual = plan.values[source_.residual].shape;
      s.residual = {residual.h, residual.w};
    }
    return s;
  }

  static ConvTensor tensor(const Context& c, int value) {
    const Value& v = c.value(value);
    const int planar = v.shape.planar ? 1 : 0;
    return {c.data(value), v.shape.dtype, v.image, v.block, v.row,
            v.pixel,       planar,        v.rows,  v.first, v.shape.dense};
  }

  Source source_;  // as the engine knows it; the convolution may read it in another way
  Conv conv_;
};

}  // namespace

std::unique_ptr<Step> make_conv(ConvSpec spec, const Kernels& isa) {
  spec.step = true;
  return std::make_unique<ConvStep>(std::move(spec), isa);
}

}  // namespace fastgen
