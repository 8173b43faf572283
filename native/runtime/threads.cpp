#include "threads.h"

#if defined(__x86_64__)
#include <xmmintrin.h>
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

constexpr int kSpins = 4000, kYields = 64;

} // namespace

ThreadPool::ThreadPool(int threads) : n_(threads < 1 ? 1 : threads) {
  for (int i = 1; i < n_; ++i)
    workers_.emplace_back([this, i] { work(i); });
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
    publish(epoch_);
  }
  for (auto &w : workers_)
    w.join();
}

void ThreadPool::wait_while(std::atomic<uint32_t> &word, uint32_t old) {
  for (int i = 0; i < kSpins; ++i) {
    if (word.load(std::memory_order_acquire) != old)
      return;
    pause();
  }
  for (int i = 0; i < kYields; ++i) {
    if (word.load(std::memory_order_acquire) != old)
      return;
    std::this_thread::yield();
  }
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

void ThreadPool::barrier() {
  if (n_ == 1)
    return;
  const uint32_t gen = generation_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1) + 1 == static_cast<uint32_t>(n_)) {
    arrived_.store(0, std::memory_order_relaxed);
    publish(generation_);
  } else {
    wait_while(generation_, gen);
  }
}

} // namespace insula
