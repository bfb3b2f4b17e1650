// The fused convolutions as operations on the caller's tensors.
#include <algorithm>
#include <mutex>

#include "conv.h"
#include "isa.h"
#include "op_pool.h"

namespace fastgen {
namespace {

constexpr int64_t kMaxSide = int64_t{1} << 24;
constexpr int64_t kMaxElements = int64_t{1} << 40;
constexpr size_t kPlans = 4;  // input sizes whose plans are kept

int64_t padded(int64_t channels) { return blocks_of(channels) * kBlock; }
int64_t align16(int64_t floats) { return ceil_div(floats, 16) * 16; }

void check(const PackedConvSpec& s) {
  require(s.inputs >= 1 && s.outputs >= 1 && s.inputs <= 65536 && s.outputs <= 65536,
          "the weight has " + std::to_string(s.inputs) + " inputs and " +
              std::to_string(s.outputs) + " outputs, must be 1..65536 of each");
  require(s.kh >= 1 && s.kw >= 1 && s.kh <= 15 && s.kw <= 15,
          "the kernel is " + std::to_string(s.kh) + "x" + std::to_string(s.kw) +
              ", must be 1..15 in both directions");
  require(s.weight.size() == size_t(s.outputs) * s.inputs * s.kh * s.kw &&
              s.bias.size() == size_t(s.outputs),
          "weight and bias do not fit each other");
  require(s.stride >= 1 && s.stride <= 2,
          "stride is " + std::to_string(s.stride) + ", must be 1 or 2");
  require(s.upsample >= 1 && s.upsample <= 2,
          "upsample is " + std::to_string(s.upsample) + ", must be 1 or 2");
  require(s.padding >= 0 && s.padding <= 4096,
          "padding is " + std::to_string(s.padding) + ", must be 0..4096");
  require(s.dtype >= kFloat32 && s.dtype <= kBFloat16, "unknown dtype");
  if (s.statistics)
    require(s.gamma.size() == s.bias.size() && s.beta.size() == s.bias.size(),
            "gamma and beta must have one value for each output");
}

ConvSpec conv_spec(const PackedConvSpec& s) {
  ConvSpec c;
  c.label = "convolution";
  c.inputs = s.inputs;
  c.outputs = s.outputs;
  c.stride = s.stride;
  c.pad_mode = s.reflect ? 1 : 0;
  c.phases = {{s.kh, s.kw, -s.padding, -s.padding, 0, 0, s.weight}};
  c.bias = s.bias;
  if (s.dtype == kBFloat16) {
    c.products = kBFloat16;
    c.fine = true;
  }
  if (s.upsample == 2) c.source.views = {{ViewOp::kUpsample, 2, 0, 0, 0}};
  if (s.statistics) {
    c.norm = {0, s.eps, s.gamma, s.beta};
    c.source.pre = s.load_slope == 1 ? kActNone : s.load_slope == 0 ? kActRelu : kActLeaky;
    c.source.pre_slope = s.load_slope;
    c.source.combine = kCombineAdd;
  } else {
    c.act = s.slope == 1 ? kActNone : s.slope == 0 ? kActRelu : kActLeaky;
    c.slope = s.slope;
    c.small = s.outputs <= 4 && s.stride == 1;
  }
  return c;
}

// Dense in (N,H,W,C) order, or in (N,C,H,W) order; axes of size 1 may have any stride.
bool dense(const Strided& t, bool last) {
  const int64_t sizes[4] = {t.n, last ? t.h : t.c, last ? t.w : t.h, last ? t.c : t.w};
  const int64_t strides[4] = {t.stride_n, last ? t.stride_h : t.stride_c,
                              last ? t.stride_w : t.stride_h, last ? t.stride_c : t.stride_w};
  int64_t step = 1;
  for (int axis = 3; axis >= 0; --axis) {
    if (sizes[axis] != 1 && strides[axis] != step) return false;
    step *= sizes[axis];
  }
  return true;
}

// `few` channels are taken one by one in either order.
ConvTensor tensor(const Strided& t, bool last, bool few) {
  ConvTensor r;
  r.data = const_cast<void*>(t.data);
  r.dtype = t.dtype;
  r.image = t.n == 1 ? 0 : t.c * t.h * t.w;
  r.planar = !last || few;
  r.block = last ? (few ? 1 : kBlock) : t.h * t.w;
  r.pixel = last ? t.c : 1;
  r.row = t.w * r.pixel;
  return r;
}

std::string sizes(const Strided& t) {
  return "(" + std::to_string(t.n) + ", " + std::to_string(t.c) + ", " + std::to_string(t.h) +
         ", " + std::to_string(t.w) + ")";
}

}  // namespace

struct PackedConv::Impl {
  PackedConvSpec spec;
  Conv conv;
  struct Entry {
    ConvShape shape;
    StepPlan plan;
  };
  mutable std::mutex mutex;
  mutable std::vector<std::shared_ptr<const Entry>> plans;  // the last used first

  Impl(PackedConvSpec s, const Kernels& isa) : spec(std::move(s)), conv(conv_spec(spec), isa) {
    std::vector<float>().swap(spec.weight);
  }

  // Where the list is in use by another thread (or was, at a fork), the plan is made anew.
  std::shared_ptr<const Entry> plan(const ConvShape& shape) const {
    const auto same = [&](const std::shared_ptr<const Entry>& e) {
      return e->shape.images == shape.images && e->shape.in.h == shape.in.h &&
             e->shape.in.w == shape.in.w;
    };
    std::unique_lock<std::mutex> lock(mutex, std::try_to_lock);
    if (lock) {
      const auto found = std::find_if(plans.begin(), plans.end(), same);
      if (found != plans.end()) {
        std::rotate(plans.begin(), found, found + 1);
        return plans.front();
      }
      lock.unlock();
    }
    auto entry = std::make_shared<Entry>();
    entry->shape = shape;
    conv.plan(shape, op_threads(), &entry->plan);
    lock = std::unique_lock<std::mutex>(mutex, std::try_to_lock);
    if (lock) {
      plans.insert(plans.begin(), entry);
      if (plans.size() > kPlans) plans.pop_back();
    }
    return entry;
  }

  ConvShape shape(const Strided& x, const Strided& y) const;
};

ConvShape PackedConv::Impl::shape(const Strided& x, const Strided& y) const {
  require(x.n >= 1 && x.h >= 1 && x.w >= 1 && x.c == spec.inputs,
          "the input is " + sizes(x) + ", must have " + std::to_string(spec.inputs) +
              " channels and no empty axis");
  require(x.n <= kMaxSide && x.h <= kMaxSide / 4 && x.w <= kMaxSide / 4,
          "the input is " + sizes(x) + ", which is too large");
  const auto side = [&](int64_t size, int kernel) {
    return (size * spec.upsample + 2 * spec.padding - kernel) / spec.stride + 1;
  };
  require(x.h * spec.upsample + 2 * spec.padding >= spec.kh &&
              x.w * spec.upsample + 2 * spec.padding >= spec.kw,
          "the input is " + sizes(x) + ", smaller than the kernel; pad it");
  require(
      !spec.reflect || (spec.padding < x.h * spec.upsample && spec.padding < x.w * spec.upsample),
      "padding is " + std::to_string(spec.padding) + ", must be below the size of the input " +
          sizes(x) + " for reflection");
  const ConvShape s{x.n, {x.h, x.w}, {x.h, x.w}, {side(x.h, spec.kh), side(x.w, spec.kw)}};
  require(y.n == x.n && y.c == spec.outputs && y.h == s.out.h && y.w == s.out.w,
          "the output is " + sizes(y) + ", must be (" + std::to_string(x.n) + ", " +
              std::to_string(spec.outputs) + ", " + std::to_string(s.out.h) + ", " +
              std::to_string(s.out.w) + ")");
  for (const Strided* t : {&x, &y}) {
    const int64_t channels = std::max<int64_t>(t->c, kBlock);
    require(t->h * t->w <= kMaxElements / channels / t->n, "a tensor has more than 2^40 elements");
  }
  return s;
}

PackedConv::PackedConv(PackedConvSpec spec, const std::string& isa) {
  check(spec);
  impl_ = std::make_unique<Impl>(std::move(spec), isa_kernels(isa));
}
PackedConv::~PackedConv() = default;
const PackedConvSpec& PackedConv::spec() const { return impl_->spec; }
std::string PackedConv::isa() const { return impl_->conv.isa().name; }

void PackedConv::run(const Strided& x, const Strided& y, const Strided& residual,
                     const float* scale, const float* shift, float* out_scale,
                     float* out_shift) const {
  const PackedConvSpec& spec = impl_->spec;
  const ConvShape shape = impl_->shape(x, y);
  require(x.data && y.data, "a tensor has no memory");
  require(x.dtype == spec.dtype && y.dtype == spec.dtype,
          "the input's or output's dtype is not the one that was packed for");
  const bool last = dense(x, true) && (dense(y, true) || !dense(x, false));
  require(dense(x, last) && dense(y, last), "input and output must be dense in the same order");
  require(!scale == !shift, "scale and shift belong together");
  require(spec.statistics ? out_scale && out_shift : !out_scale && !out_shift && !scale,
          "norms belong to a convolution that was packed with statistics");
  if (residual.data) {
    const Strided& like = spec.statistics ? x : y;
    require(residual.dtype == spec.dtype && (residual.n == like.n || residual.n == 1) &&
                residual.c == like.c && residual.h == like.h && residual.w == like.w,
            "the residual is " + sizes(residual) + ", must be " + sizes(like) +
                " or one image of it, in the packed dtype");
    require(dense(residual, last), "the residual must be dense in the order of the input");
  }

  const auto entry = impl_->plan(shape);
  const StepPlan& plan = entry->plan;
  ConvCall call;
  call.step = &plan;
  call.shape = &entry->shape;
  call.exact = true;
  call.in = tensor(x, last, spec.inputs <= 4);
  call.out = tensor(y, last, impl_->conv.spec().small);
  if (residual.data && spec.statistics)
    call.load_residual = tensor(residual, last, spec.inputs <= 4);
  if (residual.data && !spec.statistics)
    call.residual = tensor(residual, last, impl_->conv.spec().small);
  call.out_scale = out_scale;
  call.out_shift = out_shift;
  call.out_slot_image = spec.outputs;

  const int64_t slots = scale ? align16(x.n * 2 * padded(spec.inputs)) : 0;
  const int64_t stats = align16(plan.stats_floats);
  call.panel_stride = align16(plan.panel_floats);
  const int64_t total = slots + stats + op_threads() * call.panel_stride;
  if (total > kMaxElements) throw OutOfMemory("the convolution needs more than 4 TiB");
  float* scratch = op_scratch(static_cast<size_t>(total) * sizeof(float));
  call.stats = scratch + slots;
  call.panels = call.stats + stats;
  if (scale) {
    call.scale = scratch;
    call.shift = scratch + padded(spec.inputs);
    call.slot_image = 2 * padded(spec.inputs);
    for (int64_t n = 0; n < x.n; ++n) {
      float* to = scratch + n * call.slot_image;
      std::fill(to, to + call.slot_image, 0.0f);
      std::copy(scale + n * spec.inputs, scale + (n + 1) * spec.inputs, to);
      std::copy(shift + n * spec.inputs, shift + (n + 1) * spec.inputs, to + padded(spec.inputs));
    }
  }
  impl_->conv.run(call);
}

}  // namespace fastgen
