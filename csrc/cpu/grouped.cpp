// Grouped convolutions. Depthwise ones have vector lanes over the channels. In the others 16
// outputs at a time are a dense convolution of all inputs that one of them reads, with zeros for
// the rest.
#include <algorithm>

#include "engine.h"

namespace fastgen {
namespace {

constexpr int64_t kPanelFloats = 64 * 1024;  // a quarter of a level 2 cache

class Grouped final : public Step {
 public:
  explicit Grouped(ConvSpec spec) : Step(spec.label), spec_(std::move(spec)) {
    require(spec_.groups >= 1 && spec_.inputs >= 1 && spec_.outputs >= 1 &&
                spec_.inputs % spec_.groups == 0 && spec_.outputs % spec_.groups == 0,
            label + ": channels are not divisible by the groups");
    require(spec_.phases.size() == 1 && spec_.out_stride == 1 && spec_.stride >= 1 &&
                spec_.stride <= 64 && spec_.pad_mode >= 0 && spec_.pad_mode <= 1 && !spec_.small &&
                spec_.act == 0 && spec_.norm.slot < 0 && spec_.source.store < 0,
            label + ": not a plain grouped convolution");
    const PhaseSpec& p = spec_.phases[0];
    require(p.kh >= 1 && p.kh <= 255 && p.kw >= 1 && p.kw <= 255 && std::abs(p.dy) <= 4096 &&
                std::abs(p.dx) <= 4096,
            label + ": kernel is out of range");
    per_in_ = spec_.inputs / spec_.groups;
    per_out_ = spec_.outputs / spec_.groups;
    const int64_t taps = p.kh * p.kw, out_blocks = blocks_of(spec_.outputs);
    require(static_cast<int64_t>(p.weights.size()) == int64_t{spec_.outputs} * per_in_ * taps &&
                (spec_.bias.empty() || spec_.bias.size() == static_cast<size_t>(spec_.outputs)),
            label + ": weight has the wrong size");
    bias_.resize(out_blocks * kBlock);
    std::copy(spec_.bias.begin(), spec_.bias.end(), bias_.data());
    depthwise_ = per_in_ == 1 && per_out_ == 1;
    int64_t floats = 0;
    for (int64_t b = 0; b < out_blocks; ++b) {
      const int64_t first = b * kBlock;
      const int64_t last = std::min<int64_t>(first + kBlock, spec_.outputs) - 1;
      const int64_t channel = first / per_out_ * per_in_ / kBlock * kBlock;
      const int64_t channels = (last / per_out_ + 1) * per_in_ - channel;
      parts_.push_back({floats, channel, channels});
      floats += (depthwise_ ? 1 : channels) * taps * kBlock;
    }
    weights_.resize(floats);
    for (int64_t o = 0; o < spec_.outputs; ++o) {
      const Part& part = parts_[o / kBlock];
      float* to = weights_.data() + part.weights + o % kBlock;
      for (int64_t i = 0; i < per_in_; ++i)
        for (int64_t t = 0; t < taps; ++t) {
          const float weight = p.weights[(o * per_in_ + i) * taps + t];
          const int64_t input = depthwise_ ? 0 : o / per_out_ * per_in_ + i - part.channel;
          // [block of inputs][tap][input], see MicroArgs.
          const int64_t before = input / kBlock * kBlock;
          const int64_t here = depthwise_ ? 1 : std::min(kBlock + before, part.channels) - before;
          to[(before * taps + t * here + input - before) * kBlock] = weight;
        }
    }
    std::vector<float>().swap(spec_.phases[0].weights);
  }

  void plan(const Plan& plan, const std::vector<Slot>& slots, const Kernels&, int threads,
            StepPlan* out) const override {
    check_source(plan, slots, spec_.source, label);
    const ValueShape& in = plan.values[spec_.source.value].shape;
    const ValueShape& to = plan.values[spec_.out].shape;
    require(
        in.c == spec_.inputs && to.c == spec_.outputs && in.n == to.n && !to.planar && !to.dense,
        label + ": value has the wrong number of channels or images");
    require(to.dtype == kFloat32, label + ": the output must be float32");
    const PhaseSpec& p = spec_.phases[0];
    const int64_t columns = (to.w - 1) * spec_.stride + p.kw;
    fill_maps(plan, spec_.source, p.dy, (to.h - 1) * spec_.stride + p.kh, p.dx, columns,
              spec_.pad_mode, &out->maps);
    // Some rows of outputs at a time, whose windows overlap.
    const int64_t row = columns * blocks_of(spec_.inputs) * kBlock;
    const int64_t fit = std::max<int64_t>(kPanelFloats / row - p.kh, 0) / spec_.stride + 1;
    const int64_t even = ceil_div(to.h * to.n, 4 * threads);
    out->tile_rows = std::clamp<int64_t>(std::min(fit, even), 1, to.h);
    out->units = ceil_div(to.h, out->tile_rows);
    out->panel_floats = window(out->tile_rows) * row + kBlock;
    out->products = double(to.n) * to.h * to.w * per_in_ * p.kh * p.kw;
    out->flops = 2 * out->products * to.c;
    out->products *= to.c;
  }

  void flow(const Plan& plan, const StepPlan& step, Flow* out) const override {
    const int64_t rows = step.tile_rows, height = plan.values[spec_.out].shape.h;
    source_flow(spec_.source, step.maps, step.units, rows * spec_.stride, window(rows), out);
    out->writes.push_back({spec_.out, {}});
    for (int64_t u = 1; u <= step.units; ++u)
      out->writes[0].ready.push_back(std::min(u * rows, height));
  }

  void locate(const Plan& plan, StepPlan* step) const override {
    locate_source(plan, spec_.source, &step->maps);
  }

  void run(const Context& c) const override {
    const Value& out = c.value(spec_.out);
    const PhaseSpec& p = spec_.phases[0];
    const int64_t units = c.last_unit - c.first_unit;
    c.pool->run(out.shape.n * units, [&](int64_t item, int thread) {
      const int64_t n = item / units, y = (c.first_unit + item % units) * c.step->tile_rows;
      const int64_t rows = std::min(c.step->tile_rows, out.shape.h - y);
      PackArgs a = source_args(c, spec_.source, n);
      a.rows = static_cast<int>(window(rows));
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
      for (int64_t b = 0; b < blocks_of(spec_.outputs); ++b)
        for (int64_t r = 0; r < rows; ++r)
          block_row(*c.isa, a, b, r, static_cast<int>(out.shape.w),
                    c.data(spec_.out) + n * out.image + b * out.block + out.place(y + r) * out.row);
    });
  }

 private:
  struct Part {                 // 16 outputs
    int64_t weights;            // offset
    int64_t channel, channels;  // of inputs that they read, from a whole block on
  };

  int64_t window(int64_t rows) const { return (rows - 1) * spec_.stride + spec_.phases[0].kh; }

  // Row `row` of the panel's outputs, block b.
  void block_row(const Kernels& isa, const PackArgs& a, int64_t b, int64_t row, int width,
                 float* to) const {
    const PhaseSpec& p = spec_.phases[0];
    const Part& part = parts_[b];
    const float* window = static_cast<const float*>(a.dst) + row * spec_.stride * a.dst_row;
    const float *weights = weights_.data() + part.weights, *bias = bias_.data() + b * kBlock;
    const int pixel = spec_.stride * kBlock;
    if (depthwise_)
      return isa.depthwise(window + b * a.dst_block, a.dst_row, pixel, weights, bias, p.kh, p.kw,
                           width, to);
    MicroArgs m{};
    m.weights = weights;
    m.bias = bias;
    m.panel_block = a.dst_block;
    m.panel_row = a.dst_row;
    m.blocks = static_cast<int>(blocks_of(part.channels));
    m.last = static_cast<int>(part.channels - (m.blocks - 1) * kBlock);
    m.kh = p.kh;
    m.kw = p.kw;
    m.channels = kBlock;
    m.pixel = pixel;
    const int pieces = static_cast<int>(ceil_div(width, isa.pixels[1]));
    for (int piece = 0; piece < pieces; ++piece) {
      const int first = width * piece / pieces, last = width * (piece + 1) / pieces;
      m.panel = window + part.channel / kBlock * a.dst_block + first * pixel;
      m.out = to + first * kBlock;
      isa.micro(m, last - first, 1);
    }
  }

  ConvSpec spec_;
  int64_t per_in_ = 1, per_out_ = 1;
  bool depthwise_ = false;
  std::vector<Part> parts_;
  Weights weights_, bias_;
};

}  // namespace

std::unique_ptr<Step> make_grouped(ConvSpec spec) {
  return std::make_unique<Grouped>(std::move(spec));
}

}  // namespace fastgen
