#include "op_pool.h"

#include <pthread.h>

#include <memory>
#include <new>

#include "arena.h"

namespace fastgen {
namespace {

struct Shared {
  std::mutex mutex;
  std::unique_ptr<Pool> pool;
};

// Never destroyed: worker threads must not be joined while static objects go away. Made when the
// library is loaded, so that no fork happens in between.
Shared* make_shared_state() {
  static Shared* state = nullptr;
  state = new Shared;
  // A forked child has neither the workers nor, perhaps, an unlocked mutex. It is put right before
  // it has a second thread that could look on.
  (void)pthread_atfork(nullptr, nullptr, [] {
    new (&state->mutex) std::mutex;
    (void)state->pool.release();
  });
  return state;
}

Shared& shared = *make_shared_state();

}  // namespace

int op_threads() {
  static const int count = default_threads();
  return count;
}

void op_parallel(int64_t items, const Pool::Job& job) {
  Shared& s = shared;
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
