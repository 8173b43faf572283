#include "threads.h"

#include <algorithm>
#include <chrono>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif
#if !defined(_WIN32)
#include <unistd.h>
#endif

namespace insula {
namespace {

#if defined(__x86_64__)
class FlushDenormals {
public:
  FlushDenormals() : old_(_mm_getcsr()) { _mm_setcsr(old_ | 0x8040); }
  ~FlushDenormals() { _mm_setcsr(old_); }

private:
  unsigned old_;
};
void pause() { _mm_pause(); }
#elif defined(__aarch64__)
class FlushDenormals {
public:
  FlushDenormals() {
    __asm__ volatile("mrs %0, fpcr" : "=r"(old_));
    __asm__ volatile("msr fpcr, %0" ::"r"(old_ | 1ull << 24));
  }
  ~FlushDenormals() { __asm__ volatile("msr fpcr, %0" ::"r"(old_)); }

private:
  unsigned long long old_;
};
void pause() { __asm__ volatile("yield"); }
#else
struct FlushDenormals {
  FlushDenormals() {}
};
void pause() {}
#endif

constexpr int kSpins = 2000;
constexpr auto kAwake = std::chrono::microseconds(1000);

#if defined(_WIN32)
long process() { return 0; }
#else
long process() { return static_cast<long>(getpid()); }
#endif

// As an instruction: GCC takes a function that only prefetches for one without effect.
#if defined(__x86_64__)
void prefetch(const uint8_t *p) { __asm__ volatile("prefetcht1 %0" ::"m"(*p)); }
#elif defined(__aarch64__)
void prefetch(const uint8_t *p) { __asm__ volatile("prfm pldl2keep, [%0]" ::"r"(p)); }
#else
void prefetch(const uint8_t *) {}
#endif

} // namespace

ThreadPool::ThreadPool(int threads) : n_(threads < 1 ? 1 : threads), process_(process()) {
  for (int i = 1; i < n_; ++i)
    workers_.emplace_back([this, i] { work(i); });
}

ThreadPool::~ThreadPool() {
  if (process() != process_) { // nobody to wait for
    for (auto &w : workers_)
      w.detach();
    return;
  }
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
    publish(epoch_);
  }
  for (auto &w : workers_)
    w.join();
}

void ThreadPool::wait_while(std::atomic<uint32_t> &word, uint32_t old, const uint8_t *next,
                            size_t bytes) {
  for (size_t i = 0; i < bytes; i += 64) {
    if (word.load(std::memory_order_acquire) != old)
      return;
    prefetch(next + i);
  }
  for (int i = 0; i < kSpins; ++i) {
    if (word.load(std::memory_order_acquire) != old)
      return;
    pause();
  }
  const auto parked = std::chrono::steady_clock::now() + kAwake;
  do {
    if (word.load(std::memory_order_acquire) != old)
      return;
    std::this_thread::yield();
  } while (std::chrono::steady_clock::now() < parked);
  sleepers_.fetch_add(1);
  while (word.load() == old)
    word.wait(old);
  sleepers_.fetch_sub(1);
}

void ThreadPool::publish(std::atomic<uint32_t> &word) {
  word.fetch_add(1);
  if (sleepers_.load())
    word.notify_all();
}

void ThreadPool::run(const std::function<void(int)> &fn) {
  std::lock_guard<std::mutex> lock(mutex_);
  FlushDenormals flush;
  fn_ = &fn;
  publish(epoch_);
  fn(0);
  barrier();
}

void ThreadPool::work(int id) {
  FlushDenormals flush;
  for (uint32_t seen = 0;; ++seen) {
    wait_while(epoch_, seen);
    if (stop_)
      return;
    (*fn_)(id);
    barrier();
  }
}

void ThreadPool::barrier(const uint8_t *next, size_t bytes) {
  if (n_ == 1)
    return;
  const uint32_t gen = generation_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1) + 1 == static_cast<uint32_t>(n_)) {
    arrived_.store(0, std::memory_order_relaxed);
    publish(generation_);
  } else {
    wait_while(generation_, gen, next, bytes);
  }
}

void Shares::reset() {
  for (size_t i = 0; i < shares_.size(); ++i) {
    const int t = static_cast<int>(i);
    shares_[i].range.store(static_cast<uint64_t>(bound(t)) << 32 |
                               static_cast<uint32_t>(bound(t + 1)),
                           std::memory_order_relaxed);
  }
}

Shares::Run Shares::take(int thread, int size) {
  const int n = static_cast<int>(shares_.size());
  for (int i = 0; i < n; ++i) { // its own first, then its neighbours'
    std::atomic<uint64_t> &range = shares_[static_cast<size_t>((thread + i) % n)].range;
    uint64_t old = range.load(std::memory_order_relaxed);
    for (;;) {
      const int begin = static_cast<int>(old >> 32), end = static_cast<int>(old & 0xffffffffu);
      const int count = std::min(size, end - begin);
      if (count <= 0)
        break;
      const int from = i == 0 ? begin + count : begin, to = i == 0 ? end : end - count;
      if (range.compare_exchange_weak(old,
                                      static_cast<uint64_t>(from) << 32 | static_cast<uint32_t>(to),
                                      std::memory_order_relaxed))
        return {i == 0 ? begin : to, count};
    }
  }
  return {0, 0};
}

} // namespace insula
