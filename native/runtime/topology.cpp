#include "topology.h"

#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <memory>
#include <set>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <sched.h>
#endif

namespace insula {
namespace {

#if defined(__linux__)
bool read_number(const std::string &path, long long *out) {
  std::ifstream f(path);
  return static_cast<bool>(f >> *out);
}

// Processors granted by cgroup v2 or v1, walking up from this process's group; 0 if unlimited.
double cgroup_quota() {
  double best = 0;
  auto take = [&](double q) {
    if (q > 0 && (best == 0 || q < best))
      best = q;
  };
  std::ifstream groups("/proc/self/cgroup");
  std::string line;
  while (std::getline(groups, line)) {
    size_t a = line.find(':'), b = line.find(':', a + 1);
    if (b == std::string::npos)
      continue;
    const std::string kind = line.substr(a + 1, b - a - 1);
    std::string path = line.substr(b + 1);
    const bool v2 = kind.empty();
    if (!v2 && kind.find("cpu") == std::string::npos)
      continue;
    const std::string root = v2 ? "/sys/fs/cgroup" : "/sys/fs/cgroup/cpu";
    for (;;) {
      const std::string dir = root + (path == "/" ? "" : path);
      if (v2) {
        std::ifstream f(dir + "/cpu.max");
        std::string quota;
        double period = 0;
        if (f >> quota >> period && quota != "max" && period > 0)
          take(std::strtod(quota.c_str(), nullptr) / period);
      } else {
        long long q = 0, p = 0;
        if (read_number(dir + "/cpu.cfs_quota_us", &q) && q > 0 &&
            read_number(dir + "/cpu.cfs_period_us", &p) && p > 0)
          take(static_cast<double>(q) / static_cast<double>(p));
      }
      if (path.empty() || path == "/")
        break;
      size_t slash = path.rfind('/');
      path = slash == 0 || slash == std::string::npos ? "/" : path.substr(0, slash);
    }
  }
  return best;
}
#endif

} // namespace

Topology topology() {
  Topology t;
  t.logical = static_cast<int>(std::thread::hardware_concurrency());
  if (t.logical < 1)
    t.logical = 1;
  t.allowed = t.physical = t.logical;
#if defined(__linux__)
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) == 0) {
    std::set<std::pair<long long, long long>> cores;
    t.allowed = 0;
    for (int i = 0; i < CPU_SETSIZE; ++i) {
      if (!CPU_ISSET(i, &set))
        continue;
      ++t.allowed;
      const std::string dir = "/sys/devices/system/cpu/cpu" + std::to_string(i) + "/topology/";
      long long package = 0, core = i;
      read_number(dir + "physical_package_id", &package);
      if (!read_number(dir + "core_id", &core))
        core = 100000 + i;
      cores.insert({package, core});
    }
    t.physical = static_cast<int>(cores.size());
  }
  t.quota = cgroup_quota();
  std::ifstream cpus("/proc/cpuinfo");
  std::string line;
  while (std::getline(cpus, line))
    if (line.rfind("model name", 0) == 0) {
      t.name = line.substr(line.find(':') + 2);
      break;
    }
#endif
  t.threads = t.physical;
  if (t.quota > 0 && std::floor(t.quota) < t.threads)
    t.threads = static_cast<int>(t.quota);
  if (t.threads < 1)
    t.threads = 1;
  return t;
}

double read_bandwidth(int threads, size_t megabytes) {
  const size_t n = (megabytes << 20) / 8 / static_cast<size_t>(threads) / 64 * 64;
  std::vector<std::unique_ptr<uint64_t[]>> parts;
  for (int i = 0; i < threads; ++i) {
    parts.emplace_back(new uint64_t[n + 512]);
    std::memset(parts.back().get(), i + 1, (n + 512) * 8);
  }
  std::vector<uint64_t> sums(static_cast<size_t>(threads) * 8);
  auto read = [&](int id) {
    const uint64_t *p = parts[static_cast<size_t>(id)].get();
    uint64_t s[8] = {};
    for (size_t i = 0; i < n; i += 8) {
      __builtin_prefetch(p + i + 256);
      for (int k = 0; k < 8; ++k)
        s[k] += p[i + static_cast<size_t>(k)];
    }
    for (uint64_t v : s)
      sums[static_cast<size_t>(id) * 8] += v;
  };
  double best = 0;
  for (int r = 0; r < 5; ++r) {
    auto t0 = std::chrono::steady_clock::now();
    std::vector<std::thread> team;
    for (int i = 1; i < threads; ++i)
      team.emplace_back(read, i);
    read(0);
    for (auto &t : team)
      t.join();
    const double s = std::chrono::duration<double>(std::chrono::steady_clock::now() - t0).count();
    const double gbps = static_cast<double>(n * 8 * static_cast<size_t>(threads)) / s / 1e9;
    best = gbps > best ? gbps : best;
  }
  return best;
}

} // namespace insula
