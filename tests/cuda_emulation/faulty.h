// Kernels that try the emulation itself.
#pragma once

#include <cstdint>
#include <map>
#include <string>

// Each takes 64 floats to read and 64 to write; all but "correct" have one mistake.
const std::map<std::string, void (*)(uint64_t, uint64_t)>& faulty_kernels();
// c (16x8 floats) = a (16 x depth) b (depth x 8), depth 8 for dtype 0 (tf32) and 16 otherwise.
void run_fragments(int dtype, uint64_t a, uint64_t b, uint64_t c);
