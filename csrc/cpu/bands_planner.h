// Which values a run in bands keeps, what runs in which pass, and where rows lie meanwhile.
#pragma once

#include <limits>
#include <string>
#include <vector>

#include "bands.h"

namespace fastgen {

constexpr int64_t kNever = std::numeric_limits<int64_t>::max();
struct Node {
  Flow flow;
  // Of each reading: rows that the units before u need, and the first row that u or a later one
  // reads.
  std::vector<std::vector<int64_t>> need, low;
  int level = 0;      // the first pass that it can run in
  bool norm = false;  // its statistics are wanted
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
  std::vector<int> joined;  // region of each value that has others inside, or -1
  int64_t floats = 0, kept_floats = 0;
  double work = 0;
};

class Planner {
 public:
  Planner(const Plan& base, const std::vector<char>& external, const BandSpec& spec,
          const std::vector<JoinSpec>& joins, const std::vector<const Step*>& steps);

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
    if (row.dense) return ceil_div(Engine::value_floats(row), row.h);  // never split by rows
    row.h = 1;
    return Engine::value_floats(row);
  }
  int64_t floats(int value) const { return row_floats(value) * base_.values[value].shape.h; }
  bool same(int a, int b) const;
  // Steps that write a value, those of what is part of it included.
  const std::vector<int>& writers(int value) const {
    return writers_[value].empty() ? writers_[outer_[value]] : writers_[value];
  }
  bool joined(int value) const { return root_[value] != value || has_inner_[value]; }
  // Whether a pass reads what a step writes as it comes, not from memory.
  bool fresh(const Draft& draft, int level, int value, int node) const {
    return draft.passes[level].in[node] && !(draft.kept[value] && nodes_[node].level < level);
  }
  bool part_of(int value, int whole) const {
    while (value != whole && outer_[value] != value) value = outer_[value];
    return value == whole || writers_[whole].empty();
  }
  void add_inner(Flow* flow) const;
  // A part of a value may be another view of its numbers, with other rows.
  bool same_rows(int a, int b) const { return base_.values[a].shape.h == base_.values[b].shape.h; }
  // Rows of `value` that exist after some units of a step that writes it.
  int64_t ready(const Flow::Writing& w, int value, int64_t units) const {
    if (units == 0) return 0;
    if (same_rows(w.value, value)) return w.ready[units - 1];
    return units == static_cast<int64_t>(w.ready.size()) ? kNever : 0;
  }
  bool due(int node, const DraftPass& pass) const;
  void choose(Draft* draft) const;
  int64_t possible(int node, int level, const Draft& draft, const std::vector<int64_t>& done) const;
  void simulate(int level, Draft* draft) const;
  void hand_over(int level, const std::vector<std::vector<int64_t>>& distance, Draft* draft) const;
  void place(Draft* draft) const;
  Value located(const Draft& draft, int level, int value) const;

  const Plan& base_;
  const std::vector<char>& external_;
  std::vector<Node> nodes_;
  std::vector<std::vector<int>> writers_;
  std::vector<int> outer_, root_, slot_writer_;
  std::vector<int64_t> channel_;  // of a part of another value
  std::vector<char> has_inner_;
  std::vector<char> late_, used_slot_;
  std::vector<int64_t> together_;
  int passes_ = 1;
  int64_t bands_ = 1;
  double once_ = 0;
};

}  // namespace fastgen
