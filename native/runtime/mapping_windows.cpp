#if defined(_WIN32)

#include "mapping.h"

#if !defined(WIN32_LEAN_AND_MEAN)
#define WIN32_LEAN_AND_MEAN
#endif
#if !defined(NOMINMAX)
#define NOMINMAX
#endif
#include <system_error>
#include <windows.h>

namespace insula {

struct MappingSlot {};

namespace {
[[noreturn]] void fail(DWORD code) {
  throw std::system_error(static_cast<int>(code), std::system_category());
}
} // namespace

FileMapping::FileMapping(const std::filesystem::path &path) {
  const HANDLE file = CreateFileW(path.c_str(), GENERIC_READ, FILE_SHARE_READ | FILE_SHARE_DELETE,
                                  nullptr, OPEN_EXISTING, FILE_ATTRIBUTE_NORMAL, nullptr);
  if (file == INVALID_HANDLE_VALUE) {
    fail(GetLastError());
  }
  LARGE_INTEGER length = {};
  DWORD code = 0;
  if (GetFileType(file) != FILE_TYPE_DISK) {
    code = ERROR_BAD_FILE_TYPE;
  } else if (!GetFileSizeEx(file, &length)) {
    code = GetLastError();
  } else if (length.QuadPart > 0) {
    const HANDLE section = CreateFileMappingW(file, nullptr, PAGE_READONLY, 0, 0, nullptr);
    if (section == nullptr) {
      code = GetLastError();
    } else {
      data_ = static_cast<std::uint8_t *>(MapViewOfFile(section, FILE_MAP_READ, 0, 0, 0));
      code = data_ == nullptr ? GetLastError() : 0;
      CloseHandle(section); // the view keeps the section alive
    }
  }
  CloseHandle(file);
  if (code != 0) {
    fail(code);
  }
  size_ = data_ == nullptr ? 0 : static_cast<std::size_t>(length.QuadPart);
}

FileMapping::~FileMapping() { close(); }

bool FileMapping::poisoned() const { return false; }

void FileMapping::drop(std::size_t, std::size_t) const noexcept {} // the working set trims itself

void FileMapping::close() noexcept {
  if (data_ != nullptr) {
    UnmapViewOfFile(data_);
  }
  data_ = nullptr;
  size_ = 0;
}

} // namespace insula

#endif
