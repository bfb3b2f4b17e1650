// The runtime's functions on a real device (static cudart, which loads without a driver).
#include "runtime.h"

#include <cuda_runtime.h>

namespace fastgen {
namespace gpu {
namespace runtime {
namespace {

cudaStream_t stream_of(void* stream) { return static_cast<cudaStream_t>(stream); }
cudaEvent_t event_of(void* event) { return static_cast<cudaEvent_t>(event); }

// An error that was returned must not be reported again by a later launch.
int clear(cudaError_t error) {
  if (error != cudaSuccess) cudaGetLastError();
  return error;
}

}  // namespace

int get_device(int* device) { return clear(cudaGetDevice(device)); }
int set_device(int device) { return clear(cudaSetDevice(device)); }

int allocate(void** memory, int64_t bytes, bool host) {
  const size_t size = static_cast<size_t>(bytes);
  return clear(host ? cudaHostAlloc(memory, size, cudaHostAllocPortable)
                    : cudaMalloc(memory, size));
}
int release(void* memory, bool host) {
  return clear(host ? cudaFreeHost(memory) : cudaFree(memory));
}
int memory_info(int64_t* free, int64_t* total) {
  size_t left = 0, all = 0;
  const int error = clear(cudaMemGetInfo(&left, &all));
  *free = static_cast<int64_t>(left);
  *total = static_cast<int64_t>(all);
  return error;
}
int copy(void* to, const void* from, int64_t bytes, void* stream) {
  return clear(
      cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyDefault, stream_of(stream)));
}

int create_stream(void** stream) {
  return clear(
      cudaStreamCreateWithFlags(reinterpret_cast<cudaStream_t*>(stream), cudaStreamNonBlocking));
}
int destroy_stream(void* stream) { return clear(cudaStreamDestroy(stream_of(stream))); }
int synchronize(void* stream) { return clear(cudaStreamSynchronize(stream_of(stream))); }
int is_capturing(void* stream, bool* capturing) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  const int error = clear(cudaStreamIsCapturing(stream_of(stream), &status));
  *capturing = status != cudaStreamCaptureStatusNone;
  return error;
}

int create_event(void** event, bool timing) {
  return clear(cudaEventCreateWithFlags(reinterpret_cast<cudaEvent_t*>(event),
                                        timing ? cudaEventDefault : cudaEventDisableTiming));
}
int destroy_event(void* event) { return clear(cudaEventDestroy(event_of(event))); }
int record(void* event, void* stream) {
  return clear(cudaEventRecord(event_of(event), stream_of(stream)));
}
int wait_event(void* stream, void* event) {
  return clear(cudaStreamWaitEvent(stream_of(stream), event_of(event), 0));
}
int synchronize_event(void* event) { return clear(cudaEventSynchronize(event_of(event))); }
int elapsed(float* milliseconds, void* begin, void* end) {
  return clear(cudaEventElapsedTime(milliseconds, event_of(begin), event_of(end)));
}

int begin_capture(void* stream) {
  // Relaxed: other threads may allocate meanwhile.
  return clear(cudaStreamBeginCapture(stream_of(stream), cudaStreamCaptureModeRelaxed));
}
int end_capture(void* stream, void** graph) {
  cudaGraph_t captured = nullptr;
  cudaGraphExec_t ready = nullptr;
  *graph = nullptr;
  cudaError_t error = cudaStreamEndCapture(stream_of(stream), &captured);
  if (error == cudaSuccess && captured) {
    error = cudaGraphInstantiate(&ready, captured, 0);
    if (error == cudaSuccess) error = cudaGraphUpload(ready, stream_of(stream));
    cudaGraphDestroy(captured);
  }
  if (error != cudaSuccess && ready) {
    cudaGraphExecDestroy(ready);
    ready = nullptr;
  }
  *graph = ready;
  return clear(error);
}
int launch_graph(void* graph, void* stream) {
  return clear(cudaGraphLaunch(static_cast<cudaGraphExec_t>(graph), stream_of(stream)));
}
int destroy_graph(void* graph) {
  return clear(cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(graph)));
}

const char* error_text(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }
int driver_version(int* version) { return clear(cudaDriverGetVersion(version)); }

}  // namespace runtime
}  // namespace gpu
}  // namespace fastgen
