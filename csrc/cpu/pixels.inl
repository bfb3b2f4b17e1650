// Included inside an instruction set's anonymous namespace.
#pragma once

// Pixel p of a row with a stride known only at run time. Three multiples of the stride reach seven
// pixels with the address arithmetic of a load; more would not stay in registers.
template <class T>
struct Pixels {
  int64_t one, three, five, seven;  // bytes

  explicit Pixels(int64_t stride) : one(stride * sizeof(T)) {
    three = 3 * one, five = 5 * one, seven = 7 * one;
    __asm__("" : "+r"(one), "+r"(three), "+r"(five), "+r"(seven));
  }
  const T* at(const T* x, int p) const {
    const char* base = reinterpret_cast<const char*>(x);
    for (; p >= 7; p -= 7) base += seven;
    const int64_t offset = p == 3 ? three : p == 5 ? five : p == 6 ? three * 2 : one * p;
    return reinterpret_cast<const T*>(base + offset);
  }
};
