// Steps other than dense convolutions: copies, statistics, pooling, joins, grouped convolutions.
#include <algorithm>
#include <cmath>

#include "engine.h"

namespace fastgen {
namespace {

constexpr int64_t kRowFloats = 16 * 1024;  // of the rows that one unit joins

const ValueShape& shape_of(const Plan& plan, int value, const std::string& label) {
  require(value >= 0 && value < static_cast<int>(plan.values.size()), label + ": unknown value");
  const ValueShape& shape = plan.values[value].shape;
  require(shape.dtype == kFloat32 && !shape.dense, label + ": values must be float32 in blocks");
  return shape;
}

// Block `plane` of all images' blocks.
float* at(float* data, const Value& v, int64_t plane) {
  const int64_t blocks = blocks_of(v.shape.c);
  return data + plane / blocks * v.image + plane % blocks * v.block;
}

// A value of `height` rows whose units write `step` rows each.
Flow::Writing rows_ready(int value, int64_t units, int64_t step, int64_t height) {
  Flow::Writing writing{value, {}};
  for (int64_t u = 1; u <= units; ++u) writing.ready.push_back(std::min(u * step, height));
  return writing;
}

// Unit i reads rows [i*step, i*step + count) of a value.
Flow::Reading rows_read(const Plan& plan, int value, int64_t units, int64_t step, int64_t count) {
  const int64_t height = plan.values[value].shape.h;
  Flow::Reading reading{value, {}};
  for (int64_t u = 0; u < units; ++u)
    reading.rows.push_back({u * step, std::min(u * step + count, height)});
  return reading;
}

// A step that reads and writes everything at once.
void whole_flow(const Plan& plan, const std::vector<int>& reads, int out, Flow* flow) {
  for (int value : reads) flow->reads.push_back(read_all(plan, value));
  if (out >= 0) flow->writes.push_back({out, {plan.values[out].shape.h}});
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
    out->units = out->tiles_y;
  }

  void flow(const Plan& plan, const StepPlan& p, Flow* out) const override {
    source_flow(source_, p.maps, p.units, p.tile_rows, p.tile_rows, out);
    out->writes.push_back(rows_ready(out_, p.units, p.tile_rows, plan.values[out_].shape.h));
  }

  void locate(const Plan& plan, StepPlan* step) const override {
    locate_source(plan, source_, &step->maps);
  }

  void run(const Context& c) const override {
    const Value& out = c.value(out_);
    const StepPlan& p = *c.step;
    const int64_t units = c.last_unit - c.first_unit;
    c.pool->run(out.shape.n * units, [&](int64_t item, int) {
      const int64_t image = item / units, first = (c.first_unit + item % units) * p.tile_rows;
      const int64_t last = std::min(first + p.tile_rows, out.shape.h);
      PackArgs a = source_args(c, source_, image);
      a.cols = static_cast<int>(out.shape.w);
      a.src_x = p.maps.src_x.data();
      if (a.combine) a.res_x = p.maps.res_x.data();
      a.format = out.shape.planar ? kPanelPlanar : kPanel16;
      a.dst_block = out.block;
      a.dst_row = out.row;
      for (int64_t y = first; y < last; y += a.rows) {  // up to where memory starts again
        const int64_t place = out.place(y);
        a.rows = static_cast<int>(std::min(last - y, out.rows - place));
        a.src_y = p.maps.src_y.data() + y;
        if (a.combine) a.res_y = p.maps.res_y.data() + y;
        a.dst = c.data(out_) + image * out.image + place * out.row;
        c.isa->pack(a);
      }
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
    // A part is some rows, or a piece of one.
    out->tile_rows = std::clamp<int64_t>(kPart / v.w, 1, v.h);
    out->units = out->tiles_y = ceil_div(v.h, out->tile_rows);
    out->tiles_x = ceil_div(v.w, kPart);
    out->tile_columns = ceil_div(v.w, out->tiles_x);
    out->stats_floats = v.n * blocks_of(v.c) * out->tiles_y * out->tiles_x * 3 * kBlock;
  }

  void flow(const Plan& plan, const StepPlan& p, Flow* out) const override {
    out->reads.push_back(rows_read(plan, value_, p.units, p.tile_rows, p.tile_rows));
    out->reads.back().together = p.tile_rows;
    out->slot = norm_.slot;
    out->statistics = true;
  }

  bool only_statistics() const override { return true; }

  void run(const Context& c) const override {
    const Value& v = c.value(value_);
    const StepPlan& p = *c.step;
    const int64_t parts = p.tiles_y * p.tiles_x, units = c.last_unit - c.first_unit;
    const int64_t planes = v.shape.n * blocks_of(v.shape.c), blocks = blocks_of(v.shape.c);
    const auto count = [&](int64_t part) {
      const int64_t y = part / p.tiles_x * p.tile_rows, x = part % p.tiles_x * p.tile_columns;
      return std::min(p.tile_rows, v.shape.h - y) * std::min(p.tile_columns, v.shape.w - x);
    };
    c.pool->run(planes * units * p.tiles_x, [&](int64_t item, int) {
      const int64_t plane = item / (units * p.tiles_x);
      const int64_t part = c.first_unit * p.tiles_x + item % (units * p.tiles_x);
      const int64_t row = v.place(part / p.tiles_x * p.tile_rows);
      const float* from =
          at(c.data(value_), v, plane) + row * v.row + part % p.tiles_x * p.tile_columns * kBlock;
      c.isa->moments(from, count(part), c.stats + (plane * parts + part) * 3 * kBlock);
    });
    if (!c.complete()) return;
    std::vector<int64_t> counts;
    for (int64_t part = 0; part < parts; ++part) counts.push_back(count(part));
    c.pool->run(planes, [&](int64_t plane, int) {
      const int64_t image = plane / blocks, slot = norm_.slot;
      const NormTarget to{c.scale(slot, image), c.shift(slot, image), c.mean(slot, image),
                          c.variance(slot, image)};
      write_norm(norm_, plane % blocks * kBlock, kBlock, c.stats + plane * parts * 3 * kBlock,
                 3 * kBlock, counts.data(), parts, to.at(plane % blocks * kBlock));
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

  void flow(const Plan& plan, const StepPlan&, Flow* out) const override {
    whole_flow(plan, {mean_, var_}, -1, out);
    out->slot = norm_.slot;
  }

  void run(const Context& c) const override {
    const Value& m = c.value(mean_);
    const Value& v = c.value(var_);
    for (int64_t n = 0; n < m.shape.n; ++n) {
      // Shift follows scale; what lies behind their last channels must be a number, too.
      std::fill_n(c.scale(norm_.slot, n), 2 * c.plan->slot_padded[norm_.slot], 0.0f);
      for (int64_t i = 0; i < m.shape.c; ++i) {
        put_norm(norm_, i, double{c.data(mean_)[n * m.image + i]},
                 double{c.data(var_)[n * v.image + i]}, c.scale(norm_.slot, n) + i,
                 c.shift(norm_.slot, n) + i);
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
            StepPlan* step) const override {
    const ValueShape& in = shape_of(plan, value_, label);
    const ValueShape& out = shape_of(plan, out_, label);
    step->units = spec_.kind == 2 ? in.h : out.h;
    if (spec_.kind == 2)  // sums are double
      step->stats_floats = 2 * in.n * blocks_of(in.c) * kBlock;
    const auto side = [&](int64_t s) {
      return spec_.kind == 2 ? 1 : (s + 2 * spec_.padding - spec_.kernel) / spec_.stride + 1;
    };
    require(!in.planar && !out.planar && in.n == out.n && in.c == out.c && out.h == side(in.h) &&
                out.w == side(in.w),
            label + ": output has the wrong shape");
  }

  void flow(const Plan& plan, const StepPlan& p, Flow* out) const override {
    if (spec_.kind == 2) {
      out->reads.push_back(rows_read(plan, value_, p.units, 1, 1));
      out->writes.push_back({out_, std::vector<int64_t>(p.units, 0), true});
      out->writes[0].ready.back() = 1;
      return;
    }
    out->reads.push_back({value_, {}});
    for (int64_t y = 0; y < p.units; ++y) {
      const int64_t top = y * spec_.stride - spec_.padding, height = plan.values[value_].shape.h;
      const int64_t first = std::max<int64_t>(top, 0);
      const int64_t last = std::min<int64_t>(top + spec_.kernel, height);
      out->reads[0].rows.push_back(first < last ? Flow::Rows{first, last} : Flow::Rows{});
    }
    out->writes.push_back(rows_ready(out_, p.units, 1, p.units));
  }

  void run(const Context& c) const override {
    const Value& in = c.value(value_);
    const Value& out = c.value(out_);
    const int64_t planes = in.shape.n * blocks_of(in.shape.c);
    if (spec_.kind == 2) return global(c, in, planes);
    const int64_t units = c.last_unit - c.first_unit;
    const int64_t rows = std::clamp<int64_t>(kRowFloats / (in.shape.w * kBlock), 1, units);
    const int64_t parts = ceil_div(units, rows);
    c.pool->run(planes * parts, [&](int64_t item, int) {
      const int64_t plane = item / parts, first = c.first_unit + item % parts * rows;
      std::vector<const float*> lines(spec_.kernel);
      PoolArgs a{};
      a.rows = lines.data();
      a.width = in.shape.w;
      a.kernel = spec_.kernel;
      a.stride = spec_.stride;
      a.padding = spec_.padding;
      a.max = spec_.kind == 0;
      a.outputs = out.shape.w;
      for (int64_t y = first; y < std::min(first + rows, c.last_unit); ++y) {
        const int64_t top = y * spec_.stride - spec_.padding;
        a.count = 0;
        for (int64_t r = std::max<int64_t>(top, 0); r < std::min(top + spec_.kernel, in.shape.h);
             ++r)
          lines[a.count++] = at(c.data(value_), in, plane) + in.place(r) * in.row;
        a.out = at(c.data(out_), out, plane) + out.place(y) * out.row;
        c.isa->pool(a);
      }
    });
  }

 private:
  void global(const Context& c, const Value& in, int64_t planes) const {
    const Value& out = c.value(out_);
    const int64_t pixels = in.shape.h * in.shape.w;
    c.pool->run(planes, [&](int64_t plane, int) {
      double* total = reinterpret_cast<double*>(c.stats) + plane * kBlock;
      if (c.first_unit == 0) std::fill_n(total, kBlock, 0.0);
      for (int64_t y = c.first_unit; y < c.last_unit; ++y)
        c.isa->pool_sum(at(c.data(value_), in, plane) + in.place(y) * in.row, in.shape.w, total);
      if (!c.complete()) return;
      for (int i = 0; i < kBlock; ++i)
        at(c.data(out_), out, plane)[i] =
            static_cast<float>(total[i] / static_cast<double>(pixels));
    });
  }

  int value_, out_;
  PoolSpec spec_;
};

class Concat final : public Step {
 public:
  Concat(const std::string& label, std::vector<int> values, std::vector<int> first, int out)
      : Step(label), values_(std::move(values)), first_(std::move(first)), out_(out) {
    require(values_.size() == first_.size(), label + ": operands without a place");
  }

  void plan(const Plan& plan, const std::vector<Slot>&, const Kernels&, int,
            StepPlan* step) const override {
    const ValueShape& out = shape_of(plan, out_, label);
    step->tile_rows = std::clamp<int64_t>(kRowFloats / (out.w * kBlock), 1, out.h);
    step->units = ceil_div(out.h, step->tile_rows);
    for (size_t i = 0; i < values_.size(); ++i) {
      const ValueShape& v = shape_of(plan, values_[i], label);
      require(!v.planar && v.n == out.n && v.h == out.h && v.w == out.w,
              label + ": operands have different shapes");
      require(!out.planar && first_[i] >= 0 && first_[i] + v.c <= out.c,
              label + ": output has the wrong shape");
    }
  }

  void flow(const Plan& plan, const StepPlan& p, Flow* out) const override {
    const int64_t rows = p.tile_rows;
    for (int value : values_) out->reads.push_back(rows_read(plan, value, p.units, rows, rows));
    out->writes.push_back(rows_ready(out_, p.units, rows, plan.values[out_].shape.h));
  }

  void run(const Context& c) const override {
    const Value& out = c.value(out_);
    const int64_t units = c.last_unit - c.first_unit, height = c.step->tile_rows;
    c.pool->run(out.shape.n * units, [&](int64_t item, int) {
      const int64_t first = (c.first_unit + item % units) * height;
      const int64_t last = std::min(first + height, out.shape.h);
      for (int64_t y = first; y < last; ++y) row(c, item / units, y);
    });
  }

 private:
  void row(const Context& c, int64_t n, int64_t y) const {
    const Value& out = c.value(out_);
    for (size_t i = 0; i < values_.size(); ++i) {
      const Value& v = c.value(values_[i]);
      for (int64_t channel = 0; channel < v.shape.c;) {
        const int64_t at = first_[i] + channel, run = run_length(channel, at, v.shape.c);
        const float* from = c.data(values_[i]) + n * v.image + channel / kBlock * v.block +
                            v.place(y) * v.row + channel % kBlock;
        float* to = c.data(out_) + n * out.image + at / kBlock * out.block +
                    out.place(y) * out.row + at % kBlock;
        if (run == kBlock) {
          std::copy_n(from, out.shape.w * kBlock, to);
        } else {
          for (int64_t x = 0; x < out.shape.w * kBlock; x += kBlock)
            for (int64_t l = 0; l < run; ++l) to[x + l] = from[x + l];
        }
        channel += run;
      }
    }
  }

  // Channels that stay within one block on both sides.
  static int64_t run_length(int64_t from, int64_t to, int64_t end) {
    return std::min({kBlock - from % kBlock, kBlock - to % kBlock, end - from});
  }

  std::vector<int> values_, first_;
  int out_;
};

class Broadcast final : public Step {
 public:
  Broadcast(const std::string& label, int value, int out) : Step(label), value_(value), out_(out) {}

  void plan(const Plan& plan, const std::vector<Slot>&, const Kernels&, int,
            StepPlan* step) const override {
    const ValueShape& in = shape_of(plan, value_, label);
    const ValueShape& out = shape_of(plan, out_, label);
    step->units = out.h;
    require(!in.planar && !out.planar && in.n == out.n && in.c == out.c && in.h == 1 && in.w == 1,
            label + ": output has the wrong shape");
  }

  void flow(const Plan& plan, const StepPlan& p, Flow* out) const override {
    out->reads.push_back(rows_read(plan, value_, p.units, 0, 1));
    out->writes.push_back(rows_ready(out_, p.units, 1, p.units));
  }

  void run(const Context& c) const override {
    const Value& out = c.value(out_);
    const int64_t planes = out.shape.n * blocks_of(out.shape.c);
    const int64_t units = c.last_unit - c.first_unit;
    c.pool->run(planes * units, [&](int64_t item, int) {
      const int64_t plane = item / units, y = c.first_unit + item % units;
      const float* from = at(c.data(value_), c.value(value_), plane);
      float* to = at(c.data(out_), out, plane) + out.place(y) * out.row;
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

  void flow(const Plan& plan, const StepPlan&, Flow* out) const override {
    whole_flow(plan, {value_}, out_, out);
    out->writes[0].together = plan.values[out_].shape.h;
  }

  void run(const Context& c) const override {
    const Value& in = c.value(value_);
    const Value& out = c.value(out_);
    const int64_t plane_in = in.shape.h * in.shape.w, plane_out = out.shape.h * out.shape.w;
    c.pool->run(out.shape.n * blocks_of(out.shape.c), [&](int64_t item, int) {
      const int64_t n = item / blocks_of(out.shape.c), b = item % blocks_of(out.shape.c);
      float* to = at(c.data(out_), out, item);
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
std::unique_ptr<Step> make_concat(const std::string& label, std::vector<int> values,
                                  std::vector<int> first, int out) {
  return std::make_unique<Concat>(label, std::move(values), std::move(first), out);
}
std::unique_ptr<Step> make_broadcast(const std::string& label, int value, int out) {
  return std::make_unique<Broadcast>(label, value, out);
}
std::unique_ptr<Step> make_reshape(const std::string& label, int value, int out) {
  return std::make_unique<Reshape>(label, value, out);
}

}  // namespace fastgen
