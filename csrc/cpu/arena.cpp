#include "arena.h"

#include <sys/mman.h>

namespace fastgen {

void Arena::reserve(size_t bytes) {
  constexpr size_t kHuge = size_t{2} << 20;
  bytes = (bytes + kHuge - 1) & ~(kHuge - 1);
  const bool wasteful = size_ > 4 * bytes && size_ > (size_t{64} << 20);
  if (bytes <= size_ && !wasteful) return;
  release();
  void* block = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
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

}  // namespace fastgen
