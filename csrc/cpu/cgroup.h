// What the container or control group of this process grants.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace fastgen {

// Directories of the groups of this process, up to the root; of version 1 those of a controller.
std::vector<std::string> cgroup_directories(const std::string& controller);
bool read_line(const std::string& path, std::string* line);

// What this process could have at most: the machine's memory or its container's limit. Systems that
// overcommit would grant more and then kill the process.
size_t memory_limit();
// What is left of it: what the system calls available, and the room below every group's limit.
size_t memory_available();

}  // namespace fastgen
