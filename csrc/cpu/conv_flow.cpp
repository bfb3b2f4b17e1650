// Which rows a convolution reads and writes, for runs in bands.
#include "conv.h"

namespace fastgen {
namespace {

// One half of what split_parities made, rows only.
Maps half(const Maps& maps, int parity) {
  const auto part = [parity](const std::vector<int32_t>& map) {
    const auto middle = map.begin() + static_cast<int64_t>(map.size() / 2);
    return parity ? std::vector<int32_t>(middle, map.end())
                  : std::vector<int32_t>(map.begin(), middle);
  };
  Maps result;
  result.src_y = part(maps.src_y);
  result.res_y = part(maps.res_y);
  return result;
}

}  // namespace

void Conv::flow(const StepPlan& p, int64_t out_rows, Flow* out) const {
  const int64_t tile_rows = p.units == 1 ? p.domain_rows : p.tile_rows;
  const int64_t count = rows_ ? rows_window(tile_rows) : window(tile_rows, span_y_, winograd_rows_);
  if (winograd_ && spec_.stride == 2) {
    Flow odd;
    source_flow(spec_.source, half(p.maps, 0), p.units, tile_rows, count, out);
    source_flow(spec_.source, half(p.maps, 1), p.units, tile_rows, count, &odd);
    for (size_t r = 0; r < odd.reads.size(); ++r)
      for (int64_t u = 0; u < p.units; ++u) {
        Flow::Rows& rows = out->reads[r].rows[u];
        const Flow::Rows& more = odd.reads[r].rows[u];
        if (rows.last && more.last)
          rows = {std::min(rows.first, more.first), std::max(rows.last, more.last)};
        else if (more.last)
          rows = more;
      }
  } else {
    const int64_t step = winograd_ ? 1 : spec_.stride;
    source_flow(spec_.source, p.maps, p.units, tile_rows * step, count, out);
  }
  out->slot = spec_.norm.slot;
  out->statistics = out->slot >= 0;
  out->writes.push_back({spec_.out, {}});
  if (spec_.source.store >= 0) out->writes.push_back({spec_.source.store, {}});
  for (int64_t u = 1; u <= p.units; ++u) {
    const int64_t done = u * tile_rows;
    out->writes[0].ready.push_back(u == p.units ? out_rows : done * spec_.out_stride);
    if (spec_.source.store < 0) continue;
    const int64_t stored = std::clamp<int64_t>(done * spec_.stride + low_y_, 0, p.maps.height);
    out->writes[1].ready.push_back(u == p.units ? p.maps.height : stored);
  }
}

}  // namespace fastgen
