// Read-only file mappings that survive the file being cut short under them.
//
// Owns: the mapping, and on POSIX one process-wide SIGBUS handler with the list of ranges it
// guards. A fault inside a guarded range (the file was truncated, or its disk failed, while it
// was mapped) replaces the rest of that range by zero pages and marks the mapping poisoned; the
// caller asks `poisoned()` after reading and refuses the file. Any other SIGBUS goes to whoever
// handled the signal before. On Windows a mapped file cannot be truncated: a plain view.
// Refuses: what is not a regular file.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>

namespace insula {

struct MappingSlot; // one guarded range; lives for ever, reused after close

class FileMapping {
public:
  // Throws std::system_error with the operating system's code.
  explicit FileMapping(const std::filesystem::path &path);
#if !defined(_WIN32)
  explicit FileMapping(int file); // an open file, which stays the caller's
#endif
  ~FileMapping();
  FileMapping(const FileMapping &) = delete;
  FileMapping &operator=(const FileMapping &) = delete;

  const std::uint8_t *data() const { return data_; }
  std::size_t size() const { return size_; }
  bool poisoned() const;
  // The pages of this range are not needed soon; they are read from the file again when they are.
  void drop(std::size_t offset, std::size_t length) const noexcept;
  // The caller guarantees that nobody reads the range any more. May be called twice.
  void close() noexcept;

private:
#if !defined(_WIN32)
  int map(int file); // the system's code, 0 if all is well
#endif
  std::uint8_t *data_ = nullptr;
  std::size_t size_ = 0;
  [[maybe_unused]] bool was_poisoned_ = false;
  [[maybe_unused]] MappingSlot *slot_ = nullptr;
};

} // namespace insula
