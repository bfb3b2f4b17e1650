#include "isa.h"

#include <cstdlib>
#include <stdexcept>
#ifdef FASTGEN_X86
#include <cpuid.h>
#endif

namespace fastgen {
namespace {

#ifdef FASTGEN_X86
// Conversion of float16; not every compiler knows it as a name.
bool f16c() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid(1, &a, &b, &c, &d) && (c >> 29 & 1);
}
#endif

bool runs_here(const std::string& name) {
  if (name == "scalar") return true;
#ifdef FASTGEN_X86
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && f16c();
  if (name == "avx2") return avx2;
  if (name == "avx512")
    return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
  // Not every compiler knows it as a name: leaf 7, subleaf 1, eax bit 5.
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (name == "avx512_bf16")  // every such processor has VNNI too
    return runs_here("avx512_vnni") && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 5 & 1);
  if (name == "avx512_vnni") return runs_here("avx512") && __builtin_cpu_supports("avx512vnni");
#endif
  return false;
}

const Kernels* table(const std::string& name) {
#ifdef FASTGEN_X86
  if (name == "avx512_bf16") return kernels_avx512_bf16();
  if (name == "avx512_vnni") return kernels_avx512_vnni();
  if (name == "avx512") return kernels_avx512();
  if (name == "avx2") return kernels_avx2();
#endif
  return name == "scalar" ? kernels_scalar() : nullptr;
}

// Asked once: cpuid takes microseconds in a virtual machine.
const std::vector<std::string>& available() {
  static const std::vector<std::string> names = [] {
    std::vector<std::string> list;
    for (const char* name : {"avx512_bf16", "avx512_vnni", "avx512", "avx2", "scalar"})
      if (runs_here(name) && table(name)) list.push_back(name);
    return list;
  }();
  return names;
}

}  // namespace

std::vector<std::string> isa_available() { return available(); }

const Kernels& isa_kernels(const std::string& name) {
  const std::vector<std::string>& names = available();
  std::string wanted = name, from = "isa";
  if (wanted.empty()) {
    const char* env = std::getenv("FASTGEN_CPU_ISA");
    if (env && *env) wanted = env, from = "FASTGEN_CPU_ISA";
  }
  if (wanted.empty()) return *table(names.front());
  for (const std::string& candidate : names)
    if (candidate == wanted) return *table(candidate);
  std::string list;
  for (const std::string& candidate : names) list += (list.empty() ? "" : ", ") + candidate;
  throw std::invalid_argument(from + " is '" + wanted.substr(0, 40) + "', must be one of " + list +
                              " on this CPU; unset it to take the best");
}

}  // namespace fastgen
