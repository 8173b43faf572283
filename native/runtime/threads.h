// The engine's own threads. One `run` is one step of the model: every thread executes the same
// function, claims work from shared counters and meets the others at barriers.
//
// Waiting: spin briefly, then yield, then park; two spinning threads stall when another program
// wakes. Denormals are flushed to zero on these threads while they run, never on the caller's
// afterwards: the caller's floating-point state is restored.
#pragma once
#include <atomic>
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

  // All threads inside `run` wait for each other.
  void barrier();

private:
  void work(int id);
  void wait_while(std::atomic<uint32_t> &word, uint32_t old);
  void publish(std::atomic<uint32_t> &word);

  const int n_;
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

} // namespace insula
