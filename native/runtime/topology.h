// How many threads this process may use to good effect, and what the machine is.
#pragma once
#include <cstdint>
#include <string>

namespace insula {

struct Topology {
  int logical = 1;  // processors of the machine
  int allowed = 1;  // of these, those the affinity mask admits
  int physical = 1; // distinct cores among the allowed ones
  double quota = 0; // processors the control group grants, 0: no limit
  int threads = 1;  // min(physical, floor(quota)), at least 1
  std::string name; // the processor's name for people
};

Topology topology();

// GB/s that `threads` threads read together from `megabytes` of memory with software prefetch.
double read_bandwidth(int threads, size_t megabytes);

} // namespace insula
