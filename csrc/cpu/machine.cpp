// The machine's own limits, for benchmark reports.
#include <algorithm>
#include <chrono>
#include <cstring>
#include <vector>

#include "arena.h"
#include "engine.h"
#include "isa.h"

namespace fastgen {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

}  // namespace

double peak_flops(const std::string& isa, double seconds, int threads) {
  require(seconds > 0 && seconds <= 60, "seconds must be in (0, 60]");
  require(threads >= 0 && threads <= 1024, "threads is out of range; must be 1..1024");
  const Kernels& kernels = isa_kernels(isa);
  Pool pool(threads ? threads : default_threads());
  std::vector<double> done(pool.threads());
  const auto start = Clock::now();
  pool.run(pool.threads(), [&](int64_t item, int) {
    while (seconds_since(start) < seconds) done[item] += kernels.peak(100000);
  });
  const double took = seconds_since(start);
  double total = 0;
  for (double d : done) total += d;
  return total / took;
}

std::vector<double> fixed_work_seconds(const std::string& isa, int64_t rounds, int threads,
                                       int repeats) {
  require(rounds >= 1 && rounds <= int64_t{1} << 40, "rounds must be in 1..2^40");
  require(threads >= 0 && threads <= 1024, "threads is out of range; must be 1..1024");
  require(repeats >= 1 && repeats <= 100000, "repeats must be in 1..100000");
  const Kernels& kernels = isa_kernels(isa);
  Pool pool(threads ? threads : default_threads());
  const int64_t items = 64;  // the same work for any number of threads, handed out as tiles are
  const int64_t part = (rounds + items - 1) / items;
  std::vector<double> took;
  for (int repeat = 0; repeat < repeats; ++repeat) {
    const auto start = Clock::now();
    pool.run(items, [&](int64_t, int) { kernels.peak(part); });
    took.push_back(seconds_since(start));
  }
  return took;
}

double copy_bandwidth(int64_t bytes, double seconds, int threads) {
  require(bytes >= 4096 && bytes <= (int64_t{1} << 36), "bytes must be in 4096..2^36");
  require(seconds > 0 && seconds <= 60, "seconds must be in (0, 60]");
  require(threads >= 0 && threads <= 1024, "threads is out of range; must be 1..1024");
  Arena from, to;
  from.reserve(bytes);
  to.reserve(bytes);
  std::memset(from.data(), 1, bytes);
  std::memset(to.data(), 1, bytes);
  Pool pool(threads ? threads : default_threads());
  const int64_t part = bytes / pool.threads();
  int64_t rounds = 0;
  const auto start = Clock::now();
  do {
    pool.run(pool.threads(), [&](int64_t item, int) {
      std::memcpy(reinterpret_cast<char*>(to.data()) + item * part,
                  reinterpret_cast<const char*>(from.data()) + item * part, part);
    });
    ++rounds;
  } while (seconds_since(start) < seconds);
  return 2.0 * static_cast<double>(part * pool.threads() * rounds) / seconds_since(start);
}

}  // namespace fastgen
