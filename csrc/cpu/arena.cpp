#include "arena.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <string>

#include "cgroup.h"

namespace fastgen {

#if defined(__SANITIZE_ADDRESS__)

// For the sanitizer every block has its own size and is new and full of NaN, so that what lies
// behind it, or was never written, is not read unnoticed.
void Arena::reserve(size_t bytes) {
  release();
  void* block = nullptr;
  if (bytes > memory_limit() || posix_memalign(&block, 64, std::max<size_t>(bytes, 64)))
    throw OutOfMemory("the cpu backend cannot allocate " + std::to_string(bytes >> 20) +
                      " MiB for this input size; use a smaller image");
  std::memset(block, 0xff, bytes);
  data_ = static_cast<float*>(block);
  size_ = bytes;
}

void Arena::release() {
  std::free(data_);
  data_ = nullptr;
  size_ = 0;
}

#else

void Arena::reserve(size_t bytes) {
  constexpr size_t kHuge = size_t{2} << 20;
  bytes = (bytes + kHuge - 1) & ~(kHuge - 1);
  const bool wasteful = size_ > 4 * bytes && size_ > (size_t{64} << 20);
  if (bytes <= size_ && !wasteful) return;
  release();
  const size_t limit = memory_limit();
  void* block = bytes > limit ? MAP_FAILED
                              : mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                                     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (block == MAP_FAILED)
    throw OutOfMemory("the cpu backend cannot allocate " + std::to_string(bytes >> 20) +
                      " MiB for this input size; use a smaller image");
#ifdef MADV_HUGEPAGE
  madvise(block, bytes, MADV_HUGEPAGE);
#endif
  data_ = static_cast<float*>(block);
  size_ = bytes;
}

void Arena::release() {
  if (data_) munmap(data_, size_);
  data_ = nullptr;
  size_ = 0;
}

#endif

}  // namespace fastgen
