// Which values are kept, what runs in which pass, and where rows lie meanwhile.
#include "bands.h"

#include <algorithm>
#include <limits>
#include <numeric>

namespace fastgen {
namespace {

constexpr int64_t kNever = std::numeric_limits<int64_t>::max();
constexpr int64_t kSmall = 256;  // floats that are always kept

int64_t align16(int64_t floats) { return ceil_div(floats, 16) * 16; }

struct Node {
  Flow flow;
  // Of each reading: rows that the units before u need, and the first row that u or a later one
  // reads.
  std::vector<std::vector<int64_t>> need, low;
  int level = 0;       // the first pass that it can run in
  bool norm = false;   // its statistics are wanted
  double work = 0;
};

// A part of the arena from pass `first` to pass `last`.
struct Region {
  int first, last;
  int64_t floats, offset = 0;
};

// Memory of whole values, one after the other.
struct Room {
  int first, last, value;  // value: the latest one
  int64_t spare = 0;       // rows more than the values have
  int region = -1;
};

struct DraftPass {
  std::vector<char> in;     // nodes that run
  std::vector<char> wrote;  // whole values that are written
  std::vector<char> reads;  // whole values that are read, from earlier passes
  std::vector<BandRun> runs;
  std::vector<int64_t> rows;  // of values that are not whole
  int stats = -1;             // region
  std::vector<int> regions;   // of values that are not whole
  std::vector<int64_t> stats_offset;
};

struct Draft {
  std::vector<DraftPass> passes;
  std::vector<char> kept;
  std::vector<int> room;       // of each value, or -1
  std::vector<int64_t> shift;  // of whole values: rows that they are moved by in their room
  std::vector<Room> rooms;
  std::vector<Region> regions;
  int64_t floats = 0, kept_floats = 0;
  double work = 0;
};

class Planner {
 public:
  Planner(const Plan& base, const std::vector<char>& external, const BandSpec& spec, bool given,
          const std::vector<const Step*>& steps);

  Draft draft(int64_t most_floats) const;
  // Sizes at which another value is kept, in ascending order.
  std::vector<int64_t> thresholds() const;
  double once() const { return once_; }
  int passes() const { return passes_; }
  int64_t bands() const { return bands_; }
  void finish(const Draft& draft, const std::vector<const Step*>& steps, Bands* bands) const;

 private:
  int64_t row_floats(int value) const {
    ValueShape row = base_.values[value].shape;
    row.h = 1;
    return Engine::value_floats(row);
  }
  int64_t floats(int value) const { return row_floats(value) * base_.values[value].shape.h; }
  bool same(int a, int b) const;
  bool due(int node, const DraftPass& pass) const;
  void choose(Draft* draft) const;
  int64_t possible(int node, const DraftPass& pass, const std::vector<int64_t>& done) const;
  void simulate(int level, Draft* draft) const;
  void hand_over(int level, const std::vector<std::vector<int64_t>>& distance, Draft* draft) const;
  void place(Draft* draft) const;
  Value located(const Draft& draft, int level, int value) const;

  const Plan& base_;
  const std::vector<char>& external_;
  std::vector<Node> nodes_;
  std::vector<int> writer_, slot_writer_;
  std::vector<char> late_, used_slot_;
  std::vector<int64_t> together_;
  int passes_ = 1;
  int64_t bands_ = 1;
  double once_ = 0;
};

Planner::Planner(const Plan& base, const std::vector<char>& external, const BandSpec& spec,
                 bool given, const std::vector<const Step*>& steps)
    : base_(base), external_(external) {
  const size_t values = base.values.size();
  writer_.assign(values, -1);
  late_.assign(values, 0);
  together_.assign(values, 1);
  slot_writer_.assign(base.slot_offset.size(), -1);
  used_slot_.assign(base.slot_offset.size(), 0);
  for (size_t i = 0; i < steps.size(); ++i) {
    Node node;
    steps[i]->flow(base, base.steps[i], &node.flow);
    const int64_t units = base.steps[i].units;
    for (const Flow::Reading& reading : node.flow.reads) {
      node.need.emplace_back(units + 1, 0);
      node.low.emplace_back(units + 1, kNever);
      for (int64_t u = 0; u < units; ++u)
        node.need.back()[u + 1] = std::max(node.need.back()[u], reading.rows[u].last);
      for (int64_t u = units - 1; u >= 0; --u) {
        const Flow::Rows& rows = reading.rows[u];
        const int64_t later = node.low.back()[u + 1];
        node.low.back()[u] = rows.last ? std::min(later, rows.first) : later;
      }
      together_[reading.value] = std::lcm(together_[reading.value], reading.together);
      if (writer_[reading.value] >= 0)
        node.level = std::max(node.level, nodes_[writer_[reading.value]].level +
                                              (late_[reading.value] ? 1 : 0));
    }
    for (int slot : node.flow.slots) {
      used_slot_[slot] = 1;
      const int from = slot_writer_[slot];
      if (from >= 0)
        node.level = std::max(node.level, nodes_[from].level + (nodes_[from].norm ? 1 : 0));
    }
    for (const Flow::Writing& writing : node.flow.writes) {
      writer_[writing.value] = static_cast<int>(i);
      late_[writing.value] = writing.late;
      together_[writing.value] = std::lcm(together_[writing.value], writing.together);
    }
    node.norm = node.flow.statistics && !given;
    if (node.flow.slot >= 0 && (node.norm || !node.flow.statistics))
      slot_writer_[node.flow.slot] = static_cast<int>(i);
    node.work = base.steps[i].flops;
    once_ += node.work;
    passes_ = std::max(passes_, node.level + 1);
    nodes_.push_back(std::move(node));
  }
  int64_t height = 1;
  for (const Value& v : base.values) height = std::max(height, v.shape.h);
  bands_ = ceil_div(height, std::max<int64_t>(1, spec.rows));
}

std::vector<int64_t> Planner::thresholds() const {
  std::vector<int64_t> sizes = {0};
  for (size_t v = 0; v < base_.values.size(); ++v)
    if (writer_[v] >= 0 && !external_[v]) sizes.push_back(floats(static_cast<int>(v)));
  std::sort(sizes.begin(), sizes.end());
  sizes.erase(std::unique(sizes.begin(), sizes.end()), sizes.end());
  return sizes;
}

bool Planner::same(int a, int b) const {
  const ValueShape &x = base_.values[a].shape, &y = base_.values[b].shape;
  return x.n == y.n && x.c == y.c && x.h == y.h && x.w == y.w && x.planar == y.planar &&
         together_[a] == 1 && together_[b] == 1;
}

// Whether a step has to run in its first pass, for what is not just read in the same pass.
bool Planner::due(int node, const DraftPass& pass) const {
  const Flow& flow = nodes_[node].flow;
  if (flow.slot >= 0 && used_slot_[flow.slot] && slot_writer_[flow.slot] == node) return true;
  const auto lasting = [&](const Flow::Writing& w) {
    return external_[w.value] || pass.wrote[w.value];
  };
  return (flow.writes.empty() && flow.slot < 0) ||  // an image's last step
         std::any_of(flow.writes.begin(), flow.writes.end(), lasting);
}

// From the last pass to the first: what runs, and which values later passes find in memory.
void Planner::choose(Draft* draft) const {
  const int count = static_cast<int>(nodes_.size());
  const size_t values = base_.values.size();
  std::vector<char> wanted(values, 0);
  draft->passes.resize(passes_);
  for (int level = passes_ - 1; level >= 0; --level) {
    DraftPass& pass = draft->passes[level];
    pass.in.assign(count, 0);
    pass.wrote.assign(values, 0);
    pass.reads.assign(values, 0);
    for (int i = count - 1; i >= 0; --i) {
      const Node& node = nodes_[i];
      if (node.level > level) continue;
      if (node.level == level) {
        for (const Flow::Writing& writing : node.flow.writes)
          pass.wrote[writing.value] = wanted[writing.value];
        if (due(i, pass)) pass.in[i] = 1;
      }
      if (!pass.in[i]) continue;
      for (const Flow::Reading& reading : node.flow.reads) {
        const int v = reading.value, from = writer_[v];
        if (from < 0) continue;
        if (draft->kept[v] && nodes_[from].level < level) {
          pass.reads[v] = 1;
          wanted[v] = !external_[v];
        } else {
          pass.in[from] = 1;
        }
      }
    }
  }
}

// Units of a step for which there are rows to read.
int64_t Planner::possible(int node, const DraftPass& pass, const std::vector<int64_t>& done) const {
  const Flow& flow = nodes_[node].flow;
  int64_t units = base_.steps[node].units;
  for (int slot : flow.slots) {
    const int from = slot_writer_[slot];
    if (from >= 0 && pass.in[from] && !nodes_[from].norm && done[from] < base_.steps[from].units)
      return 0;
  }
  for (size_t r = 0; r < flow.reads.size(); ++r) {
    const int v = flow.reads[r].value, from = writer_[v];
    if (from < 0 || pass.reads[v]) continue;
    int64_t rows = 0;
    for (const Flow::Writing& w : nodes_[from].flow.writes)
      if (w.value == v && done[from] > 0) rows = w.ready[done[from] - 1];
    const std::vector<int64_t>& need = nodes_[node].need[r];
    const auto end = std::upper_bound(need.begin(), need.end(), rows);
    units = std::min<int64_t>(units, end - need.begin() - 1);
  }
  return units;
}

// Lets the steps of a pass take turns, and notes how many rows of each value are alive at once.
void Planner::simulate(int level, Draft* draft) const {
  DraftPass& pass = draft->passes[level];
  const int count = static_cast<int>(nodes_.size()), values = static_cast<int>(base_.values.size());
  struct Reader {
    int node;
    size_t reading;
  };
  std::vector<std::vector<Reader>> readers(values);
  std::vector<int64_t> done(count, 0), need(count, 0);
  std::vector<char> target(count, 0);
  int64_t bands = 1;
  for (int i = 0; i < count; ++i) {
    if (!pass.in[i]) continue;
    const Node& node = nodes_[i];
    target[i] = node.level == level && due(i, pass);
    if (target[i]) bands = std::max(bands, base_.steps[i].units);
    for (size_t r = 0; r < node.flow.reads.size(); ++r)
      readers[node.flow.reads[r].value].push_back({i, r});
  }
  bands = std::min(bands, bands_);
  const auto low = [&](int value) {  // the first row that is still needed
    int64_t first = kNever;
    for (const Reader& r : readers[value])
      first = std::min(first, nodes_[r.node].low[r.reading][done[r.node]]);
    return first;
  };
  std::vector<std::vector<int64_t>> distance(values);  // [old][new]: see hand_over
  for (int v = 0; v < values; ++v)
    if (pass.reads[v] && !external_[v]) distance[v].assign(values, 0);
  pass.rows.assign(values, 0);
  for (int64_t band = 1; band <= bands; ++band) {
    for (int i = count - 1; i >= 0; --i) {
      if (!pass.in[i]) continue;
      const Node& node = nodes_[i];
      const int64_t units = base_.steps[i].units;
      if (target[i]) need[i] = std::max(need[i], ceil_div(units * band, bands));
      if (need[i] <= done[i]) continue;
      for (size_t r = 0; r < node.flow.reads.size(); ++r) {
        const int v = node.flow.reads[r].value, from = writer_[v];
        if (from < 0 || pass.reads[v] || node.need[r][need[i]] == 0) continue;
        for (const Flow::Writing& w : nodes_[from].flow.writes) {
          if (w.value != v) continue;
          const auto enough = std::lower_bound(w.ready.begin(), w.ready.end(), node.need[r][need[i]]);
          need[from] = std::max<int64_t>(need[from], enough - w.ready.begin() + 1);
        }
      }
      for (int slot : node.flow.slots) {
        const int from = slot_writer_[slot];
        if (from >= 0 && pass.in[from] && !nodes_[from].norm) need[from] = base_.steps[from].units;
      }
    }
    // A step that has to run far ahead does not do so at once: the others take rows from it as they
    // come, and memory for them all is not needed.
    for (int i = 0, waiting = 0;; ++i) {
      if (i == count) {
        if (!waiting) break;
        i = waiting = 0;
      }
      if (!pass.in[i] || need[i] <= done[i]) continue;
      const int64_t end = std::min({need[i], done[i] + ceil_div(base_.steps[i].units, bands),
                                    possible(i, pass, done)});
      if (end < need[i]) waiting = 1;
      if (end <= done[i]) continue;
      for (const Flow::Writing& w : nodes_[i].flow.writes) {
        const bool copy = &w != nodes_[i].flow.writes.data();
        if (copy && readers[w.value].empty() && !pass.wrote[w.value]) continue;
        const int64_t before = done[i] ? w.ready[done[i] - 1] : 0, after = w.ready[end - 1];
        pass.rows[w.value] =
            std::max(pass.rows[w.value], after - std::min(before, low(w.value)));
        if (!pass.wrote[w.value]) continue;
        for (int old = 0; old < values; ++old) {
          if (distance[old].empty() || !same(old, w.value)) continue;
          const int64_t first = low(old);
          if (first != kNever)
            distance[old][w.value] = std::max(distance[old][w.value], after - first);
        }
      }
      pass.runs.push_back({i, done[i], end});
      done[i] = end;
    }
  }
  for (int i = 0; i < count; ++i)
    if (pass.in[i])
      draft->work += nodes_[i].work * static_cast<double>(done[i]) /
                     static_cast<double>(base_.steps[i].units);
  hand_over(level, distance, draft);
}

// Gives every whole value that the pass writes a room: that of one which the pass reads for the
// last time, moved by some rows, or its own.
void Planner::hand_over(int level, const std::vector<std::vector<int64_t>>& distance,
                        Draft* draft) const {
  const int values = static_cast<int>(base_.values.size());
  for (int v = 0; v < values; ++v) {
    if (!draft->passes[level].wrote[v]) continue;
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
  for (int p = 0; p < passes_; ++p) {
    DraftPass& pass = draft->passes[p];
    pass.regions.assign(values, -1);
    for (int v = 0; v < values; ++v) {
      if (!pass.rows[v] || pass.wrote[v] || external_[v]) continue;
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
    for (const Room& room : draft->rooms)
      if (room.first <= p && p <= room.last) kept += regions[room.region].floats;
    draft->kept_floats = std::max(draft->kept_floats, kept);
  }
}

Draft Planner::draft(int64_t most_floats) const {
  const size_t values = base_.values.size();
  Draft draft;
  draft.kept.assign(values, 0);
  for (size_t v = 0; v < values; ++v) draft.kept[v] = external_[v] || late_[v];
  for (const Node& node : nodes_) {
    if (node.flow.reads.empty()) continue;  // the image is at hand
    // What one step writes is kept together: when a step runs again, nothing of it is in memory.
    int64_t largest = 0;
    for (const Flow::Writing& w : node.flow.writes) largest = std::max(largest, floats(w.value));
    for (const Flow::Writing& w : node.flow.writes)
      if (largest <= std::max(most_floats, kSmall)) draft.kept[w.value] = 1;
  }
  draft.room.assign(values, -1);
  draft.shift.assign(values, 0);
  choose(&draft);
  for (int level = 0; level < passes_; ++level) simulate(level, &draft);
  place(&draft);
  return draft;
}

Value Planner::located(const Draft& draft, int level, int value) const {
  const DraftPass& pass = draft.passes[level];
  Value v = base_.values[value];
  if (external_[value]) return v;
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
        storing = from.wrote[v] || (from.regions[v] >= 0 && !from.reads[v]);
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

}  // namespace

void plan_bands(const Plan& base, const std::vector<char>& external, const BandSpec& spec,
                int64_t other_floats, bool given, Bands* bands) {
  const Planner planner(base, external, spec, given, bands->steps);
  const double once = std::max(planner.once(), 1.0);
  const auto bytes = [&](const Draft& d) { return (d.floats + other_floats) * 4; };
  const auto better = [&](const Draft& a, const Draft& b) {
    const bool fits = spec.limit > 0 ? bytes(a) <= spec.limit : a.work <= spec.most_work * once;
    const bool other = spec.limit > 0 ? bytes(b) <= spec.limit : b.work <= spec.most_work * once;
    if (fits != other) return fits;
    const auto key = [&](const Draft& d) {
      const double size = static_cast<double>(d.floats);
      // Within a limit: the least work. Without: the least memory.
      const bool by_work = spec.limit > 0 ? fits : !fits;
      return by_work ? std::pair(d.work, size) : std::pair(size, d.work);
    };
    return key(a) < key(b);
  };
  Draft best;
  bool any = false;
  for (int64_t size : planner.thresholds()) {
    Draft next = planner.draft(size);
    if (!any || better(next, best)) best = std::move(next);
    any = true;
  }
  planner.finish(best, bands->steps, bands);
  bands->report = {bytes(best), best.kept_floats * 4, best.work / once, planner.passes(),
                   planner.bands()};
}

}  // namespace fastgen
