// csrc/cuda/runtime.h on the host: memory is the host's and known to the checks, streams run at
// once.
#include "../../csrc/cuda/runtime.h"

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>

#include "emulate.h"

namespace fastgen {
namespace emulate {

int64_t& memory_limit() {
  static int64_t bytes = int64_t{1} << 40;
  return bytes;
}

void undeclare(uint64_t address);

}  // namespace emulate

namespace gpu {
namespace runtime {
namespace {

using Clock = std::chrono::steady_clock;
struct Mark {
  Clock::time_point time;
};
int handles = 0;

constexpr int kNoMemory = 2;

}  // namespace

int get_device(int* device) {
  *device = 0;
  return 0;
}
int set_device(int device) { return device == 0 ? 0 : 101; }

int allocate(void** memory, int64_t bytes, bool host) {
  if (bytes > emulate::memory_limit()) return kNoMemory;
  const size_t size = (static_cast<size_t>(bytes) + 255) / 256 * 256;
  *memory = std::aligned_alloc(256, size);
  if (!*memory) return kNoMemory;
  std::memset(*memory, 0xff, size);  // NaN in every type
  if (!host) emulate::declare(reinterpret_cast<uint64_t>(*memory), bytes, true, "device memory");
  return 0;
}
int release(void* memory, bool host) {
  if (!host) emulate::undeclare(reinterpret_cast<uint64_t>(memory));
  std::free(memory);
  return 0;
}
int memory_info(int64_t* free, int64_t* total) {
  *free = *total = emulate::memory_limit();
  return 0;
}
int copy(void* to, const void* from, int64_t bytes, void*) {
  emulate::submit([=] { std::memcpy(to, from, static_cast<size_t>(bytes)); });
  return 0;
}

int create_stream(void** stream) {
  *stream = reinterpret_cast<void*>(static_cast<intptr_t>(++handles));
  return 0;
}
int destroy_stream(void*) { return 0; }
int synchronize(void*) { return 0; }
int is_capturing(void*, bool* capturing) {
  *capturing = false;
  return 0;
}

int create_event(void** event, bool) {
  *event = new Mark;
  return 0;
}
int destroy_event(void* event) {
  delete static_cast<Mark*>(event);
  return 0;
}
int record(void* event, void*) {
  static_cast<Mark*>(event)->time = Clock::now();
  return 0;
}
int wait_event(void*, void*) { return 0; }
int synchronize_event(void*) { return 0; }
int elapsed(float* milliseconds, void* begin, void* end) {
  const auto span = static_cast<Mark*>(end)->time - static_cast<Mark*>(begin)->time;
  *milliseconds = std::chrono::duration<float, std::milli>(span).count();
  return 0;
}

int begin_capture(void*) {
  emulate::begin_capture();
  return 0;
}
int end_capture(void*, void** graph) {
  *graph = new std::function<void()>(emulate::end_capture());
  return 0;
}
int launch_graph(void* graph, void*) {
  (*static_cast<std::function<void()>*>(graph))();
  return 0;
}
int destroy_graph(void* graph) {
  delete static_cast<std::function<void()>*>(graph);
  return 0;
}

const char* error_text(int error) { return error == kNoMemory ? "out of memory" : "an error"; }
int driver_version(int* version) {
  *version = 13000;
  return 0;
}

}  // namespace runtime
}  // namespace gpu
}  // namespace fastgen
