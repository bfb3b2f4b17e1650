// Runs in bands: which memory the values of each pass have.
#include <algorithm>
#include <numeric>

#include "bands_planner.h"

namespace fastgen {
namespace {

int64_t align16(int64_t floats) { return ceil_div(floats, 16) * 16; }

}  // namespace

// Gives every whole value that the pass writes a room: that of one which the pass reads for the
// last time, moved by some rows, or its own.
void Planner::hand_over(int level, const std::vector<std::vector<int64_t>>& distance,
                        Draft* draft) const {
  const int values = static_cast<int>(base_.values.size());
  for (int v = 0; v < values; ++v) {
    if (!draft->passes[level].wrote[v] || joined(v)) continue;
    int last = level;
    for (int p = level + 1; p < passes_; ++p)
      if (draft->passes[p].reads[v]) last = p;
    int best = -1;
    for (int old = 0; old < values; ++old) {
      if (distance[old].empty() || !same(old, v)) continue;
      const Room& room = draft->rooms[draft->room[old]];
      if (room.value != old || room.last != level) continue;
      if (best < 0 || distance[old][v] < distance[best][v]) best = old;
    }
    if (best >= 0 && distance[best][v] <= base_.values[v].shape.h / 2) {
      draft->room[v] = draft->room[best];
      Room& room = draft->rooms[draft->room[v]];
      room.value = v;
      room.last = last;
      room.spare = std::max(room.spare, distance[best][v]);
      draft->shift[v] = draft->shift[best] - distance[best][v];
    } else {
      draft->room[v] = static_cast<int>(draft->rooms.size());
      draft->rooms.push_back({level, last, v});
    }
  }
}

// Regions that are never alive together may share memory.
void Planner::place(Draft* draft) const {
  const int values = static_cast<int>(base_.values.size());
  std::vector<Region>& regions = draft->regions;
  for (Room& room : draft->rooms) {
    room.region = static_cast<int>(regions.size());
    const int64_t rows = base_.values[room.value].shape.h + room.spare;
    regions.push_back({room.first, room.last, row_floats(room.value) * rows});
  }
  draft->joined.assign(values, -1);
  for (int v = 0; v < values; ++v) {
    if (root_[v] != v || !joined(v)) continue;
    draft->joined[v] = static_cast<int>(regions.size());
    regions.push_back({0, passes_ - 1, floats(v)});
  }
  for (int p = 0; p < passes_; ++p) {
    DraftPass& pass = draft->passes[p];
    pass.regions.assign(values, -1);
    for (int v = 0; v < values; ++v) {
      if (!pass.rows[v] || pass.wrote[v] || external_[v] || joined(v)) continue;
      int64_t& rows = pass.rows[v];
      rows = std::min(ceil_div(rows, together_[v]) * together_[v], base_.values[v].shape.h);
      pass.regions[v] = static_cast<int>(regions.size());
      regions.push_back({p, p, row_floats(v) * rows});
    }
    int64_t stats = 0;
    pass.stats_offset.assign(nodes_.size(), 0);
    for (size_t i = 0; i < nodes_.size(); ++i) {
      if (!pass.in[i]) continue;
      pass.stats_offset[i] = stats;
      stats += align16(base_.steps[i].stats_floats);
    }
    pass.stats = static_cast<int>(regions.size());
    regions.push_back({p, p, stats});
  }
  std::vector<size_t> order(regions.size()), placed;
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return regions[a].floats > regions[b].floats; });
  for (size_t i : order) {
    Region& region = regions[i];
    region.floats = align16(region.floats);
    std::vector<std::pair<int64_t, int64_t>> taken;
    for (size_t other : placed)
      if (regions[other].first <= region.last && region.first <= regions[other].last)
        taken.push_back({regions[other].offset, regions[other].offset + regions[other].floats});
    std::sort(taken.begin(), taken.end());
    for (const auto& [low, high] : taken) {
      if (region.offset + region.floats <= low) break;
      region.offset = std::max(region.offset, high);
    }
    placed.push_back(i);
    draft->floats = std::max(draft->floats, region.offset + region.floats);
  }
  for (int p = 0; p < passes_; ++p) {
    int64_t kept = 0;
    for (int region : draft->joined)
      if (region >= 0) kept += regions[region].floats;
    for (const Room& room : draft->rooms)
      if (room.first <= p && p <= room.last) kept += regions[room.region].floats;
    draft->kept_floats = std::max(draft->kept_floats, kept);
  }
}

Value Planner::located(const Draft& draft, int level, int value) const {
  const DraftPass& pass = draft.passes[level];
  Value v = base_.values[value];
  if (external_[value]) return v;
  if (joined(value)) {
    int64_t elements = 0;
    int at = value;
    for (; outer_[at] != at; at = outer_[at])
      elements +=
          channel_[at] * base_.values[outer_[at]].shape.h * base_.values[outer_[at]].shape.w;
    v.shape.offset =
        draft.regions[draft.joined[at]].offset + elements * element_bytes(v.shape.dtype) / 4;
    v.image = base_.values[at].image;
    return v;
  }
  const bool whole = pass.wrote[value] || pass.reads[value];
  if (!whole && pass.regions[value] < 0) {
    v.shape.offset = 0;  // not of this pass
    return v;
  }
  int64_t rows = pass.rows[value], first = 0;
  if (whole) {
    const Room& room = draft.rooms[draft.room[value]];
    rows = v.shape.h + room.spare;
    first = draft.shift[value] % rows;
    if (first < 0) first += rows;
    v.shape.offset = draft.regions[room.region].offset;
  } else {
    v.shape.offset = draft.regions[pass.regions[value]].offset;
  }
  if (rows != v.shape.h || first != 0) {
    v.rows = rows;
    v.first = first;
  }
  v.block = rows * v.row;
  v.image = v.block * (v.shape.planar ? v.shape.c : blocks_of(v.shape.c));
  return v;
}

void Planner::finish(const Draft& draft, const std::vector<const Step*>& steps,
                     Bands* bands) const {
  const int values = static_cast<int>(base_.values.size());
  for (int p = 0; p < passes_; ++p) {
    const DraftPass& from = draft.passes[p];
    BandPass pass;
    pass.runs = from.runs;
    pass.plan = base_;
    for (int v = 0; v < values; ++v) pass.plan.values[v] = located(draft, p, v);
    for (size_t i = 0; i < nodes_.size(); ++i) {
      const Node& node = nodes_[i];
      pass.stats.push_back(draft.regions[from.stats].offset + from.stats_offset[i]);
      pass.statistics.push_back(node.norm && node.level == p);
      // A copy that is in memory already, or that nothing reads, is not written.
      bool storing = false;
      for (size_t w = 1; w < node.flow.writes.size(); ++w) {
        const int v = node.flow.writes[w].value;
        storing = from.wrote[v] || joined(v) || (from.regions[v] >= 0 && !from.reads[v]);
      }
      pass.storing.push_back(storing);
      if (from.in[i]) {
        steps[i]->locate(pass.plan, &pass.plan.steps[i]);
      } else {
        pass.plan.steps[i].maps = Maps{};
      }
    }
    bands->passes.push_back(std::move(pass));
  }
  bands->arena_floats = draft.floats;
}

}  // namespace fastgen
