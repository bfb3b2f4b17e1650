// What this machine can do at most: multiply-adds a second in registers, and bytes a second copied.
// Compiled and run by benchmarks/peak.py, once per instruction set; prints two numbers.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#ifndef WIDTH
#define WIDTH 4  // floats in a vector
#endif
#ifdef __aarch64__
#define IN_VECTOR_REGISTER "+w"
#else
#define IN_VECTOR_REGISTER "+x"
#endif

namespace {

typedef float Vec __attribute__((vector_size(WIDTH * sizeof(float))));
using Clock = std::chrono::steady_clock;

constexpr int kChains = 12;  // independent sums: enough to hide the latency of two units
constexpr long kSteps = 1 << 22;

double Seconds(Clock::time_point since) {
  return std::chrono::duration<double>(Clock::now() - since).count();
}

void MultiplyAdds(float seed, float* sink) {
  Vec sum[kChains];
  Vec factor, term;
  for (int i = 0; i < WIDTH; ++i) {
    factor[i] = 0.999f + seed;
    term[i] = 0.001f;
  }
  for (int c = 0; c < kChains; ++c) sum[c] = term * static_cast<float>(c + 1);
  for (long step = 0; step < kSteps; ++step) {
    for (int c = 0; c < kChains; ++c) sum[c] = sum[c] * factor + term;
    // The compiler must not fold the steps into one another.
    for (int c = 0; c < kChains; ++c) asm volatile("" : IN_VECTOR_REGISTER(sum[c]));
  }
  float total = 0;
  for (int c = 0; c < kChains; ++c)
    for (int i = 0; i < WIDTH; ++i) total += sum[c][i];
  *sink = total;
}

template <typename Work>
double Together(int threads, Work work) {
  std::vector<std::thread> pool;
  const Clock::time_point start = Clock::now();
  for (int t = 0; t < threads; ++t) pool.emplace_back(work, t);
  for (std::thread& thread : pool) thread.join();
  return Seconds(start);
}

}  // namespace

int main(int argc, char** argv) {
  const int threads = argc > 1 ? std::atoi(argv[1]) : 1;
  std::vector<float> sink(threads * 16);
  double best_fma = 0, best_copy = 0;
  const size_t bytes = size_t{64} << 20;
  std::vector<std::vector<char>> from(threads, std::vector<char>(bytes, 1));
  std::vector<std::vector<char>> to(threads, std::vector<char>(bytes, 2));
  for (int round = 0; round < 7; ++round) {
    double s = Together(threads, [&](int t) { MultiplyAdds(1e-7f * t, &sink[t * 16]); });
    double rate = double(kSteps) * kChains * WIDTH * threads / s;
    if (rate > best_fma) best_fma = rate;
    s = Together(threads, [&](int t) { std::memcpy(to[t].data(), from[t].data(), bytes); });
    rate = 2.0 * bytes * threads / s;  // read and written
    if (rate > best_copy) best_copy = rate;
  }
  std::printf("%.6g %.6g\n", best_fma, best_copy);
  return sink[0] == 12345.0f;
}
