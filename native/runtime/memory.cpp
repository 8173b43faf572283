#include "memory.h"

#include <new>
#include <utility>

#if defined(_WIN32)
#include <windows.h>
#else
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace insula {

#if defined(_WIN32)
Buffer::Buffer(size_t bytes) : size_(bytes + 4096) {
  data_ = static_cast<uint8_t *>(
      VirtualAlloc(nullptr, size_, MEM_RESERVE | MEM_COMMIT, PAGE_READWRITE));
  if (!data_)
    throw std::bad_alloc();
}
Buffer::~Buffer() {
  if (data_)
    VirtualFree(data_, 0, MEM_RELEASE);
}
void drop_pages(const uint8_t *, size_t) {}
void populate(uint8_t *, size_t) {}
#else
Buffer::Buffer(size_t bytes) : size_(bytes + 4096) {
  void *p = mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED)
    throw std::bad_alloc();
#if defined(MADV_HUGEPAGE)
  if (size_ >= (size_t{4} << 20))
    madvise(p, size_, MADV_HUGEPAGE);
#endif
  data_ = static_cast<uint8_t *>(p);
}
Buffer::~Buffer() {
  if (data_)
    munmap(data_, size_);
}
void drop_pages(const uint8_t *data, size_t bytes) {
  const uintptr_t page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const uintptr_t a = (reinterpret_cast<uintptr_t>(data) + page - 1) / page * page;
  const uintptr_t b = (reinterpret_cast<uintptr_t>(data) + bytes) / page * page;
  if (a < b)
    madvise(reinterpret_cast<void *>(a), b - a, MADV_DONTNEED);
}
void populate([[maybe_unused]] uint8_t *data, [[maybe_unused]] size_t bytes) {
#if defined(__linux__)
  constexpr int kPopulateWrite = 23; // MADV_POPULATE_WRITE, Linux 5.14
  const uintptr_t page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const uintptr_t a = reinterpret_cast<uintptr_t>(data) / page * page;
  madvise(reinterpret_cast<void *>(a), reinterpret_cast<uintptr_t>(data) + bytes - a,
          kPopulateWrite);
#endif
}
#endif

Buffer &Buffer::operator=(Buffer &&o) noexcept {
  std::swap(data_, o.data_);
  std::swap(size_, o.size_);
  return *this;
}

} // namespace insula
