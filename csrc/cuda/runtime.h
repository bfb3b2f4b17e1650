// Memory, streams, events and captured graphs for the cuda backend. Every function returns a
// cudaError_t; the emulation in tests/ has its own definitions.
#pragma once

#include <cstdint>

namespace fastgen {
namespace gpu {
namespace runtime {

int get_device(int* device);
int set_device(int device);
int allocate(void** memory, int64_t bytes, bool host);  // host: page-locked
int release(void* memory, bool host);
int memory_info(int64_t* free, int64_t* total);
int copy(void* to, const void* from, int64_t bytes, void* stream);  // either side anywhere

int create_stream(void** stream);
int destroy_stream(void* stream);
int synchronize(void* stream);
int is_capturing(void* stream, bool* capturing);

int create_event(void** event, bool timing);
int destroy_event(void* event);
int record(void* event, void* stream);
int wait_event(void* stream, void* event);
int synchronize_event(void* event);
int elapsed(float* milliseconds, void* begin, void* end);

int begin_capture(void* stream);
int end_capture(void* stream, void** graph);  // null graph: the capture failed or is thrown away
int launch_graph(void* graph, void* stream);
int destroy_graph(void* graph);

const char* error_text(int error);
int driver_version(int* version);

}  // namespace runtime
}  // namespace gpu
}  // namespace fastgen
