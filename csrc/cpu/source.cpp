// Reading a value through its pending epilogue: index maps, arguments, statistics.
#include <algorithm>
#include <cmath>

#include "engine.h"

namespace fastgen {
namespace {

constexpr int64_t kMaxSide = int64_t{1} << 24;

// Position q of an axis of `size`, continued outside by the mode; -1 is zero.
int64_t pad_index(int64_t q, int64_t size, int mode) {
  if (q >= 0 && q < size) return q;
  if (mode == 0) return -1;
  if (mode == 2 || size == 1) return std::clamp<int64_t>(q, 0, size - 1);
  const int64_t period = 2 * (size - 1);
  q %= period;
  if (q < 0) q += period;
  return std::min(q, period - q);
}

struct AxisOp {
  int kind;
  int64_t before, size;  // size: of the axis that this op reads
};

std::vector<AxisOp> axis_ops(const std::vector<ViewOp>& views, bool vertical, int64_t* size) {
  std::vector<AxisOp> ops;
  for (const ViewOp& view : views) {
    const int64_t before = vertical ? view.top : view.left;
    const int64_t after = vertical ? view.bottom : view.right;
    require(before >= 0 && before <= kMaxSide && after >= 0 && after <= kMaxSide,
            "a view's size is out of range");
    switch (view.kind) {
      case ViewOp::kUpsample:
        require(view.left >= 1 && view.left <= 64, "upsampling factor is out of range");
        ops.push_back({view.kind, view.left, *size});
        *size *= view.left;
        break;
      case ViewOp::kCrop:
        ops.push_back({view.kind, before, *size});
        *size -= before + after;
        break;
      case ViewOp::kPadZeros:
      case ViewOp::kPadReflect:
        ops.push_back({view.kind, before, *size});
        *size += before + after;
        break;
      default:
        fail("unknown view");
    }
    require(*size >= 1 && *size <= kMaxSide, "a view's size is out of range");
  }
  return ops;
}

int64_t through(const std::vector<AxisOp>& ops, int64_t q) {
  for (auto op = ops.rbegin(); op != ops.rend() && q >= 0; ++op) {
    if (op->kind == ViewOp::kUpsample) {
      q /= op->before;
    } else if (op->kind == ViewOp::kCrop) {
      q += op->before;
    } else {
      q = pad_index(q - op->before, op->size, op->kind == ViewOp::kPadReflect ? 1 : 0);
    }
  }
  return q;
}

void fill_axis(int64_t size, const std::vector<ViewOp>& views, bool vertical, int64_t first,
               int64_t count, int pad_mode, std::vector<int32_t>* map) {
  const std::vector<AxisOp> ops = axis_ops(views, vertical, &size);
  map->resize(count);
  for (int64_t i = 0; i < count; ++i)
    (*map)[i] = static_cast<int32_t>(through(ops, pad_index(first + i, size, pad_mode)));
}

}  // namespace

void source_size(const Plan& plan, const Source& source, int64_t* height, int64_t* width) {
  const ValueShape& shape = plan.values[source.value].shape;
  *height = shape.h;
  *width = shape.w;
  axis_ops(source.views, true, height);
  axis_ops(source.views, false, width);
}

void check_source(const Plan& plan, const std::vector<Slot>& slots, const Source& source,
                  const std::string& label) {
  const auto known = [&](int v) { return v >= 0 && v < static_cast<int>(plan.values.size()); };
  require(known(source.value), label + ": unknown value");
  const ValueShape& shape = plan.values[source.value].shape;
  require(!shape.dense, label + ": reads a dense value");
  int64_t height, width;
  source_size(plan, source, &height, &width);
  if (source.slot >= 0) {
    require(source.slot < static_cast<int>(slots.size()) &&
                slots[source.slot].channels == shape.c && plan.slot_images[source.slot] == shape.n,
            label + ": statistics do not fit the value");
  }
  if (source.combine != kCombineNone) {
    require(known(source.residual), label + ": unknown residual");
    const ValueShape& other = plan.values[source.residual].shape;
    int64_t h = other.h, w = other.w;
    for (const ViewOp& view : source.residual_views)  // a position without a source is all zero
      require(view.kind != ViewOp::kPadZeros, label + ": the residual cannot be padded with zeros");
    axis_ops(source.residual_views, true, &h);
    axis_ops(source.residual_views, false, &w);
    // It is combined before the source's views.
    require(other.n == shape.n && other.c == shape.c && h == shape.h && w == shape.w,
            label + ": the residual has another shape");
    require(other.dtype == shape.dtype && !other.dense,
            label + ": the residual has another type or layout");
  }
  if (source.store >= 0) {
    require(known(source.store) && source.views.empty(), label + ": cannot store this source");
    const ValueShape& copy = plan.values[source.store].shape;
    require(copy.n == shape.n && copy.c == shape.c && copy.h == height && copy.w == width &&
                !copy.planar && !copy.dense,
            label + ": the stored copy has another shape");
  }
}

void fill_maps(Extent value, Extent residual, const Source& source, int64_t first_y, int64_t rows,
               int64_t first_x, int64_t columns, int pad_mode, Maps* maps) {
  fill_axis(value.h, source.views, true, first_y, rows, pad_mode, &maps->src_y);
  fill_axis(value.w, source.views, false, first_x, columns, pad_mode, &maps->src_x);
  maps->height = value.h;
  maps->width = value.w;
  axis_ops(source.views, true, &maps->height);
  axis_ops(source.views, false, &maps->width);
  if (source.combine == kCombineNone) return;
  // The residual is combined before the source's views: it goes through both lists.
  std::vector<ViewOp> views = source.residual_views;
  views.insert(views.end(), source.views.begin(), source.views.end());
  fill_axis(residual.h, views, true, first_y, rows, pad_mode, &maps->res_y);
  fill_axis(residual.w, views, false, first_x, columns, pad_mode, &maps->res_x);
}

void fill_maps(const Plan& plan, const Source& source, int64_t first_y, int64_t rows,
               int64_t first_x, int64_t columns, int pad_mode, Maps* maps) {
  const auto extent = [&](int value) {
    return Extent{plan.values[value].shape.h, plan.values[value].shape.w};
  };
  const Extent residual = source.combine == kCombineNone ? Extent{} : extent(source.residual);
  fill_maps(extent(source.value), residual, source, first_y, rows, first_x, columns, pad_mode,
            maps);
}

Flow::Rows reach(const std::vector<int32_t>& map, int64_t first, int64_t count) {
  Flow::Rows rows;
  const int64_t end = std::min<int64_t>(first + count, static_cast<int64_t>(map.size()));
  for (int64_t i = first; i < end; ++i) {
    const int64_t y = map[i];
    if (y < 0) continue;
    rows = rows.last ? Flow::Rows{std::min(rows.first, y), std::max(rows.last, y + 1)}
                     : Flow::Rows{y, y + 1};
  }
  return rows;
}

void source_flow(const Source& source, const Maps& maps, int64_t units, int64_t step, int64_t count,
                 Flow* out) {
  if (source.slot >= 0) out->slots.push_back(source.slot);
  const auto read = [&](int value, const std::vector<int32_t>& map) {
    out->reads.push_back({value, {}, 1});
    for (int64_t u = 0; u < units; ++u)
      out->reads.back().rows.push_back(reach(map, u * step, count));
  };
  read(source.value, maps.src_y);
  if (source.combine != kCombineNone) read(source.residual, maps.res_y);
}

void locate_source(const Plan& plan, const Source& source, Maps* maps) {
  const auto locate = [&](int value, std::vector<int32_t>* map) {
    const Value& v = plan.values[value];
    if (v.rows == kAllRows) return;
    for (int32_t& y : *map)
      if (y >= 0) y = static_cast<int32_t>(v.place(y));
  };
  locate(source.value, &maps->src_y);
  if (source.combine != kCombineNone) locate(source.residual, &maps->res_y);
  if (source.store >= 0) locate(source.store, &maps->store_y);
}

Flow::Reading read_all(const Plan& plan, int value) {
  const int64_t rows = plan.values[value].shape.h;
  return {value, {{0, rows}}, rows};
}

void Step::locate(const Plan&, StepPlan*) const {}

PackArgs source_args(const Context& context, const Source& source, int64_t image) {
  PackArgs a{};
  const Value& value = context.value(source.value);
  const auto view = [image](const Value& v, const float* data) {
    const int64_t bytes = image * v.image * element_bytes(v.shape.dtype);
    return View{reinterpret_cast<const char*>(data) + bytes, v.block, v.row, v.pixel,
                v.shape.planar ? 1 : 0};
  };
  a.dtype = value.shape.dtype;
  a.src = view(value, context.data(source.value));
  if (source.slot >= 0) {
    a.scale = context.scale(source.slot, image);
    a.shift = context.shift(source.slot, image);
  }
  a.pre = source.pre;
  a.pre_slope = source.pre_slope;
  a.combine = source.combine;
  if (source.combine != kCombineNone)
    a.res = view(context.value(source.residual), context.data(source.residual));
  a.post = source.post;
  a.post_slope = source.post_slope;
  a.channels = static_cast<int>(value.shape.c);
  return a;
}

void check_norm(const std::vector<Slot>& slots, const NormSpec& norm, int64_t channels,
                const std::string& label) {
  if (norm.slot < 0) return;
  require(norm.slot < static_cast<int>(slots.size()) && slots[norm.slot].channels == channels,
          label + ": statistics do not fit the value");
  for (const std::vector<float>* v : {&norm.weight, &norm.bias})
    require(v->empty() || static_cast<int64_t>(v->size()) == channels,
            label + ": norm weights do not fit the value");
}

void write_norm(const NormSpec& norm, int64_t first, int64_t channels, const float* stats,
                int64_t part_stride, const int64_t* counts, int64_t parts, const NormTarget& to) {
  // Merges triples of (count, mean, sum of squared deviations) in double.
  double mean[kBlock] = {}, m2[kBlock] = {}, count = 0;
  for (int64_t t = 0; t < parts; ++t, stats += part_stride) {
    const double k = static_cast<double>(counts[t]);
    if (k == 0) continue;
    const double total = count + k, share = k / total, cross = count * share;
    for (int c = 0; c < kBlock; ++c) {
      const double delta = double{stats[c]} + double{stats[kBlock + c]} - mean[c];
      mean[c] += delta * share;
      m2[c] += stats[2 * kBlock + c] + delta * delta * cross;
    }
    count = total;
  }
  for (int64_t c = 0; c < channels; ++c) {
    const double variance = std::max(m2[c], 0.0) / count;
    put_norm(norm, first + c, mean[c], variance, to.scale + c, to.shift + c);
    if (to.mean) to.mean[c] = static_cast<float>(mean[c]);
    if (to.variance) to.variance[c] = static_cast<float>(variance);
  }
}

void put_norm(const NormSpec& norm, int64_t channel, double mean, double variance, float* scale,
              float* shift) {
  const size_t c = channel;
  double s = 1.0 / std::sqrt(variance + static_cast<double>(norm.eps));
  if (c < norm.weight.size()) s *= norm.weight[c];
  const double b = c < norm.bias.size() ? norm.bias[c] : 0.0;
  *scale = static_cast<float>(s);
  *shift = static_cast<float>(b - mean * s);
}

void geometry(int channels, int format, int64_t span_y, int64_t span_x, int stride, int64_t items,
              int most_pixels, int threads, int64_t bytes, StepPlan* out) {
  // The panel shares a 1 MiB (or larger) second-level cache with the weights; the kernel for few
  // outputs has next to none, and gains from tall tiles because its windows overlap most.
  const bool planar = format == kPanelPlanar;
  const int64_t most_bytes = (planar ? 576 : 320) * 1024;
  const int64_t per_pixel = bytes * (format == kPanel16 ? blocks_of(channels) * kBlock : channels);
  const int64_t height = out->domain_rows, width = out->domain_columns;
  const auto panel = [&](int64_t rows, int64_t columns) {
    return ((rows - 1) * stride + span_y) * ((columns - 1) * stride + span_x) * per_pixel;
  };
  // Enough tiles for an even split. The number does not depend on the threads up to 8 of them, so
  // that statistics, which are summed tile by tile, are the same for any such number.
  const int64_t wanted = planar ? 8 * threads : std::max<int64_t>(32, 4 * threads);
  const int64_t least = std::max<int64_t>(2, span_y - 1);
  // As many strips as make the windows overlap least; a few per cent are not worth a strip.
  double best = 0;
  bool fits = false;
  for (int64_t strips = 1;; ++strips) {
    int64_t columns = ceil_div(width, strips);
    if (strips > 1) columns = std::min(width, ceil_div(columns, most_pixels) * most_pixels);
    const int64_t across = ceil_div(width, columns);
    int64_t rows = 1;
    while (rows < height && rows < 64 && panel(rows + 1, columns) <= most_bytes) ++rows;
    while (rows > least && items * across * ceil_div(height, rows) < wanted) --rows;
    rows = ceil_div(height, ceil_div(height, rows));
    const double loaded =
        static_cast<double>(panel(rows, columns)) / static_cast<double>(rows * columns);
    if (!fits || loaded < best * 0.97) {
      best = loaded;
      fits = panel(rows, columns) <= most_bytes;
      out->tile_columns = columns;
      out->tiles_x = across;
      out->tile_rows = rows;
      out->tiles_y = ceil_div(height, rows);
    }
    // Of few channels a window is packed in no time, but in rows, the longer the better.
    if (format == kPanel4 && fits) break;
    if (columns <= 2 * most_pixels || (fits && loaded > best * 1.05)) break;
  }
}

}  // namespace fastgen
