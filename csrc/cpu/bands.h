// Runs in bands: exact, in a part of the memory.
//
// A run is a sequence of passes over the frame. In a pass the steps take turns: each is given the
// rows that the others need for their next band, and of the values between them only the rows that
// are still needed stay in memory (Value::rows). Instance statistics are known when a pass ends, so
// what is normalised with them belongs to a later pass. A value that a later pass reads is either
// kept whole or computed again there. A whole value that a pass reads for the last time gives its
// rows, as they are used up, to one that the pass writes.
//
// Steps run over the same tiles in the same order of rows as without bands, and sums over tiles are
// joined in the same order: the results are equal to the last bit.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "engine.h"

namespace fastgen {

// Units [first, last) of a step.
struct BandRun {
  int step;
  int64_t first, last;
};

struct BandPass {
  Plan plan;  // of the values, where they are during the pass
  std::vector<BandRun> runs;
  std::vector<int64_t> stats;    // of each step, floats from the arena's start
  std::vector<char> statistics;  // of each step: whether its norm is wanted
  std::vector<char> storing;     // of each step: whether Source::store is wanted
};

class Bands {
 public:
  std::vector<const Step*> steps;  // the engine's, between those of an image if there is one
  std::vector<std::unique_ptr<Step>> image_steps;
  std::vector<BandPass> passes;
  BandReport report;
  ImageShape image;
  bool given = false;  // statistics come with the run
  int64_t arena_floats = 0;
};

// `base` has the shapes of the values and the plans of `bands->steps`; fills in the rest.
// `external`: of each value, whether it is the caller's.
void plan_bands(const Plan& base, const std::vector<char>& external, const BandSpec& spec,
                int64_t other_floats, const std::vector<JoinSpec>& joins, Bands* bands);

}  // namespace fastgen
