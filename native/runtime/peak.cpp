#include "peak.h"

#include <algorithm>
#include <chrono>
#include <thread>
#include <vector>

#include "../kernels/table.h"

namespace insula {
namespace {

constexpr int kRounds = 5;
constexpr size_t kSteps = 1 << 14;
constexpr double kSeconds = 0.02; // a round; long enough for a clock that rises with the load

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point t) {
  return std::chrono::duration<double>(Clock::now() - t).count();
}

} // namespace

double int8_peak(const KernelTable &table, int threads) {
  std::vector<double> rates(static_cast<size_t>(threads));
  auto run = [&](int id) {
    const auto begun = Clock::now();
    double products = 0, seconds = 0;
    do {
      products += static_cast<double>(table.peak(kSteps));
      seconds = seconds_since(begun);
    } while (seconds < kSeconds);
    rates[static_cast<size_t>(id)] = products / seconds;
  };
  double best = 0;
  for (int r = 0; r < kRounds; ++r) {
    std::vector<std::thread> team;
    for (int i = 1; i < threads; ++i)
      team.emplace_back(run, i);
    run(0);
    for (std::thread &t : team)
      t.join();
    double sum = 0;
    for (double rate : rates)
      sum += rate;
    best = std::max(best, sum);
  }
  return 2 * best / 1e9;
}

} // namespace insula
