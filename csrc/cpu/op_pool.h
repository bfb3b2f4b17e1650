// One thread pool for all fused operations of the process (an engine has its own).
#pragma once

#include "parallel.h"

namespace fastgen {

// Threads that op_parallel would use: default_threads() at the first call.
int op_threads();

// Runs items 0..n-1 on the operations' pool, the caller among them; `thread` is below op_threads().
// While another thread of the process is inside, the items run on the caller alone: two frames at
// once share the machine instead of queueing. Usable in a forked child. The job must not throw.
void op_parallel(int64_t items, const Pool::Job& job);

// Scratch memory of the calling thread's current operation, 64-byte aligned, at least `bytes`, kept
// until the thread asks for more or ends. Not zeroed. Throws OutOfMemory.
float* op_scratch(size_t bytes);

}  // namespace fastgen
