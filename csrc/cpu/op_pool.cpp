#include "op_pool.h"

#include <unistd.h>

#include <memory>
#include <new>

#include "arena.h"

namespace fastgen {
namespace {

struct Shared {
  std::mutex mutex;
  std::unique_ptr<Pool> pool;
  pid_t owner = getpid();
};

// Never destroyed: worker threads must not be joined while static objects go away.
Shared& shared() {
  static Shared* instance = new Shared;
  // A forked child has neither the workers nor, perhaps, an unlocked mutex.
  if (instance->owner != getpid()) {
    new (&instance->mutex) std::mutex;
    (void)instance->pool.release();
    instance->owner = getpid();
  }
  return *instance;
}

}  // namespace

int op_threads() {
  static const int count = default_threads();
  return count;
}

void op_parallel(int64_t items, const Pool::Job& job) {
  Shared& s = shared();
  std::unique_lock<std::mutex> lock(s.mutex, std::try_to_lock);
  if (!lock || items == 1) {
    for (int64_t i = 0; i < items; ++i) job(i, 0);
    return;
  }
  if (!s.pool) s.pool = std::make_unique<Pool>(op_threads());
  s.pool->run(items, job);
}

float* op_scratch(size_t bytes) {
  thread_local Arena arena;
  arena.reserve(bytes);
  return arena.data();
}

}  // namespace fastgen
