// The engine's own threads. One `run` is one step of the model: every thread executes the same
// function, claims work from shared counters and meets the others at barriers.
//
// Waiting: spin briefly, then yield for about the time between two steps, then park; two threads
// that only spin stall when another program wakes. Denormals are flushed to zero on these threads
// while they run, never on the caller's afterwards: the caller's floating-point state is restored.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace insula {

class ThreadPool {
public:
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool &) = delete;
  ThreadPool &operator=(const ThreadPool &) = delete;

  int size() const { return n_; }

  // Calls fn(thread) on every thread, 0 being the caller's; returns when all have returned.
  // Calls from several threads take turns.
  void run(const std::function<void(int)> &fn);

  // All threads inside `run` wait for each other. Whoever waits reads `next` into the cache
  // meanwhile: `bytes` of what it will need first after the barrier.
  void barrier(const uint8_t *next = nullptr, size_t bytes = 0);

private:
  void work(int id);
  void wait_while(std::atomic<uint32_t> &word, uint32_t old, const uint8_t *next = nullptr,
                  size_t bytes = 0);
  void publish(std::atomic<uint32_t> &word);

  const int n_;
  const long process_; // a fork has the pool but not its threads
  std::vector<std::thread> workers_;
  std::mutex mutex_;
  const std::function<void(int)> *fn_ = nullptr;
  bool stop_ = false;
  alignas(64) std::atomic<uint32_t> epoch_{0};
  alignas(64) std::atomic<uint32_t> arrived_{0};
  alignas(64) std::atomic<uint32_t> generation_{0};
  alignas(64) std::atomic<int> sleepers_{0};
};

// Work of one phase handed out in chunks: fast cores take more of them.
struct alignas(64) Claims {
  std::atomic<int> next{0};
  // The first item of a chunk of `size`, or `total` and beyond when nothing is left.
  int claim(int size) { return next.fetch_add(size, std::memory_order_relaxed); }
};

// Work of one phase in shares: each thread has a range of its own and takes from its front, so
// that it reads memory in one long run; who is done takes from the back of another's. Fast cores
// do more of it, and the items are the same whoever takes them.
class Shares {
public:
  struct Run {
    int first, count; // count 0: nothing is left
  };
  Shares(int threads, int items) : shares_(static_cast<size_t>(threads)), items_(items) {}
  void reset(); // everything is to be done; no thread may be taking meanwhile
  int first(int thread) const { return bound(thread); }
  Run take(int thread, int size);

private:
  struct alignas(64) Share {
    std::atomic<uint64_t> range{0}; // begin << 32 | end
  };
  int bound(int thread) const {
    return static_cast<int>(int64_t{items_} * thread / static_cast<int64_t>(shares_.size()));
  }
  std::vector<Share> shares_;
  int items_;
};

} // namespace insula
