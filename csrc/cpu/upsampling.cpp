// Convolutions behind nearest upsampling.
#include "conv.h"

namespace fastgen {

// Nearest x2, then 3x3: four 2x2 convolutions of the small map, one for each output parity.
// An even row reads the small rows (i-1, i, i), an odd one (i, i, i+1); taps that meet the same row
// add up. Reflection of the large map by one pixel repeats the small map's border.
void Conv::split_upsampling() {
  std::vector<ViewOp>& views = spec_.source.views;
  if (views.empty() || views.back().kind != ViewOp::kUpsample || views.back().left != 2 ||
      spec_.phases.size() != 1 || spec_.stride != 1 || spec_.out_stride != 1 || spec_.small)
    return;
  const PhaseSpec whole = std::move(spec_.phases[0]);
  if (whole.kh != 3 || whole.kw != 3 || whole.dy != -1 || whole.dx != -1) {
    spec_.phases[0] = whole;
    return;
  }
  spec_.phases.clear();
  for (int ry = 0; ry < 2; ++ry)
    for (int rx = 0; rx < 2; ++rx) {
      PhaseSpec part{2, 2, ry - 1, rx - 1, ry, rx, {}};
      part.weights.resize(whole.weights.size() / 9 * 4);
      for (size_t channel = 0; channel < whole.weights.size() / 9; ++channel) {
        double sums[2][2] = {};
        for (int y = 0; y < 3; ++y)
          for (int x = 0; x < 3; ++x)
            sums[(y + 1 - ry) / 2][(x + 1 - rx) / 2] +=
                double{whole.weights[channel * 9 + y * 3 + x]};
        for (int tap = 0; tap < 4; ++tap)
          part.weights[channel * 4 + tap] = static_cast<float>(sums[tap / 2][tap % 2]);
      }
      spec_.phases.push_back(std::move(part));
    }
  views.pop_back();
  spec_.out_stride = 2;
  if (spec_.pad_mode == 1) spec_.pad_mode = 2;
}

}  // namespace fastgen
