// Convolutions of small maps: several images in one tile.
#include "conv.h"

namespace fastgen {
namespace {

constexpr int64_t kTinyMap = 64;  // most pixels of a map that shares its tile with others
constexpr int64_t kBatchFloats = 512 * 256;  // of such a tile's panel: half of a level 2 cache

}  // namespace

bool Conv::shares_tiles(const ConvShape& s, const StepPlan& p) const {
  return !winograd_ && !rows_ && !int8_ && !spec_.small && s.images > 1 &&
         p.domain_rows * p.domain_columns <= kTinyMap;
}

void Conv::batch_plan(const ConvShape& s, int threads, StepPlan* out) const {
  out->image_floats = out->panel_floats;
  if (!shares_tiles(s, *out) || out->tiles_y * out->tiles_x > 1) return;
  const int64_t fit = kBatchFloats / out->panel_floats;
  out->batch = std::clamp<int64_t>(fit, 1, ceil_div(s.images, threads));
  out->batch = std::min(out->batch, kMostBatch);
  out->panel_floats *= out->batch;
}

}  // namespace fastgen
