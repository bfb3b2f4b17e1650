// Linear layers: images by outputs. Of one image every weight is read for one product, so what
// counts is how fast they come; of many images parts of inputs and outputs stay in the cache.
#include <algorithm>

#include "conv.h"

namespace fastgen {
namespace {

constexpr int64_t kPartImages = 64;               // most images of a part
constexpr int64_t kPartWeights = 128 * 1024 / 4;  // floats of weights that a part goes over

class Linear final : public Step {
 public:
  explicit Linear(ConvSpec spec)
      : Step(spec.label), spec_(std::move(spec)), bf16_(spec_.products == kBFloat16) {
    const Source& source = spec_.source;
    require(spec_.groups == 1 && spec_.stride == 1 && spec_.out_stride == 1 && !spec_.small &&
                spec_.norm.slot < 0 && spec_.residual < 0 && source.slot < 0 &&
                source.pre == kActNone && source.post == kActNone &&
                source.combine == kCombineNone && source.store < 0 && source.views.empty() &&
                spec_.phases.size() == 1 && spec_.phases[0].kh == 1 && spec_.phases[0].kw == 1,
            label + ": linear layer on an image");
    require(spec_.inputs >= 1 && spec_.outputs >= 1 && spec_.act >= 0 && spec_.act <= 4,
            label + ": linear layer is out of range");
    const size_t inputs = spec_.inputs, outputs = spec_.outputs;
    std::vector<float>& from = spec_.phases[0].weights;
    require(from.size() == inputs * outputs, label + ": weight has the wrong size");
    require(spec_.bias.empty() || spec_.bias.size() == outputs,
            label + ": bias has the wrong size");
    bias_.resize(blocks_of(spec_.outputs) * kBlock);
    std::copy(spec_.bias.begin(), spec_.bias.end(), bias_.data());
    words_ = bf16_ ? ceil_div(spec_.inputs, 2) : spec_.inputs;
    weights_.resize(blocks_of(spec_.outputs) * words_ * kBlock);
    float* to = weights_.data();
    for (size_t first = 0; first < outputs; first += kBlock)
      for (size_t i = 0; i < inputs; i += bf16_ ? 2 : 1)
        for (size_t lane = 0; lane < kBlock; ++lane, ++to) {
          if (first + lane >= outputs) continue;
          const float* row = from.data() + (first + lane) * inputs;
          *to = bf16_ ? bf16_pair(row[i], i + 1 < inputs ? row[i + 1] : 0.0f) : row[i];
        }
    std::vector<float>().swap(from);
  }

  void plan(const Plan& plan, const std::vector<Slot>&, const Kernels&, int threads,
            StepPlan* out) const override {
    const auto known = [&](int v) { return v >= 0 && v < static_cast<int>(plan.values.size()); };
    require(known(spec_.source.value) && known(spec_.out), label + ": unknown value");
    const ValueShape &in = plan.values[spec_.source.value].shape,
                     &result = plan.values[spec_.out].shape;
    require(in.c == spec_.inputs && result.c == spec_.outputs && in.n == result.n && in.h == 1 &&
                in.w == 1 && result.h == 1 && result.w == 1 && !in.planar && !result.planar &&
                !in.dense && !result.dense,
            label + ": linear layer on an image");
    // Parts of the images, each of which reads all weights, and of the outputs.
    const int64_t most_chunks = std::max<int64_t>(1, blocks_of(spec_.outputs) / 2);
    const int64_t wanted = threads == 1 ? 1 : 2 * threads;
    const int64_t parts =
        std::max(ceil_div(in.n, kPartImages), std::min(in.n, ceil_div(wanted, most_chunks)));
    out->batch = ceil_div(in.n, parts);
    out->chunks = std::clamp<int64_t>(ceil_div(wanted, parts), 1, most_chunks);
    const int64_t inputs = part_inputs(out->batch);
    const int64_t elements =
        out->batch > 1 ? out->batch * kLinearRow : ceil_div(inputs, kBlock) * kBlock;
    const int64_t sums = inputs < spec_.inputs ? out->batch * part_blocks(inputs) * kBlock : 0;
    out->panel_floats = elements + sums;
    out->products = double(in.n) * spec_.inputs * spec_.outputs;
    out->flops = 2 * out->products;
  }

  void flow(const Plan& plan, const StepPlan&, Flow* out) const override {
    out->reads.push_back(read_all(plan, spec_.source.value));
    out->writes.push_back({spec_.out, {1}});
  }

  void run(const Context& c) const override {
    const StepPlan& p = *c.step;
    const int64_t blocks = blocks_of(spec_.outputs);
    c.pool->run(ceil_div(c.value(spec_.out).shape.n, p.batch) * p.chunks,
                [&](int64_t item, int thread) {
                  const int64_t chunk = item % p.chunks;
                  part(c, item / p.chunks * p.batch, even(blocks * chunk / p.chunks, blocks),
                       even(blocks * (chunk + 1) / p.chunks, blocks), c.panel(thread));
                });
  }

 private:
  // Pairs of blocks are multiplied together.
  static int64_t even(int64_t block, int64_t blocks) {
    return block == blocks ? block : block / 2 * 2;
  }
  int64_t part_inputs(int64_t images) const {
    return images > 1 ? std::min(spec_.inputs, kLinearInputs) : spec_.inputs;
  }
  // Outputs whose weights of so many inputs stay in the cache.
  int64_t part_blocks(int64_t inputs) const {
    const int64_t fit = kPartWeights / (ceil_div(inputs, bf16_ ? 2 : 1) * kBlock);
    return std::max<int64_t>(2, fit / 2 * 2);
  }

  // Images from `first` on, blocks [begin, end) of outputs.
  void part(const Context& c, int64_t first, int64_t begin, int64_t end, float* panel) const {
    const Value &in = c.value(spec_.source.value), &out = c.value(spec_.out);
    const int64_t images = std::min(c.step->batch, in.shape.n - first);
    const int64_t most = part_inputs(c.step->batch), some = part_blocks(most);
    const int64_t in_bytes = element_bytes(in.shape.dtype);
    const int64_t elements =
        c.step->batch > 1 ? c.step->batch * kLinearRow : ceil_div(most, kBlock) * kBlock;
    const char* from =
        reinterpret_cast<const char*>(c.data(spec_.source.value)) + first * in.image * in_bytes;
    const bool whole = c.step->batch == 1 && in.shape.dtype == (bf16_ ? kBFloat16 : kFloat32) &&
                       (!bf16_ || spec_.inputs % 2 == 0);
    LinearPack pack{};
    pack.dtype = in.shape.dtype;
    pack.row = in.image;
    pack.images = images;
    pack.bf16 = bf16_;
    pack.out = panel;
    LinearArgs a{};
    a.x = whole ? static_cast<const void*>(from) : panel;
    a.block = words_ * kBlock;
    a.images = images;
    a.bf16 = bf16_;
    a.sums = panel + elements;
    a.sums_row = some * kBlock;
    a.dtype = out.shape.dtype;
    a.out_row = out.image;
    a.act = spec_.act;
    a.slope = spec_.slope;
    for (int64_t block = begin; block < end; block += some) {
      a.blocks = std::min(some, end - block);
      a.bias = bias_.data() + block * kBlock;
      a.out = reinterpret_cast<char*>(c.data(spec_.out)) +
              (first * out.image + block * kBlock) * element_bytes(a.dtype);
      for (int64_t input = 0; input < spec_.inputs; input += most) {
        a.inputs = pack.inputs = static_cast<int>(std::min(most, spec_.inputs - input));
        a.first = input == 0;
        a.last = input + most >= spec_.inputs;
        a.weights = weights_.data() + (block * words_ + input / (bf16_ ? 2 : 1)) * kBlock;
        pack.x = from + input * in_bytes;
        // Of few inputs the panel holds all of them already.
        if (!whole && (block == begin || most < spec_.inputs)) c.isa->linear_pack(pack);
        c.isa->linear(a);
      }
    }
  }

  ConvSpec spec_;
  bool bf16_;
  int64_t words_;
  Weights weights_, bias_;
};

}  // namespace

std::unique_ptr<Step> make_linear(ConvSpec spec) {
  return std::make_unique<Linear>(std::move(spec));
}

}  // namespace fastgen
