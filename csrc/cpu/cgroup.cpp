#include "cgroup.h"

#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <fstream>

namespace fastgen {
namespace {

constexpr size_t kNone = SIZE_MAX;

// A number in a file; `kNone` where there is none ("max", no file).
size_t number(const std::string& path) {
  std::ifstream file(path);
  unsigned long long value = 0;
  return file >> value ? static_cast<size_t>(value) : kNone;
}

// A line "name value" or "name: value kB" of a file.
size_t entry(const std::string& path, const std::string& name, size_t unit) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);)
    if (line.compare(0, name.size(), name) == 0)
      return static_cast<size_t>(std::strtoull(line.c_str() + name.size(), nullptr, 10)) * unit;
  return kNone;
}

struct Group {
  size_t limit, left;
};

Group group(const std::string& directory) {
  const bool second = number(directory + "/memory.current") != kNone;
  const size_t limit = number(directory + (second ? "/memory.max" : "/memory.limit_in_bytes"));
  if (limit == kNone || limit == 0) return {kNone, kNone};
  size_t used = number(directory + (second ? "/memory.current" : "/memory.usage_in_bytes"));
  if (used == kNone) return {limit, limit};
  // Pages of files that were not used of late are given back on demand.
  const size_t cache =
      entry(directory + "/memory.stat", second ? "inactive_file " : "total_inactive_file ", 1);
  if (cache != kNone) used -= std::min(used, cache);
  return {limit, limit - std::min(limit, used)};
}

}  // namespace

bool read_line(const std::string& path, std::string* line) {
  std::ifstream file(path);
  return file && std::getline(file, *line);
}

std::vector<std::string> cgroup_directories(const std::string& controller) {
  const std::string first_root = "/sys/fs/cgroup/" + controller;
  std::vector<std::string> directories = {"/sys/fs/cgroup", first_root};
  std::ifstream file("/proc/self/cgroup");
  for (std::string line; file && std::getline(file, line);) {
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const std::string path = line.substr(second + 1);
    const bool second_version = controllers.empty();
    if (!second_version && controllers.find(controller) == std::string::npos) continue;
    // A limit of any group above holds, too.
    for (std::string group = path; group.size() > 1; group.resize(group.rfind('/'))) {
      directories.push_back((second_version ? "/sys/fs/cgroup" : first_root) + group);
      if (group.rfind('/') == std::string::npos) break;
    }
  }
  return directories;
}

size_t memory_limit() {
  const long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGE_SIZE);
  size_t limit = pages > 0 && page > 0 ? static_cast<size_t>(pages) * page : kNone;
  for (const std::string& directory : cgroup_directories("memory"))
    limit = std::min(limit, group(directory).limit);
  return limit;
}

size_t memory_available() {
  size_t left = std::min(memory_limit(), entry("/proc/meminfo", "MemAvailable:", 1024));
  for (const std::string& directory : cgroup_directories("memory"))
    left = std::min(left, group(directory).left);
  return left;
}

}  // namespace fastgen
