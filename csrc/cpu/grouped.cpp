// Grouped convolutions; depthwise ones with vector lanes over the channels.
#include <algorithm>

#include "engine.h"

namespace fastgen {
namespace {

class Grouped final : public Step {
 public:
  explicit Grouped(ConvSpec spec) : Step(spec.label), spec_(std::move(spec)) {
    require(spec_.groups >= 1 && spec_.inputs >= 1 && spec_.outputs >= 1 &&
                spec_.inputs % spec_.groups == 0 && spec_.outputs % spec_.groups == 0,
            label + ": channels are not divisible by the groups");
    require(spec_.phases.size() == 1 && spec_.out_stride == 1 && spec_.stride >= 1 &&
                spec_.stride <= 64 && spec_.pad_mode >= 0 && spec_.pad_mode <= 1 && !spec_.flat &&
                !spec_.small && spec_.act == 0 && spec_.norm.slot < 0 && spec_.source.store < 0,
            label + ": not a plain grouped convolution");
    const PhaseSpec& p = spec_.phases[0];
    require(p.kh >= 1 && p.kh <= 255 && p.kw >= 1 && p.kw <= 255 && std::abs(p.dy) <= 4096 &&
                std::abs(p.dx) <= 4096,
            label + ": kernel is out of range");
    per_in_ = spec_.inputs / spec_.groups;
    per_out_ = spec_.outputs / spec_.groups;
    require(
        static_cast<int64_t>(p.weights.size()) == int64_t{spec_.outputs} * per_in_ * p.kh * p.kw &&
            (spec_.bias.empty() || spec_.bias.size() == static_cast<size_t>(spec_.outputs)),
        label + ": weight has the wrong size");
    bias_.resize(blocks_of(spec_.outputs) * kBlock);
    std::copy(spec_.bias.begin(), spec_.bias.end(), bias_.data());
    if (per_in_ != 1 || per_out_ != 1) return;
    const int64_t taps = p.kh * p.kw;
    depthwise_.resize(blocks_of(spec_.outputs) * taps * kBlock);
    for (int64_t o = 0; o < spec_.outputs; ++o)
      for (int64_t t = 0; t < taps; ++t)
        depthwise_.data()[(o / kBlock * taps + t) * kBlock + o % kBlock] = p.weights[o * taps + t];
  }

  void plan(const Plan& plan, const std::vector<Slot>& slots, const Kernels&, int,
            StepPlan* out) const override {
    check_source(plan, slots, spec_.source, label);
    const ValueShape& in = plan.values[spec_.source.value].shape;
    const ValueShape& to = plan.values[spec_.out].shape;
    require(in.c == spec_.inputs && to.c == spec_.outputs && in.n == to.n && !to.planar,
            label + ": value has the wrong number of channels or images");
    require(to.dtype == kFloat32, label + ": the output must be float32");
    const PhaseSpec& p = spec_.phases[0];
    // One output row at a time.
    const int64_t columns = (to.w - 1) * spec_.stride + p.kw;
    fill_maps(plan, spec_.source, p.dy, (to.h - 1) * spec_.stride + p.kh, p.dx, columns,
              spec_.pad_mode, &out->maps);
    out->units = to.h;
    out->panel_floats = p.kh * columns * blocks_of(spec_.inputs) * kBlock + kBlock;
    out->flops = 2.0 * to.n * to.c * to.h * to.w * per_in_ * p.kh * p.kw;
  }

  void flow(const Plan&, const StepPlan& step, Flow* out) const override {
    source_flow(spec_.source, step.maps, step.units, spec_.stride, spec_.phases[0].kh, out);
    out->writes.push_back({spec_.out, {}});
    for (int64_t y = 1; y <= step.units; ++y) out->writes[0].ready.push_back(y);
  }

  void locate(const Plan& plan, StepPlan* step) const override {
    locate_source(plan, spec_.source, &step->maps);
  }

  void run(const Context& c) const override {
    const Value& out = c.value(spec_.out);
    const PhaseSpec& p = spec_.phases[0];
    const int64_t units = c.last_unit - c.first_unit;
    c.pool->run(out.shape.n * units, [&](int64_t item, int thread) {
      const int64_t n = item / units, y = c.first_unit + item % units;
      PackArgs a = source_args(c, spec_.source, n);
      a.rows = p.kh;
      a.cols = static_cast<int>((out.shape.w - 1) * spec_.stride + p.kw);
      a.src_y = c.step->maps.src_y.data() + y * spec_.stride;
      a.src_x = c.step->maps.src_x.data();
      if (a.combine) {
        a.res_y = c.step->maps.res_y.data() + y * spec_.stride;
        a.res_x = c.step->maps.res_x.data();
      }
      a.format = kPanel16;
      float* const panel = c.panel(thread);
      a.dst = panel;
      a.dst_row = int64_t{a.cols} * kBlock;
      a.dst_block = a.rows * a.dst_row;
      c.isa->pack(a);
      float* row = c.data(spec_.out) + n * out.image + out.place(y) * out.row;
      for (int64_t b = 0; b < blocks_of(spec_.outputs); ++b) {
        if (per_in_ == 1 && per_out_ == 1) {
          c.isa->depthwise(panel + b * a.dst_block, a.dst_row, spec_.stride * kBlock,
                           depthwise_.data() + b * p.kh * p.kw * kBlock, bias_.data() + b * kBlock,
                           p.kh, p.kw, static_cast<int>(out.shape.w), row + b * out.block);
        } else {
          block_row(a, b, out.shape.w, row + b * out.block);
        }
      }
    });
  }

 private:
  void block_row(const PackArgs& a, int64_t b, int64_t width, float* to) const {
    const PhaseSpec& p = spec_.phases[0];
    for (int64_t lane = 0; lane < kBlock; ++lane) {
      const int64_t o = b * kBlock + lane;
      for (int64_t x = 0; x < width; ++x) {
        float acc = bias_.data()[o];
        if (o < spec_.outputs) {
          const float* w = p.weights.data() + o * per_in_ * p.kh * p.kw;
          for (int64_t i = 0; i < per_in_; ++i) {
            const int64_t input = o / per_out_ * per_in_ + i;
            const float* from = static_cast<const float*>(a.dst) + input / kBlock * a.dst_block +
                                input % kBlock + x * spec_.stride * kBlock;
            for (int ky = 0; ky < p.kh; ++ky)
              for (int kx = 0; kx < p.kw; ++kx) acc += *w++ * from[ky * a.dst_row + kx * kBlock];
          }
        }
        to[x * kBlock + lane] = acc;
      }
    }
  }

  ConvSpec spec_;
  int per_in_ = 1, per_out_ = 1;
  Weights bias_, depthwise_;
};

}  // namespace

std::unique_ptr<Step> make_grouped(ConvSpec spec) {
  return std::make_unique<Grouped>(std::move(spec));
}

}  // namespace fastgen
