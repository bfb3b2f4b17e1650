// Runs in bands: what runs in which pass, and for how many rows at a time.
#include "bands.h"

#include <algorithm>
#include <numeric>

#include "bands_planner.h"

namespace fastgen {
namespace {

constexpr int64_t kSmall = 256;  // floats that are always kept

}  // namespace

Planner::Planner(const Plan& base, const std::vector<char>& external, const BandSpec& spec,
                 const std::vector<JoinSpec>& joins, const std::vector<const Step*>& steps)
    : base_(base), external_(external) {
  const size_t values = base.values.size();
  writers_.resize(values);
  outer_.resize(values);
  std::iota(outer_.begin(), outer_.end(), 0);
  root_ = outer_;
  channel_.assign(values, 0);
  has_inner_.assign(values, 0);
  for (const JoinSpec& join : joins) {
    outer_[join.inner] = join.outer;
    channel_[join.inner] = join.channel;
    has_inner_[join.outer] = 1;
  }
  for (size_t v = 0; v < values; ++v)
    for (size_t depth = 0; outer_[root_[v]] != root_[v]; ++depth) {
      require(depth < values, "joined values contain each other");
      root_[v] = outer_[root_[v]];
    }
  late_.assign(values, 0);
  together_.assign(values, 1);
  slot_writer_.assign(base.slot_offset.size(), -1);
  used_slot_.assign(base.slot_offset.size(), 0);
  for (size_t i = 0; i < steps.size(); ++i) {
    Node node;
    steps[i]->flow(base, base.steps[i], &node.flow);
    const int64_t units = base.steps[i].units;
    add_inner(&node.flow);
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
      for (int from : writers(reading.value))
        node.level = std::max(node.level, nodes_[from].level + (late_[reading.value] ? 1 : 0));
    }
    for (int slot : node.flow.slots) {
      used_slot_[slot] = 1;
      const int from = slot_writer_[slot];
      if (from >= 0)
        node.level = std::max(node.level, nodes_[from].level + (nodes_[from].norm ? 1 : 0));
    }
    for (const Flow::Writing& writing : node.flow.writes) {
      for (int v = writing.value;; v = outer_[v]) {
        writers_[v].push_back(static_cast<int>(i));
        if (outer_[v] == v) break;
      }
      late_[writing.value] = writing.late;
      together_[writing.value] = std::lcm(together_[writing.value], writing.together);
    }
    node.norm = node.flow.statistics && !spec.given_norms;
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

// What joins values in memory may not come before what is in place: its last block has channels of
// others, which it overwrites.
void Planner::add_inner(Flow* flow) const {
  const size_t writes = flow->writes.size();
  for (size_t w = 0; w < writes; ++w) {
    const Flow::Writing& writing = flow->writes[w];
    for (size_t v = 0; v < outer_.size(); ++v) {
      if (outer_[v] != writing.value || static_cast<int>(v) == writing.value || writers_[v].empty())
        continue;
      Flow::Reading reading{static_cast<int>(v), {}};
      for (size_t u = 0; u < writing.ready.size(); ++u)
        reading.rows.push_back({u ? writing.ready[u - 1] : 0, writing.ready[u]});
      flow->reads.push_back(std::move(reading));
    }
  }
}

std::vector<int64_t> Planner::thresholds() const {
  std::vector<int64_t> sizes = {0};
  for (size_t v = 0; v < base_.values.size(); ++v)
    if (!writers_[v].empty() && !external_[v]) sizes.push_back(floats(static_cast<int>(v)));
  std::sort(sizes.begin(), sizes.end());
  sizes.erase(std::unique(sizes.begin(), sizes.end()), sizes.end());
  return sizes;
}

bool Planner::same(int a, int b) const {
  const ValueShape &x = base_.values[a].shape, &y = base_.values[b].shape;
  return x.n == y.n && x.c == y.c && x.h == y.h && x.w == y.w && x.planar == y.planar &&
         x.dense == y.dense && x.dtype == y.dtype && !joined(a) && !joined(b) &&
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
        const int v = reading.value;
        for (int from : writers(v)) {
          if (!draft->kept[v] || nodes_[from].level >= level) {
            pass.in[from] = 1;
            continue;
          }
          pass.reads[v] = 1;
          for (size_t part = 0; part < values; ++part)  // a joined value is kept as one
            if (root_[part] == root_[v]) wanted[part] = !external_[part];
        }
      }
    }
  }
}

// Units of a step for which there are rows to read.
int64_t Planner::possible(int node, int level, const Draft& draft,
                          const std::vector<int64_t>& done) const {
  const DraftPass& pass = draft.passes[level];
  const Flow& flow = nodes_[node].flow;
  int64_t units = base_.steps[node].units;
  for (int slot : flow.slots) {
    const int from = slot_writer_[slot];
    if (from >= 0 && pass.in[from] && !nodes_[from].norm && done[from] < base_.steps[from].units)
      return 0;
  }
  for (size_t r = 0; r < flow.reads.size(); ++r) {
    const int v = flow.reads[r].value;
    for (int from : writers(v)) {
      if (!fresh(draft, level, v, from)) continue;
      int64_t rows = 0;
      for (const Flow::Writing& w : nodes_[from].flow.writes)
        if (part_of(w.value, v)) rows = ready(w, v, done[from]);
      const std::vector<int64_t>& need = nodes_[node].need[r];
      const auto end = std::upper_bound(need.begin(), need.end(), rows);
      units = std::min<int64_t>(units, end - need.begin() - 1);
    }
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
        const int v = node.flow.reads[r].value;
        const int64_t rows = node.need[r][need[i]];
        for (int from : writers(v)) {
          if (!fresh(*draft, level, v, from) || rows == 0) continue;
          for (const Flow::Writing& w : nodes_[from].flow.writes) {
            if (!part_of(w.value, v)) continue;
            int64_t units = base_.steps[from].units;
            if (same_rows(w.value, v))
              units = std::lower_bound(w.ready.begin(), w.ready.end(), rows) - w.ready.begin() + 1;
            need[from] = std::max(need[from], units);
          }
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
                                    possible(i, level, *draft, done)});
      if (end < need[i]) waiting = 1;
      if (end <= done[i]) continue;
      for (const Flow::Writing& w : nodes_[i].flow.writes) {
        const bool copy = &w != nodes_[i].flow.writes.data();
        if (copy && readers[w.value].empty() && !pass.wrote[w.value]) continue;
        const int64_t before = done[i] ? w.ready[done[i] - 1] : 0, after = w.ready[end - 1];
        pass.rows[w.value] = std::max(pass.rows[w.value], after - std::min(before, low(w.value)));
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
      draft->work +=
          nodes_[i].work * static_cast<double>(done[i]) / static_cast<double>(base_.steps[i].units);
  hand_over(level, distance, draft);
}

Draft Planner::draft(int64_t most_floats) const {
  const size_t values = base_.values.size();
  Draft draft;
  draft.kept.assign(values, 0);
  for (size_t v = 0; v < values; ++v)
    draft.kept[v] = external_[v] || late_[v] || joined(static_cast<int>(v));
  for (const Node& node : nodes_) {
    if (node.flow.reads.empty()) continue;  // the image is at hand
    // What one step writes is kept together: when a step runs again, nothing of it is in memory.
    int64_t largest = 0;
    for (const Flow::Writing& w : node.flow.writes)
      largest = std::max(largest, joined(w.value) ? 0 : floats(w.value));
    const bool part = std::any_of(node.flow.writes.begin(), node.flow.writes.end(),
                                  [&](const Flow::Writing& w) { return joined(w.value); });
    if (part) largest = 0;
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

void plan_bands(const Plan& base, const std::vector<char>& external, const BandSpec& spec,
                int64_t other_floats, const std::vector<JoinSpec>& joins, Bands* bands) {
  const Planner planner(base, external, spec, joins, bands->steps);
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
