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
    require(!spec.flat || (in.h == 1 && in.w == 1 && result.h == 1 && result.w == 1 && !in.planar &&
                           source_.slot < 0 && source_.combine == 0 && source_.store < 0 &&
                           source_.views.empty()),
            label + ": linear layer on an image");
    conv_.plan(shape(plan), threads, out);
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
    if (source_.store >= 0) call.copy = tensor(c, source_.store);
    call.out = tensor(c, spec.out);
    if (spec.flat) call.out.pixel = call.out.image;
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
      call.out_slot_image = 2 * c.plan->slot_padded[spec.norm.slot];
    }
    conv_.run(call);
  }

 private:
  // A linear layer takes the images as the pixels of one row.
  ConvShape shape(const Plan& plan) const {
    const ValueShape& in = plan.values[source_.value].shape;
    const ValueShape& out = plan.values[conv_.spec().out].shape;
    if (conv_.spec().flat) return {1, {1, in.n}, {}, {1, in.n}};
    ConvShape s{out.n, {in.h, in.w}, {}, {out.h, out.w}};
    if (source_.combine != kCombineNone) {
      const ValueShape& residual = plan.values[source_.residual].shape;
      s.residual = {residual.h, residual.w};
    }
    return s;
  }

  static ConvTensor tensor(const Context& c, int value) {
    const Value& v = c.value(value);
    return {c.data(value), v.shape.dtype, v.image, v.block, v.row, v.pixel, v.shape.planar ? 1 : 0};
  }

  Source source_;  // as the engine knows it; the convolution may read it in another way
  Conv conv_;
};

}  // namespace

std::unique_ptr<Step> make_conv(ConvSpec spec, const Kernels& isa) {
  return std::make_unique<ConvStep>(std::move(spec), isa);
}

}  // namespace fastgen
