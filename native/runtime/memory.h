// Large aligned buffers: zero-filled, in huge pages where the system offers them.
#pragma once
#include <cstddef>
#include <cstdint>

namespace insula {

class Buffer {
public:
  Buffer() = default;
  // At least one page beyond `bytes` is readable, for prefetching loops. Throws std::bad_alloc.
  explicit Buffer(size_t bytes);
  ~Buffer();
  Buffer(Buffer &&o) noexcept : data_(o.data_), size_(o.size_) { o.data_ = nullptr, o.size_ = 0; }
  Buffer &operator=(Buffer &&o) noexcept;
  uint8_t *data() const { return data_; }
  template <class T> T *as() const { return reinterpret_cast<T *>(data_); }
  size_t size() const { return size_; }

private:
  uint8_t *data_ = nullptr;
  size_t size_ = 0;
};

// Gives the pages inside [data, data+bytes) of a read-only file mapping back to the system.
void drop_pages(const uint8_t *data, size_t bytes);

// Gives [data, data+bytes) its memory now and not at its first use, whatever stands there; where
// the system cannot, nothing happens.
void populate(uint8_t *data, size_t bytes);

} // namespace insula
