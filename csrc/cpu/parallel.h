// Our own small thread pool: no OpenMP, so nothing is shared with (or fights) other libraries.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace fastgen {

// FASTGEN_NUM_THREADS, else the smaller of the affinity mask and the cgroup's CPU quota (>= 1).
// Throws std::invalid_argument when the variable is not a number in 1..1024.
int default_threads();

// Runs items 0..n-1 of a job on `threads` threads, the caller among them. Each thread begins with a
// share of neighbouring items, the same one in every job of as many items: what it left in its
// core's caches is there when the next job reads or writes the same memory. Then it helps others.
// Workers wait for the next job for some 0.2 ms, most of it with their core on offer, then sleep.
class Pool {
 public:
  using Job = std::function<void(int64_t item, int thread)>;

  explicit Pool(int threads);
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  int threads() const { return threads_; }
  // The job must not throw. Not reentrant.
  void run(int64_t items, const Job& job);

 private:
  void work(int thread);
  void take(int thread);
  void wake_elsewhere();
  void sleep(int thread, uint64_t seen);

  struct alignas(64) Share {
    std::atomic<int64_t> next{0};
    int64_t end = 0;
  };

  struct Sleeper;

  int threads_;
  const Job* job_ = nullptr;
  std::unique_ptr<Share[]> shares_;
  std::unique_ptr<Sleeper[]> sleepers_;  // under mutex_
  std::atomic<uint64_t> state_{0};       // see parallel.cpp
  std::atomic<bool> stop_{false};
  std::atomic<bool> waiting_{false};  // the caller sleeps until nobody is inside
  std::mutex mutex_;
  std::condition_variable wake_, done_;
  std::vector<std::thread> workers_;
};

}  // namespace fastgen
