// Steps other than dense convolutions: copies, statistics, pooling, joins, grouped convolutions.
#include <algorithm>
#include <cmath>
#include <limits>

#include "engine.h"

namespace fastgen {
namespace {

const ValueShape& shape_of(const Plan& plan, int value, const std::string& label) {
  require(value >= 0 && value < static_cast<int>(plan.values.size()), label + ": unknown value");
  const ValueShape& shape = plan.values[value].shape;
  require(shape.dtype == kFloat32, label + ": values must be float32");
  return shape;
}

// Everything with pending arithmetic or views that no convolution reads.
class Copy final : public Step {
 public:
  Copy(const std::string& label, const Source& source, int out)
      : Step(label), source_(source), out_(out) {}

  void plan(const Plan& plan, const std::vector<Slot>& slots, const Kernels&, int,
            StepPlan* out) const override {
    check_source(plan, slots, source_, label);
    const ValueShape& from = plan.values[source_.value].shape;
    const ValueShape& to = shape_of(plan, out_, label);
    int64_t height, width;
    source_size(plan, source_, &height, &width);
    require(
        from.n == to.n && from.c == to.c && height == to.h && width == to.w && source_.store < 0,
        label + ": output has the wrong shape");
    fill_maps(plan, source_, 0, height, 0, width, 0, &out->maps);
    const int64_t row_floats = std::max<int64_t>(1, width * blocks_of(to.c) * kBlock);
    out->tile_rows = std::clamp<int64_t>(64 * 1024 / row_floats, 1, height);
    out->tiles_y = ceil_div(height, out->tile_rows);
  }

  void run(const Context& c) const override {
    const Value& out = c.value(out_);
    const StepPlan& p = *c.step;
    c.pool->run(out.shape.n * p.tiles_y, [&](int64_t item, int) {
      const int64_t image = item / p.tiles_y, y = item % p.tiles_y * p.tile_rows;
      PackArgs a = source_args(c, source_, image);
      a.rows = static_cast<int>(std::min(p.tile_rows, out.shape.h - y));
      a.cols = static_cast<int>(out.shape.w);
      a.src_y = p.maps.src_y.data() + y;
      a.src_x = p.maps.src_x.data();
      if (a.combine) a.res_y = p.maps.res_y.data() + y, a.res_x = p.maps.res_x.data();
      a.format = out.shape.planar ? kPanelPlanar : kPanel16;
      a.dst = c.data(out_) + image * out.image + y * out.row;
      a.dst_block = out.block;
      a.dst_row = out.row;
      c.isa->pack(a);
    });
  }

 private:
  Source source_;
  int out_;
};

// Instance statistics of a stored value.
class Stats final : public Step {
 public:
  Stats(const std::string& label, int value, NormSpec norm)
      : Step(label), value_(value), norm_(std::move(norm)) {}

  void plan(const Plan& plan, const std::vector<Slot>& slots, const Kernels&, int,
            StepPlan* out) const override {
    const ValueShape& v = shape_of(plan, value_, label);
    require(norm_.slot >= 0 && !v.planar, label + ": statistics need a blocked value");
    check_norm(slots, norm_, v.c, label);
    require(plan.slot_images[norm_.slot] == v.n, label + ": statistics do not fit the value");
    out->chunks = ceil_div(v.h * v.w, kPart);
    out->stats_floats = v.n * blocks_of(v.c) * out->chunks * 3 * kBlock;
  }

  void run(const Context& c) const override {
    const Value& v = c.value(value_);
    const int64_t parts = c.step->chunks, pixels = v.shape.h * v.shape.w;
    const int64_t planes = v.shape.n * blocks_of(v.shape.c), blocks = blocks_of(v.shape.c);
    c.pool->run(planes * parts, [&](int64_t item, int) {
      const int64_t plane = item / parts, part = item % parts;
      c.isa->moments(c.data(value_) + plane * v.block + part * kPart * kBlock,
                     std::min(kPart, pixels - part * kPart), c.stats + item * 3 * kBlock);
    });
    std::vector<int64_t> counts(parts, kPart);
    counts.back() = pixels - (parts - 1) * kPart;
    c.pool->run(planes, [&](int64_t plane, int) {
      const int64_t image = plane / blocks, first = plane % blocks * kBlock;
      write_norm(norm_, first, kBlock, c.stats + plane * parts * 3 * kBlock, 3 * kBlock,
                 counts.data(), parts, c.scale(norm_.slot, image) + first,
                 c.shift(norm_.slot, image) + first);
    });
  }

 private:
  static constexpr int64_t kPart = 2048;  // pixels whose float sums stay exact enough
  int value_;
  NormSpec norm_;
};

// Scale and shift from statistics that are values themselves.
class Given final : public Step {
 public:
  Given(const std::string& label, int mean, int var, NormSpec norm)
      : Step(label), mean_(mean), var_(var), norm_(std::move(norm)) {}

  void plan(const Plan& plan, const std::vector<Slot>& slots, const Kernels&, int,
            StepPlan*) const override {
    const ValueShape& m = shape_of(plan, mean_, label);
    const ValueShape& v = shape_of(plan, var_, label);
    require(norm_.slot >= 0 && !m.planar && !v.planar && m.n == v.n && m.c == v.c && m.h == 1 &&
                m.w == 1 && v.h == 1 && v.w == 1,
            label + ": mean and variance must be (N,C)");
    check_norm(slots, norm_, m.c, label);
    require(plan.slot_images[norm_.slot] == m.n, label + ": statistics do not fit the value");
  }

  void run(const Context& c) const override {
    const Value& m = c.value(mean_);
    const Value& v = c.value(var_);
    for (int64_t n = 0; n < m.shape.n; ++n) {
      // Shift follows scale; what lies behind their last channels must be a number, too.
      std::fill_n(c.scale(norm_.slot, n), 2 * c.plan->slot_padded[norm_.slot], 0.0f);
      for (int64_t i = 0; i < m.shape.c; ++i) {
        double s = 1.0 / std::sqrt(double{c.data(var_)[n * v.image + i]} + double{norm_.eps});
        if (!norm_.weight.empty()) s *= norm_.weight[i];
        const double b = norm_.bias.empty() ? 0.0 : norm_.bias[i];
        c.scale(norm_.slot, n)[i] = static_cast<float>(s);
        c.shift(norm_.slot, n)[i] = static_cast<float>(b - c.data(mean_)[n * m.image + i] * s);
      }
    }
  }

 private:
  int mean_, var_;
  NormSpec norm_;
};

class Pooling final : public Step {
 public:
  Pooling(const std::string& label, int value, int out, const PoolSpec& spec)
      : Step(label), value_(value), out_(out), spec_(spec) {
    require(spec.kind >= 0 && spec.kind <= 2 && spec.kernel >= 1 && spec.stride >= 1 &&
                spec.padding >= 0 && 2 * spec.padding <= std::max(spec.kernel, 1),
            label + ": pooling is out of range");
  }

  void plan(const Plan& plan, const std::vector<Slot>&, const Kernels&, int,
            StepPlan*) const override {
    const ValueShape& in = shape_of(plan, value_, label);
    const ValueShape& out = shape_of(plan, out_, label);
    const auto side = [&](int64_t s) {
      return spec_.kind == 2 ? 1 : (s + 2 * spec_.padding - spec_.kernel) / spec_.stride + 1;
    };
    require(!in.planar && !out.planar && in.n == out.n && in.c == out.c && out.h == side(in.h) &&
                out.w == side(in.w),
            label + ": output has the wrong shape");
  }

  void run(const Context& c) const override {
    const Value& in = c.value(value_);
    const Value& out = c.value(out_);
    const int64_t planes = in.shape.n * blocks_of(in.shape.c);
    if (spec_.kind == 2) return global(c, in, planes);
    c.pool->run(planes * out.shape.h, [&](int64_t item, int) {
      const int64_t plane = item / out.shape.h, y = item % out.shape.h;
      for (int64_t x = 0; x < out.shape.w; ++x)
        window(c.data(value_) + plane * in.block, in, y, x,
               c.data(out_) + plane * out.block + y * out.row + x * kBlock);
    });
  }

 private:
  void window(const float* plane, const Value& in, int64_t y, int64_t x, float* to) const {
    const int64_t top = y * spec_.stride - spec_.padding, left = x * spec_.stride - spec_.padding;
    const int64_t y0 = std::max<int64_t>(top, 0), y1 = std::min(top + spec_.kernel, in.shape.h);
    const int64_t x0 = std::max<int64_t>(left, 0), x1 = std::min(left + spec_.kernel, in.shape.w);
    const bool max = spec_.kind == 0;
    float acc[kBlock];
    std::fill_n(acc, kBlock, max ? -std::numeric_limits<float>::infinity() : 0.0f);
    for (int64_t r = y0; r < y1; ++r)
      for (int64_t q = x0; q < x1; ++q) {
        const float* from = plane + r * in.row + q * kBlock;
        for (int i = 0; i < kBlock; ++i) {
          if (!max) {
            acc[i] += from[i];
          } else if (from[i] > acc[i] || from[i] != from[i]) {  // NaN passes through, and stays
            acc[i] = from[i];
          }
        }
      }
    const float share =
        max ? 1.0f : 1.0f / static_cast<float>(std::max<int64_t>(1, (y1 - y0) * (x1 - x0)));
    for (int i = 0; i < kBlock; ++i) to[i] = acc[i] * share;
  }

  void global(const Context& c, const Value& in, int64_t planes) const {
    const Value& out = c.value(out_);
    const int64_t pixels = in.shape.h * in.shape.w;
    c.pool->run(planes, [&](int64_t plane, int) {
      double total[kBlock] = {};
      const float* from = c.data(value_) + plane * in.block;
      for (int64_t p = 0; p < pixels; ++p)
        for (int i = 0; i < kBlock; ++i) total[i] += from[p * kBlock + i];
      for (int i = 0; i < kBlock; ++i)
        c.data(out_)[plane * out.block + i] =
            static_cast<float>(total[i] / static_cast<double>(pixels));
    });
  }

  int value_, out_;
  PoolSpec spec_;
};

class Concat final : public Step {
 public:
  Concat(const std::string& label, std::vector<int> values, int out)
      : Step(label), values_(std::move(values)), out_(out) {}

  void plan(const Plan& plan, const std::vector<Slot>&, const Kernels&, int,
            StepPlan*) const override {
    const ValueShape& out = shape_of(plan, out_, label);
    int64_t channels = 0;
    for (int value : values_) {
      const ValueShape& v = shape_of(plan, value, label);
      require(!v.planar && v.n == out.n && v.h == out.h && v.w == out.w,
              label + ": operands have different shapes");
      channels += v.c;
    }
    require(!out.planar && channels == out.c, label + ": output has the wrong shape");
  }

  void run(const Context& c) const override {
    const Value& out = c.value(out_);
    c.pool->run(out.shape.n * out.shape.h, [&](int64_t item, int) {
      const int64_t n = item / out.shape.h, y = item % out.shape.h;
      int64_t first = 0;
      for (int value : values_) {
        const Value& v = c.value(value);
        const float* from = c.data(value) + n * v.image + y * v.row;
        float* to = c.data(out_) + n * out.image + y * out.row;
        for (int64_t channel = 0; channel < v.shape.c;) {
          const int64_t at = first + channel, run = run_length(channel, at, v.shape.c);
          const float* source = from + channel / kBlock * v.block + channel % kBlock;
          float* target = to + at / kBlock * out.block + at % kBlock;
          for (int64_t x = 0; x < out.shape.w; ++x)
            std::copy_n(source + x * kBlock, run, target + x * kBlock);
          channel += run;
        }
        first += v.shape.c;
      }
    });
  }

 private:
  // Channels that stay within one block on both sides.
  static int64_t run_length(int64_t from, int64_t to, int64_t end) {
    return std::min({kBlock - from % kBlock, kBlock - to % kBlock, end - from});
  }

  std::vector<int> values_;
  int out_;
};

class Broadcast final : public Step {
 public:
  Broadcast(const std::string& label, int value, int out) : Step(label), value_(value), out_(out) {}

  void plan(const Plan& plan, const std::vector<Slot>&, const Kernels&, int,
            StepPlan*) const override {
    const ValueShape& in = shape_of(plan, value_, label);
    const ValueShape& out = shape_of(plan, out_, label);
    require(!in.planar && !out.planar && in.n == out.n && in.c == out.c && in.h == 1 && in.w == 1,
            label + ": output has the wrong shape");
  }

  void run(const Context& c) const override {
    const Value& out = c.value(out_);
    const int64_t blocks = blocks_of(out.shape.c);
    c.pool->run(out.shape.n * blocks * out.shape.h, [&](int64_t item, int) {
      const float* from = c.data(value_) + item / out.shape.h * kBlock;
      float* to = c.data(out_) + item * out.row;
      for (int64_t x = 0; x < out.shape.w; ++x) std::copy_n(from, kBlock, to + x * kBlock);
    });
  }

 private:
  int value_, out_;
};

// Another shape of the same numbers in (C,H,W) order.
class Reshape final : public Step {
 public:
  Reshape(const std::string& label, int value, int out) : Step(label), value_(value), out_(out) {}

  void plan(const Plan& plan, const std::vector<Slot>&, const Kernels&, int,
            StepPlan*) const override {
    const ValueShape& in = shape_of(plan, value_, label);
    const ValueShape& out = shape_of(plan, out_, label);
    require(
        !in.planar && !out.planar && in.n == out.n && in.c * in.h * in.w == out.c * out.h * out.w,
        label + ": output has the wrong shape");
  }

  void run(const Context& c) const override {
    const Value& in = c.value(value_);
    const Value& out = c.value(out_);
    const int64_t plane_in = in.shape.h * in.shape.w, plane_out = out.shape.h * out.shape.w;
    c.pool->run(out.shape.n * blocks_of(out.shape.c), [&](int64_t item, int) {
      const int64_t n = item / blocks_of(out.shape.c), b = item % blocks_of(out.shape.c);
      float* to = c.data(out_) + item * out.block;
      for (int64_t p = 0; p < plane_out; ++p)
        for (int64_t i = 0; i < kBlock; ++i) {
          const int64_t channel = b * kBlock + i;
          float value = 0;
          if (channel < out.shape.c) {
            const int64_t flat = channel * plane_out + p, source = flat / plane_in;
            value = c.data(value_)[n * in.image + source / kBlock * in.block +
                                   flat % plane_in * kBlock + source % kBlock];
          }
          to[p * kBlock + i] = value;
        }
    });
  }

 private:
  int value_, out_;
};

}  // namespace

std::unique_ptr<Step> make_copy(const std::string& label, const Source& source, int out) {
  return std::make_unique<Copy>(label, source, out);
}
std::unique_ptr<Step> make_stats(const std::string& label, int value, NormSpec norm) {
  return std::make_unique<Stats>(label, value, std::move(norm));
}
std::unique_ptr<Step> make_given(const std::string& label, int mean, int var, NormSpec norm) {
  return std::make_unique<Given>(label, mean, var, std::move(norm));
}
std::unique_ptr<Step> make_pool(const std::string& label, int value, int out,
                                const PoolSpec& spec) {
  return std::make_unique<Pooling>(label, value, out, spec);
}
std::unique_ptr<Step> make_concat(const std::string& label, std::vector<int> values, int out) {
  return std::make_unique<Concat>(label, std::move(values), out);
}
std::unique_ptr<Step> make_broadcast(const std::string& label, int value, int out) {
  return std::make_unique<Broadcast>(label, value, out);
}
std::unique_ptr<Step> make_reshape(const std::string& label, int value, int out) {
  return std::make_unique<Reshape>(label, value, out);
}

}  // namespace fastgen
