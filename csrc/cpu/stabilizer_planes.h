// Pictures and tables of the stabilizer.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "stabilizer_kernels.h"

namespace fastgen {

constexpr int kPad = 16;     // repeated pixels around each level: patches may leave by this much
constexpr int kPhases = 32;  // of the cubic kernel in a pixel

inline int half(int64_t size) { return static_cast<int>((size + 1) / 2); }

// The cubic kernel at each phase, times 64, with an exact sum.
struct Cubic {
  int16_t taps[kPhases][4];

  Cubic() {
    for (int p = 0; p < kPhases; ++p) {
      const double t = static_cast<double>(p) / kPhases, s = 1 - t;
      const double exact[4] = {-0.5 * t * s * s, 1 + t * t * (1.5 * t - 2.5),
                               1 + s * s * (1.5 * s - 2.5), -0.5 * s * t * t};
      int sum = 0;
      for (int i = 0; i < 4; ++i) {
        taps[p][i] = static_cast<int16_t>(std::lround(64 * exact[i]));
        sum += taps[p][i];
      }
      taps[p][t < 0.5 ? 1 : 2] = static_cast<int16_t>(taps[p][t < 0.5 ? 1 : 2] + 64 - sum);
    }
  }
};

inline const Cubic& cubic() {
  static const Cubic table;
  return table;
}

// A gray picture with its border repeated.
struct Plane {
  int width = 0, height = 0;
  int64_t row = 0;
  std::vector<uint8_t> data;

  void resize(int w, int h) {
    width = w, height = h;
    // A patch at the last pixel reaches behind it by its own size.
    row = (w + 2 * kPad + kFlowPatch + 63) / 64 * 64;
    data.assign(static_cast<size_t>(row) * (h + 2 * kPad + kFlowPatch) + 64, 0);
  }
  uint8_t* at(int x, int y) { return data.data() + (y + kPad) * row + x + kPad; }
  const uint8_t* at(int x, int y) const { return const_cast<Plane*>(this)->at(x, y); }
  void pad_row(int y) {
    uint8_t* p = at(0, y);
    std::memset(p - kPad, p[0], kPad);
    std::memset(p + width, p[width - 1], row - kPad - width);
  }
  void pad_rows() {
    for (int y = 1; y <= kPad; ++y) std::memcpy(at(-kPad, -y), at(-kPad, 0), row);
    for (int y = 0; y < kPad + kFlowPatch; ++y)
      std::memcpy(at(-kPad, height + y), at(-kPad, height - 1), row);
  }
};

struct Grid {
  int columns = 0, rows = 0;
  std::vector<FlowVector> now, before;

  void resize(const Plane& plane) {
    columns = (plane.width + kFlowPatch - 1) / kFlowPatch;
    rows = (plane.height + kFlowPatch - 1) / kFlowPatch;
    now.assign(static_cast<size_t>(columns) * rows, FlowVector{});
    before = now;
  }
};

}  // namespace fastgen
