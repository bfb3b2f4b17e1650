#include "parallel.h"

#include <algorithm>
#include <cstdlib>
#include <sstream>
#include <stdexcept>
#include <string>
#include <system_error>

#include "cgroup.h"

#ifdef __linux__
#include <sched.h>
#endif

namespace fastgen {
namespace {

constexpr int kMaxThreads = 1024;
// A step of the engine takes 0.01 to 20 ms, the gap between two steps some microseconds: about 20
// us of spinning bridges the gap, and an idle pool costs nothing. Within a run (`Pool::Busy`) the
// next job, or the end of this one, is certain and near, and waking up costs 50 us in a virtual
// machine: some 200 us more, but in these the core is offered to whoever needs it. Where another
// program, or the thread that is waited for, has only this core, spinning would be its ruin.
constexpr int kSpins = 1500, kYields = 400;

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

// Waits a little for a condition; whether it came.
template <class Done>
bool wait_for(const Done& done, bool long_wait) {
  for (int i = 0; i < kSpins; ++i) {
    if (done()) return true;
    pause();
  }
  for (int i = 0; long_wait && i < kYields; ++i) {
    if (done()) return true;
    std::this_thread::yield();
  }
  return false;
}

// CPUs that one cgroup directory grants, or 0 for no limit.
double quota_of(const std::string& directory) {
  std::string line;
  if (read_line(directory + "/cpu.max", &line)) {  // version 2: "max 100000" or "150000 100000"
    std::istringstream in(line);
    double quota = 0, period = 0;
    if (in >> quota >> period && quota > 0 && period > 0) return quota / period;
    return 0;
  }
  std::string period;  // version 1
  if (read_line(directory + "/cpu.cfs_quota_us", &line) &&
      read_line(directory + "/cpu.cfs_period_us", &period)) {
    const double q = std::atof(line.c_str()), p = std::atof(period.c_str());
    if (q > 0 && p > 0) return q / p;
  }
  return 0;
}

double cgroup_quota() {
  double least = 0;
  for (const std::string& directory : cgroup_directories("cpu")) {
    const double quota = quota_of(directory);
    if (quota > 0 && (least == 0 || quota < least)) least = quota;
  }
  return least;
}

}  // namespace

int default_threads() {
  const char* env = std::getenv("FASTGEN_NUM_THREADS");
  if (env && *env) {
    char* end = nullptr;
    const long value = std::strtol(env, &end, 10);
    if (*end || value < 1 || value > kMaxThreads)
      throw std::invalid_argument("FASTGEN_NUM_THREADS is '" + std::string(env).substr(0, 40) +
                                  "', must be an integer in 1..1024; unset it for the default");
    return static_cast<int>(value);
  }
  int count = static_cast<int>(std::thread::hardware_concurrency());
#ifdef __linux__
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) == 0) count = CPU_COUNT(&set);
#endif
  const double quota = cgroup_quota();
  if (quota > 0) count = std::min(count, std::max(1, static_cast<int>(quota + 0.5)));
  return std::clamp(count, 1, kMaxThreads);
}

Pool::Pool(int threads) : threads_(std::clamp(threads, 1, kMaxThreads)) {
  workers_.reserve(threads_ - 1);  // so that no allocation fails between two started threads
  for (int i = 1; i < threads_; ++i) {
    try {
      workers_.emplace_back(&Pool::work, this, i);
    } catch (const std::system_error&) {
      threads_ = i;  // the system grants no more threads; run with what there is
      break;
    }
  }
}

Pool::~Pool() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
    generation_.fetch_add(1, std::memory_order_release);
  }
  wake_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void Pool::take(int thread) {
  for (;;) {
    const int64_t item = next_.fetch_add(1, std::memory_order_relaxed);
    if (item >= items_) return;
    (*job_)(item, thread);
  }
}

void Pool::run(int64_t items, const Job& job) {
  if (items <= 0) return;
  if (workers_.empty() || items == 1) {
    for (int64_t i = 0; i < items; ++i) job(i, 0);
    return;
  }
  {
    std::lock_guard<std::mutex> lock(mutex_);
    job_ = &job;
    items_ = items;
    next_.store(0, std::memory_order_relaxed);
    busy_.store(static_cast<int>(workers_.size()), std::memory_order_relaxed);
    generation_.fetch_add(1, std::memory_order_release);
  }
  wake_.notify_all();
  take(0);
  const bool long_wait = held_.load(std::memory_order_relaxed);
  wait_for([this] { return busy_.load(std::memory_order_acquire) == 0; }, long_wait);
  std::unique_lock<std::mutex> lock(mutex_);
  done_.wait(lock, [this] { return busy_.load(std::memory_order_acquire) == 0; });
}

void Pool::work(int thread) {
  uint64_t seen = 0;
  for (;;) {
    wait_for([&] { return generation_.load(std::memory_order_acquire) != seen; },
             held_.load(std::memory_order_relaxed));
    {
      std::unique_lock<std::mutex> lock(mutex_);
      wake_.wait(lock, [&] { return generation_.load(std::memory_order_acquire) != seen; });
      seen = generation_.load(std::memory_order_relaxed);
      if (stop_) return;
    }
    take(thread);
    if (busy_.fetch_sub(1, std::memory_order_acq_rel) == 1) {
      std::lock_guard<std::mutex> lock(mutex_);
      done_.notify_one();
    }
  }
}

}  // namespace fastgen
