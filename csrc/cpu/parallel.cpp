#include "parallel.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <sstream>
#include <stdexcept>
#include <string>
#include <system_error>

#include "cgroup.h"

#ifdef __linux__
#include <pthread.h>
#include <sched.h>
#endif

namespace fastgen {
namespace {

constexpr int kMaxThreads = 1024;
// In larger pools nobody is kept off a CPU: two system calls for each worker take 1.3 us, and among
// many CPUs one is idle.
constexpr int kMostKept = 16;
// A step of the engine takes 0.01 to 20 ms, the gap between two steps some microseconds: about 20
// us of spinning bridges the gap. Waking up costs 50 us in a virtual machine, more than many a
// step, so some 200 us more are waited, but in these the core is offered to whoever needs it: where
// another program, or the thread that is waited for, has only this core, spinning would be its
// ruin. After that an idle pool costs nothing.
constexpr int kSpins = 1500, kYields = 400;
// Parts of Pool::state_: workers inside the job, whether more may enter it, the number of the job.
constexpr uint64_t kInside = (1 << 15) - 1, kOpen = 1 << 15, kGeneration = 1 << 16;
static_assert(kMaxThreads < kInside, "workers are counted");

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

// Waits a little for a condition; whether it came.
template <class Done>
bool wait_for(const Done& done) {
  for (int i = 0; i < kSpins; ++i) {
    if (done()) return true;
    pause();
  }
  for (int i = 0; i < kYields; ++i) {
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

// A worker that sleeps or has slept: whether it is kept off a CPU, the CPUs it had before and has
// now.
struct Pool::Sleeper {
  bool asleep = false, apart = false;
#ifdef __linux__
  cpu_set_t before, now;
#endif
};

Pool::Pool(int threads) : threads_(std::clamp(threads, 1, kMaxThreads)) {
  shares_ = std::make_unique<Share[]>(threads_);
  sleepers_ = std::make_unique<Sleeper[]>(threads_);
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
    state_.fetch_add(kGeneration);
  }
  wake_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

// Linux likes to wake a thread on the CPU of the one that wakes it. That one is busy with the job
// from now on, so the worker would get a turn there after some 4 ms, when a small frame is long
// finished: on a virtual machine with two CPUs that befell every second frame of a camera. Workers
// that sleep are therefore kept off the caller's CPU, until they go to sleep again.
void Pool::wake_elsewhere() {
#ifdef __linux__
  if (threads_ > kMostKept) return;
  const int here = sched_getcpu();
  if (here < 0 || here >= CPU_SETSIZE) return;
  for (int i = 1; i < threads_; ++i) {
    Sleeper& sleeper = sleepers_[i];
    if (!sleeper.asleep || sleeper.apart) continue;
    const pthread_t worker = workers_[i - 1].native_handle();
    if (pthread_getaffinity_np(worker, sizeof(cpu_set_t), &sleeper.before) != 0) continue;
    if (!CPU_ISSET(here, &sleeper.before) || CPU_COUNT(&sleeper.before) < 2) continue;
    sleeper.now = sleeper.before;
    CPU_CLR(here, &sleeper.now);
    sleeper.apart = pthread_setaffinity_np(worker, sizeof(cpu_set_t), &sleeper.now) == 0;
  }
#endif
}

void Pool::sleep(int thread, uint64_t seen) {
  std::unique_lock<std::mutex> lock(mutex_);
  Sleeper& sleeper = sleepers_[thread];
#ifdef __linux__
  if (sleeper.apart) {
    cpu_set_t now;
    const pthread_t self = pthread_self();
    // Somebody else may have chosen CPUs for this process meanwhile: then those stay.
    if (pthread_getaffinity_np(self, sizeof(now), &now) == 0 && CPU_EQUAL(&now, &sleeper.now)) {
      // If it had all CPUs that there are for it, it shall have those that are added later, too.
      std::memset(&now, 0xff, sizeof(now));
      if (pthread_setaffinity_np(self, sizeof(now), &now) != 0 ||
          pthread_getaffinity_np(self, sizeof(now), &now) != 0 || !CPU_EQUAL(&now, &sleeper.before))
        (void)pthread_setaffinity_np(self, sizeof(now), &sleeper.before);
    }
  }
#endif
  sleeper.apart = false;
  sleeper.asleep = true;
  wake_.wait(lock, [&] { return state_.load() / kGeneration != seen; });
  sleeper.asleep = false;
}

void Pool::take(int thread) {
  for (int i = 0; i < threads_; ++i) {
    Share& share = shares_[(thread + i) % threads_];
    for (;;) {
      const int64_t item = share.next.fetch_add(1, std::memory_order_relaxed);
      if (item >= share.end) break;
      (*job_)(item, thread);
    }
  }
}

void Pool::run(int64_t items, const Job& job) {
  if (items <= 0) return;
  if (workers_.empty() || items == 1) {
    for (int64_t i = 0; i < items; ++i) job(i, 0);
    return;
  }
  // Nobody is inside: the last run has waited for that.
  job_ = &job;
  const int64_t each = items / threads_, more = items % threads_;
  int64_t first = 0;
  for (int t = 0; t < threads_; ++t) {
    shares_[t].next.store(first, std::memory_order_relaxed);
    first += each + (t < more ? 1 : 0);
    shares_[t].end = first;
  }
  {
    std::lock_guard<std::mutex> lock(mutex_);
    wake_elsewhere();
    state_.store((state_.load() | (kGeneration - 1)) + 1 + kOpen);
  }
  wake_.notify_all();
  take(0);
  // A worker that has not come by now has nothing left to do, and is not waited for.
  if ((state_.fetch_and(~kOpen) & kInside) == 0) return;
  if (wait_for([this] { return (state_.load() & kInside) == 0; })) return;
  std::unique_lock<std::mutex> lock(mutex_);
  waiting_ = true;
  done_.wait(lock, [this] { return (state_.load() & kInside) == 0; });
  waiting_ = false;
}

void Pool::work(int thread) {
  uint64_t seen = 0;  // generation
  for (;;) {
    uint64_t state = 0;
    if (!wait_for([&] { return (state = state_.load()) / kGeneration != seen; })) {
      sleep(thread, seen);
      state = state_.load();
    }
    seen = state / kGeneration;
    if (stop_) return;
    while (state / kGeneration == seen && (state & kOpen))
      if (state_.compare_exchange_weak(state, state + 1)) {
        take(thread);
        if (((state_.fetch_sub(1) - 1) & kInside) == 0 && waiting_) {
          std::lock_guard<std::mutex> lock(mutex_);
          done_.notify_one();
        }
        break;
      }
  }
}

}  // namespace fastgen
