#if !defined(_WIN32)

#include "mapping.h"

#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <fcntl.h>
#include <mutex>
#include <sys/mman.h>
#include <sys/stat.h>
#include <system_error>
#include <unistd.h>

namespace insula {

struct MappingSlot {
  std::atomic<std::uintptr_t> begin{0};
  std::atomic<std::uintptr_t> end{0};
  std::atomic<bool> poisoned{false};
  MappingSlot *next = nullptr; // written once, before the slot is published
};

namespace {

std::atomic<MappingSlot *> slots{nullptr};
std::mutex slots_mutex; // guards claiming and the handler's installation, never the handler
std::atomic<std::size_t> page_size{4096};
struct sigaction previous_action;
std::atomic<int> depth{0}; // how many times the signal is being passed on right now

static_assert(std::atomic<std::uintptr_t>::is_always_lock_free, "the handler may not lock");

// Runs inside the signal: only atomics, mmap (a plain system call) and sigaction.
bool replace_by_zeros(std::uintptr_t address) {
  for (MappingSlot *slot = slots.load(std::memory_order_acquire); slot; slot = slot->next) {
    const std::uintptr_t begin = slot->begin.load(std::memory_order_acquire);
    const std::uintptr_t end = slot->end.load(std::memory_order_acquire);
    if (begin == 0 || address < begin || address >= end) {
      continue;
    }
    // What follows a truncation is gone too, so the whole rest goes at once: one fault, not one
    // for each page.
    slot->poisoned.store(true, std::memory_order_release);
    const std::uintptr_t page = address & ~(page_size.load(std::memory_order_relaxed) - 1);
    void *zeros = mmap(reinterpret_cast<void *>(page), end - page, PROT_READ,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    return zeros != MAP_FAILED;
  }
  return false;
}

void on_sigbus(int signal, siginfo_t *info, void *context) {
  const int saved_errno = errno;
  const bool synchronous = info != nullptr && info->si_code > 0; // raised by an access, not sent
  if (synchronous && replace_by_zeros(reinterpret_cast<std::uintptr_t>(info->si_addr))) {
    errno = saved_errno;
    return;
  }
  struct sigaction next = previous_action;
  if (depth.fetch_add(1) >= 8) { // handlers that lead back to each other: end as by default
    next = {};
    next.sa_handler = SIG_DFL;
    sigemptyset(&next.sa_mask);
  }
  if (next.sa_flags & SA_SIGINFO) {
    next.sa_sigaction(signal, info, context);
  } else if (next.sa_handler == SIG_DFL || (next.sa_handler == SIG_IGN && synchronous)) {
    // A repeated access, or the signal sent again, then ends the process with the right status.
    next.sa_handler = SIG_DFL;
    sigaction(signal, &next, nullptr);
    if (!synchronous) {
      raise(signal);
    }
  } else if (next.sa_handler != SIG_IGN) {
    next.sa_handler(signal);
  }
  depth.fetch_sub(1);
  errno = saved_errno;
}

// Somebody (Python's faulthandler, say) may have taken the signal since: then we go on top again.
void install_handler() {
  struct sigaction current = {};
  sigaction(SIGBUS, nullptr, &current);
  if ((current.sa_flags & SA_SIGINFO) && current.sa_sigaction == on_sigbus) {
    return;
  }
  previous_action = current;
  struct sigaction ours = {};
  ours.sa_sigaction = on_sigbus;
  ours.sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK;
  sigemptyset(&ours.sa_mask);
  sigaction(SIGBUS, &ours, nullptr);
}

MappingSlot *claim_slot(std::uintptr_t begin, std::uintptr_t end) {
  const std::lock_guard<std::mutex> lock(slots_mutex);
  page_size.store(static_cast<std::size_t>(sysconf(_SC_PAGESIZE)), std::memory_order_relaxed);
  install_handler();
  MappingSlot *slot = slots.load(std::memory_order_acquire);
  while (slot && slot->begin.load() != 0) {
    slot = slot->next;
  }
  const bool fresh = slot == nullptr;
  if (fresh) {
    slot = new MappingSlot;
    slot->next = slots.load(std::memory_order_acquire);
  }
  slot->poisoned.store(false);
  slot->end.store(end, std::memory_order_release);
  slot->begin.store(begin, std::memory_order_release);
  if (fresh) {
    slots.store(slot, std::memory_order_release);
  }
  return slot;
}

[[noreturn]] void fail(int code) { throw std::system_error(code, std::generic_category()); }

} // namespace

FileMapping::FileMapping(const std::filesystem::path &path) {
  // O_NONBLOCK: opening a pipe by mistake must fail, not wait for a writer.
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) {
    fail(errno);
  }
  const int code = map(fd);
  ::close(fd);
  if (code != 0) {
    fail(code);
  }
}

FileMapping::FileMapping(int file) {
  if (const int code = map(file); code != 0) {
    fail(code);
  }
}

int FileMapping::map(int file) {
  struct stat status = {};
  if (fstat(file, &status) != 0) {
    return errno;
  }
  if (!S_ISREG(status.st_mode)) {
    return S_ISDIR(status.st_mode) ? EISDIR : ENODEV;
  }
  if (status.st_size == 0) {
    return 0;
  }
  size_ = static_cast<std::size_t>(status.st_size);
  void *address = mmap(nullptr, size_, PROT_READ, MAP_SHARED, file, 0);
  if (address == MAP_FAILED) {
    return errno;
  }
  data_ = static_cast<std::uint8_t *>(address);
  const std::uintptr_t begin = reinterpret_cast<std::uintptr_t>(address);
  slot_ = claim_slot(begin, begin + size_);
  return 0;
}

FileMapping::~FileMapping() { close(); }

bool FileMapping::poisoned() const {
  return was_poisoned_ || (slot_ && slot_->poisoned.load(std::memory_order_acquire));
}

void FileMapping::drop(std::size_t offset, std::size_t length) const noexcept {
  const std::size_t page = page_size.load(std::memory_order_relaxed);
  if (offset >= size_) {
    return;
  }
  // Only whole pages inside the range: a neighbour's bytes stay where they are.
  const std::size_t end = length < size_ - offset ? offset + length : size_;
  const std::size_t first = (offset + page - 1) / page * page;
  const std::size_t last = end == size_ ? end : end / page * page;
  if (first < last) {
    madvise(data_ + first, last - first, MADV_DONTNEED);
  }
}

void FileMapping::close() noexcept {
  if (slot_) {
    was_poisoned_ = slot_->poisoned.load(std::memory_order_acquire);
    {
      // Before munmap: afterwards the same addresses may be somebody else's.
      const std::lock_guard<std::mutex> lock(slots_mutex);
      slot_->end.store(0, std::memory_order_release);
      slot_->begin.store(0, std::memory_order_release); // last: this frees the slot
      slot_ = nullptr;
    }
    munmap(data_, size_);
  }
  data_ = nullptr;
  size_ = 0;
}

} // namespace insula

#endif
