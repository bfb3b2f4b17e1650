// Our own small thread pool: no OpenMP, so nothing is shared with (or fights) other libraries.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace fastgen {

// FASTGEN_NUM_THREADS, else the smaller of the affinity mask and the cgroup's CPU quota (>= 1).
// Throws std::invalid_argument when the variable is not a number in 1..1024.
int default_threads();

// Runs items 0..n-1 of a job on `threads` threads, the caller among them. Workers take items from
// a shared counter, wait for the next job with a spin of some microseconds, then sleep. The caller
// waits for those alone that joined: on a busy machine one that wakes late costs nothing.
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
  bool join(uint64_t* seen);

  int threads_;
  const Job* job_ = nullptr;
  int64_t items_ = 0;
  std::atomic<int64_t> next_{0};
  // Number of the job, whether it takes no more workers, and how many work on it.
  static constexpr int kCountBits = 16;
  static constexpr uint64_t kClosed = uint64_t{1} << 15, kCount = kClosed - 1;
  std::atomic<uint64_t> state_{kClosed};
  std::atomic<bool> stop_{false};
  std::mutex mutex_;
  std::condition_variable wake_, done_;
  std::vector<std::thread> workers_;
};

}  // namespace fastgen
