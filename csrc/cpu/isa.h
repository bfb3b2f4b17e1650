// The one place that picks the instruction set.
#pragma once

#include <string>
#include <vector>

#include "kernels.h"

namespace fastgen {

// Instruction sets that this build has and this CPU runs, best first.
std::vector<std::string> isa_available();

// Kernels by name; "" takes FASTGEN_CPU_ISA, or the best. Throws std::invalid_argument with one
// line when the name is unknown or the CPU lacks it.
const Kernels& isa_kernels(const std::string& name);

}  // namespace fastgen
