// Convolutions whose products take bytes: unsigned activations, signed weights with a scale for
// each output, sums in int32.
//
// Input i is read as q = round(x*quant[i] + zero[i]), held to 0..255. With weights w/quant, rounded
// to whole multiples v of a scale s for each output, the sum over x*w is s * (sum over q*v - sum
// over zero*v): the kernels get s and what is left as a bias. Where no ranges are known beforehand,
// one quant and zero for all inputs come from the smallest and largest input of the image.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "conv.h"
#include "op_pool.h"

namespace fastgen {
namespace {

constexpr float kLargest = 127;  // weight
constexpr int64_t kMostProducts = (int64_t{1} << 31) / (255 * 127);

int32_t four_bytes(const int (&v)[4]) {
  uint32_t word = 0;
  for (int k = 0; k < 4; ++k) word |= static_cast<uint32_t>(v[k] & 255) << (8 * k);
  return static_cast<int32_t>(word);
}

}  // namespace

void Conv::check_int8() const {
  const std::string& l = spec_.label;
  require(spec_.quant.size() == spec_.zero.size() &&
              (spec_.quant.empty() || spec_.quant.size() == static_cast<size_t>(spec_.inputs)),
          l + ": activation ranges have the wrong size");
  for (const std::vector<float>* v : {&spec_.mean, &spec_.spread}) {
    require(v->size() == spec_.mean.size() && (v->empty() || v->size() == spec_.quant.size()),
            l + ": spreads have the wrong size");
    for (float x : *v) require(x >= 0 && x <= 255, l + ": mean or spread is not that of bytes");
  }
  for (float q : spec_.quant) require(q > 0 && q <= 1e30f, l + ": activation range is not finite");
  for (float z : spec_.zero) require(z >= 0 && z <= 255, l + ": activation zero is not a byte");
}

bool Conv::fits_int8() const {
  return !spec_.flat && std::all_of(spec_.phases.begin(), spec_.phases.end(), [&](const auto& p) {
    return int64_t{spec_.inputs} * p.kh * p.kw < kMostProducts;
  });
}

// Runs of neighbouring inputs in the panel, cut into fours (see MicroArgs and SmallInt8Args): the
// channels of a block for each tap; of few channels all taps of a row.
void Conv::pack_quads() {
  const bool few = format() == kPanel4;
  const int unit = spec_.small ? 4 : kBlock;
  const auto run = [&](const PhaseSpec& p, int64_t block) {
    return few ? p.kw * spec_.inputs
               : static_cast<int>(std::min<int64_t>(unit, spec_.inputs - block * unit));
  };
  const int64_t blocks = few ? 1 : ceil_div(spec_.inputs, unit);
  const auto lanes_of = [&](int nb) { return spec_.small ? spec_.outputs : nb * kBlock; };
  size_t total = 0;
  for (const PhaseSpec& p : spec_.phases) {
    Phase phase{p.kh, p.kw, p.dy, p.dx, p.ry, p.rx, total, {}};
    size_t fours = 0;
    for (int64_t b = 0; b < blocks; ++b) fours += ceil_div(run(p, b), 4);
    for (int nb : groups_) {
      phase.group.push_back(total);
      total += ceil_div(fours * p.kh * (few ? 1 : p.kw) * lanes_of(nb), kBlock) * kBlock;
    }
    phases_.push_back(std::move(phase));
  }
  weights_.resize(total);
  int8_scales_.resize(phase_scales(phases_.size()));
  int8_sums_.assign(phases_.size() * padded_outputs(), 0.0f);
  for (size_t i = 0; i < phases_.size(); ++i) {
    PhaseSpec& p = spec_.phases[i];
    const int taps = p.kh * p.kw;
    float* scales = int8_scales_.data() + phase_scales(i);
    std::vector<int8_t> rounded(p.weights.size());
    for (int64_t o = 0; o < spec_.outputs; ++o) {
      const auto folded = [&](int64_t k) {
        const double w = p.weights[o * spec_.inputs * taps + k];
        return spec_.quant.empty() ? w : w / spec_.quant[k / taps];
      };
      double largest = 0, sum = 0;
      for (int64_t k = 0; k < int64_t{spec_.inputs} * taps; ++k)
        largest = std::max(largest, std::abs(folded(k)));
      const double scale = largest / kLargest;
      for (int64_t k = 0; k < int64_t{spec_.inputs} * taps && scale > 0; ++k) {
        const double v = std::clamp(std::nearbyint(folded(k) / scale), -127.0, 127.0);
        rounded[o * spec_.inputs * taps + k] = static_cast<int8_t>(v);
        sum += spec_.quant.empty() ? v : v * spec_.zero[k / taps];
      }
      scales[o] = static_cast<float>(scale);
      int8_sums_[i * padded_outputs() + o] = static_cast<float>(sum);
    }
    const auto weight = [&](int64_t o, int64_t input, int y, int x) -> int {
      return o < spec_.outputs ? rounded[((o * spec_.inputs + input) * p.kh + y) * p.kw + x] : 0;
    };
    int64_t first = 0;
    for (size_t g = 0; g < groups_.size(); ++g) {
      float* to = weights_.data() + phases_[i].group[g];
      const int lanes = lanes_of(groups_[g]);
      for (int64_t b = 0; b < blocks; ++b)
        for (int y = 0; y < p.kh; ++y)
          for (int x = 0; x < (few ? std::min(p.kw, 1) : p.kw); ++x)
            for (int n = run(p, b), k = 0; k < n; k += 4)
              for (int lane = 0; lane < lanes; ++lane) {
                int bytes[4] = {};
                for (int v = k; v < std::min(k + 4, n); ++v)
                  bytes[v - k] = few ? weight(first + lane, v % spec_.inputs, y, v / spec_.inputs)
                                     : weight(first + lane, b * unit + v, y, x);
                const int32_t word = four_bytes(bytes);
                std::memcpy(to++, &word, sizeof(word));
              }
      first += lanes;
    }
    std::vector<float>().swap(p.weights);
  }
  if (!spec_.quant.empty()) write_scales(1, 1, int8_scales_.data());
}

// In place where `to` is int8_scales_.
void Conv::write_scales(float quant, float zero, float* to) const {
  for (int64_t i = 0; i < spec_.inputs; ++i) {
    to[i] = spec_.quant.empty() ? quant : spec_.quant[i];
    to[padded_inputs() + i] = spec_.quant.empty() ? zero : spec_.zero[i];
  }
  for (size_t p = 0; p < phases_.size(); ++p)
    for (int64_t o = 0; o < spec_.outputs; ++o) {
      const int64_t at = phase_scales(p) + o;
      const float scale = int8_scales_.data()[at] / quant;
      to[at] = scale;
      to[at + padded_outputs()] =
          bias_.data()[o] - scale * zero * int8_sums_[p * padded_outputs() + o];
    }
}

// The smallest and largest input of a tile's window, zero included.
void Conv::range(const ConvCall& c, int64_t item, float* panel, float* low, float* high) const {
  const StepPlan& p = *c.step;
  Tile t{};
  t.image = item / (p.tiles_y * p.tiles_x);
  t.row = item % (p.tiles_y * p.tiles_x) / p.tiles_x * p.tile_rows;
  t.column = item % p.tiles_x * p.tile_columns;
  t.rows = std::min(p.tile_rows, p.domain_rows - t.row);
  t.columns = std::min(p.tile_columns, p.domain_columns - t.column);
  PackArgs a = pack_args(c, t, panel, false);
  const bool planar = a.format == kPanelPlanar;
  const int pixel = planar ? 1 : panel_pixel();
  a.dst_row = planar ? (ceil_div(a.cols, kBlock) + 1) * kBlock : int64_t{a.cols} * pixel;
  a.dst_block = a.rows * a.dst_row;
  isa_->pack(a);
  const int64_t planes = planar ? spec_.inputs : blocks_of(spec_.inputs);
  const int used = std::min(pixel, spec_.inputs);  // behind them a block holds nothing
  float least = 0, most = 0;
  for (int64_t plane = 0; plane < planes; ++plane)
    for (int y = 0; y < a.rows; ++y) {
      const float* row = panel + plane * a.dst_block + y * a.dst_row;
      for (int64_t x = 0; x < int64_t{a.cols} * pixel; x += pixel)
        for (int k = 0; k < used; ++k) {
          least = row[x + k] < least ? row[x + k] : least;
          most = row[x + k] > most ? row[x + k] : most;
        }
    }
  *low = least;
  *high = most;
}

std::vector<float> Conv::frame_scales(const ConvCall& c) const {
  const StepPlan& p = *c.step;
  const int64_t tiles = p.tiles_y * p.tiles_x, images = spec_.flat ? 1 : c.shape->images;
  std::vector<float> low(images * tiles), high(images * tiles);
  const Pool::Job job = [&](int64_t item, int thread) {
    range(c, item, c.panels + thread * c.panel_stride, &low[item], &high[item]);
  };
  c.pool ? c.pool->run(images * tiles, job) : op_parallel(images * tiles, job);
  const int64_t stride = phase_scales(phases_.size());
  std::vector<float> scales(images * stride, 0.0f);
  for (int64_t n = 0; n < images; ++n) {
    const float least = *std::min_element(&low[n * tiles], &low[n * tiles] + tiles);
    const float most = *std::max_element(&high[n * tiles], &high[n * tiles] + tiles);
    float quant = 255.0f / (most - least), zero = std::nearbyint(-least * quant);
    if (!(quant >= 1e-30f && quant <= 1e30f)) quant = 1, zero = 0;  // all zero, or not finite
    write_scales(quant, zero, scales.data() + n * stride);
  }
  return scales;
}

void Conv::int8_pack_args(const ConvCall& c, int64_t image, PackArgs* a) const {
  if (a->format == kPanelPlanar) {
    a->dst_row = (ceil_div(a->cols, kBlock) + 1) * kBlock * 4;
    a->dst_block = a->rows * a->dst_row;
  }
  a->dst_pixel = kBlock;
  if (winograd_) {  // all channels of a pixel lie side by side
    a->dst_pixel = padded_inputs();
    a->dst_row = a->cols * a->dst_pixel;
    a->dst_block = kBlock;
  }
  if (!c.int8) return;  // the ranges are not known yet
  a->quant = c.int8 + image * c.int8_image;
  a->zero = a->quant + padded_inputs();
  a->line = static_cast<float*>(a->dst) + c.step->panel_floats - int8_line(*c.step);
}

void Conv::small_int8(const SmallArgs& s, const PackArgs& pack, int64_t row,
                      const float* scales) const {
  SmallInt8Args a{};
  a.panel = static_cast<const uint8_t*>(pack.dst) + row * pack.dst_row;
  a.weights = reinterpret_cast<const int32_t*>(s.weights);
  a.scale = scales + phase_scales(0);
  a.bias = a.scale + padded_outputs();
  a.panel_block = pack.dst_block;
  a.panel_row = pack.dst_row;
  a.blocks = static_cast<int>(ceil_div(spec_.inputs, 4));
  a.outputs = s.outputs;
  a.kh = s.kh;
  a.kw = s.kw;
  a.pixels = s.pixels;
  a.out = s.out;
  a.out_channel = s.out_channel;
  a.act = s.act;
  a.slope = s.slope;
  isa_->small_int8(a);
}

}  // namespace fastgen
