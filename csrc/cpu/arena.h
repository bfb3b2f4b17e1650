// One block of memory for all activations of a run.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>
#include <string>

namespace fastgen {

// std::bad_alloc with a message; Python sees a MemoryError.
class OutOfMemory : public std::bad_alloc {
 public:
  explicit OutOfMemory(std::string message) : message_(std::move(message)) {}
  const char* what() const noexcept override { return message_.c_str(); }

 private:
  std::string message_;
};

// Pages are taken from the system on first touch, huge ones where it has them. Contents do not
// survive `reserve` when it grows or shrinks.
class Arena {
 public:
  Arena() = default;
  ~Arena() { release(); }
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  // At least `bytes`; gives memory back when it holds over 4 times as much and over 64 MiB.
  void reserve(size_t bytes);
  void release();
  float* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  float* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace fastgen
