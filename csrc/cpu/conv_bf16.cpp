// Convolutions whose products take bfloat16 factors.
#include <cstring>

#include "conv.h"

namespace fastgen {
namespace {

uint32_t round_bf16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  if (x != x) return bits >> 16 | 0x40;
  return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

}  // namespace

float bf16_pair(float first, float second) {
  const uint32_t bits = round_bf16(first) | round_bf16(second) << 16;
  float pair;
  std::memcpy(&pair, &bits, sizeof(pair));
  return pair;
}

// Runs of neighbouring values in the panel, cut into pairs (see MicroArgs): the channels of a block
// for each tap; of few channels all taps of a row.
void Conv::pack_pairs() {
  if (spec_.small) return pack_small_pairs();
  const bool few = format() == kPanel4;
  const auto run = [&](const PhaseSpec& p, int64_t block) {
    return few ? p.kw * spec_.inputs
               : static_cast<int>(std::min<int64_t>(kBlock, spec_.inputs - block * kBlock));
  };
  const int64_t blocks = few ? 1 : blocks_of(spec_.inputs);
  size_t total = 0;
  for (const PhaseSpec& p : spec_.phases) {
    Phase phase{p.kh, p.kw, p.dy, p.dx, p.ry, p.rx, total, {}};
    size_t pairs = 0;
    for (int64_t b = 0; b < blocks; ++b) pairs += ceil_div(run(p, b), 2);
    for (int nb : groups_) {
      phase.group.push_back(total);
      total += pairs * p.kh * (few ? 1 : p.kw) * nb * kBlock;
    }
    phases_.push_back(std::move(phase));
  }
  weights_.resize(total);
  for (size_t i = 0; i < phases_.size(); ++i) {
    PhaseSpec& p = spec_.phases[i];
    const auto weight = [&](int64_t o, int64_t input, int y, int x) {
      return o < spec_.outputs ? p.weights[((o * spec_.inputs + input) * p.kh + y) * p.kw + x]
                               : 0.0f;
    };
    int64_t first = 0;
    for (size_t g = 0; g < groups_.size(); ++g) {
      float* to = weights_.data() + phases_[i].group[g];
      const int lanes = groups_[g] * kBlock;
      for (int64_t b = 0; b < blocks; ++b)
        for (int y = 0; y < p.kh; ++y)
          for (int x = 0; x < (few ? std::min(p.kw, 1) : p.kw); ++x)
            for (int n = run(p, b), k = 0; k < n; k += 2)
              for (int lane = 0; lane < lanes; ++lane) {
                const auto at = [&](int v) {
                  return few ? weight(first + lane, v % spec_.inputs, y, v / spec_.inputs)
                             : weight(first + lane, b * kBlock + v, y, x);
                };
                const bool odd = k + 1 == n && n > 1;  // with the one before it
                *to++ = bf16_pair(odd ? 0.0f : at(k), odd ? at(k) : k + 1 < n ? at(k + 1) : 0.0f);
              }
      first += lanes;
    }
    std::vector<float>().swap(p.weights);
  }
}

// The kernel for few outputs: [pair of inputs][ky][kx][outputs].
void Conv::pack_small_pairs() {
  const int64_t pairs = ceil_div(spec_.inputs, 2);
  size_t total = 0;
  for (const PhaseSpec& p : spec_.phases) {
    phases_.push_back({p.kh, p.kw, p.dy, p.dx, p.ry, p.rx, total, {total}});
    total += ceil_div(pairs * p.kh * p.kw * spec_.outputs, kBlock) * kBlock;
  }
  weights_.resize(total);
  for (size_t i = 0; i < phases_.size(); ++i) {
    PhaseSpec& p = spec_.phases[i];
    const int taps = p.kh * p.kw;
    const auto weight = [&](int64_t o, int64_t input, int tap) {
      return input < spec_.inputs ? p.weights[(o * spec_.inputs + input) * taps + tap] : 0.0f;
    };
    float* to = weights_.data() + phases_[i].weights;
    for (int64_t pair = 0; pair < pairs; ++pair)
      for (int tap = 0; tap < taps; ++tap)
        for (int64_t o = 0; o < spec_.outputs; ++o)
          *to++ = bf16_pair(weight(o, 2 * pair, tap), weight(o, 2 * pair + 1, tap));
    std::vector<float>().swap(p.weights);
  }
}

// Whether the input is a panel as it is: neighbouring channels in the type of the factors, one tap,
// no arithmetic on load, and of bfloat16 no single last channel, which is paired with what follows.
bool Conv::in_place(const ConvCall& c) const {
  const Source& s = spec_.source;
  return !int8_ && c.in.dtype == (bf16_ ? kBFloat16 : kFloat32) && !winograd_ && !c.in.planar &&
         format() == kPanel16 && phases_.size() == 1 && span_y_ == 1 && span_x_ == 1 &&
         low_y_ == 0 && low_x_ == 0 && s.views.empty() && s.pre == kActNone && s.post == kActNone &&
         !c.scale && !c.load_residual.data && !c.copy.data && c.in.rows == kAllRows &&
         (!bf16_ || spec_.inputs % kBlock != 1);
}

}  // namespace fastgen
