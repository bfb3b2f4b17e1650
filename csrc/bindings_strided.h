// What the bindings of the fused operations share.
#pragma once

#include <cstdint>

#include "fastgen.h"

namespace fastgen {

// Strides of a dense tensor in the order (n, h, w, c), `last`, or (n, c, h, w). Sizes that cannot
// be are refused later, so overflow does no harm.
inline void set_dense(Strided* s, bool last) {
  const auto times = [](int64_t a, int64_t b) {
    return static_cast<int64_t>(static_cast<uint64_t>(a) * static_cast<uint64_t>(b));
  };
  s->stride_w = last ? s->c : 1;
  s->stride_h = times(s->w, s->stride_w);
  s->stride_c = last ? 1 : times(s->h, s->stride_h);
  s->stride_n = last ? times(s->h, s->stride_h) : times(s->c, s->stride_c);
}

}  // namespace fastgen
