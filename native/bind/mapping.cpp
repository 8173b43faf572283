// Read-only file mappings as Python buffers, and the string arrays inside them.
#include "../runtime/mapping.h"
#include "../runtime/mapping_strings.h"

#include <atomic>
#include <cstring>
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/filesystem.h>
#include <system_error>

namespace nb = nanobind;
using namespace nb::literals;

namespace {

[[noreturn]] void raise_os_error(const std::system_error &error, nb::handle path) {
#if defined(_WIN32)
  PyErr_SetExcFromWindowsErrWithFilenameObject(PyExc_OSError, error.code().value(), path.ptr());
#else
  errno = error.code().value();
  PyErr_SetFromErrnoWithFilenameObject(PyExc_OSError, path.ptr());
#endif
  throw nb::python_error();
}

// A view holds a reference to the Mapping, and close() refuses while there is one: no array can
// outlive the bytes it shows.
class Mapping {
public:
  explicit Mapping(const std::filesystem::path &path) : file_(path) {}

  const insula::FileMapping &file() const { return file_; }
  bool closed() const { return closed_; }

  void close() {
    if (views_.load() > 0) {
      PyErr_SetString(PyExc_BufferError, "the mapping is still shown by an array");
      throw nb::python_error();
    }
    closed_ = true;
    file_.close();
  }

  int get_buffer(PyObject *self, Py_buffer *view, int flags) {
    if (closed_) {
      PyErr_SetString(PyExc_ValueError, "the mapping is closed");
      return -1;
    }
    static std::uint8_t nothing = 0; // an empty file has no address
    void *bytes = file_.data() ? const_cast<std::uint8_t *>(file_.data()) : &nothing;
    const auto size = static_cast<Py_ssize_t>(file_.size());
    if (PyBuffer_FillInfo(view, self, bytes, size, 1, flags) != 0) {
      return -1;
    }
    views_.fetch_add(1);
    return 0;
  }

  void release_buffer() { views_.fetch_sub(1); }

private:
  insula::FileMapping file_;
  std::atomic<int> views_{0};
  bool closed_ = false;
};

int mapping_get_buffer(PyObject *self, Py_buffer *view, int flags) {
  return nb::inst_ptr<Mapping>(self)->get_buffer(self, view, flags);
}

void mapping_release_buffer(PyObject *self, Py_buffer *) {
  nb::inst_ptr<Mapping>(self)->release_buffer();
}

PyType_Slot mapping_slots[] = {
    {Py_bf_getbuffer, reinterpret_cast<void *>(mapping_get_buffer)},
    {Py_bf_releasebuffer, reinterpret_cast<void *>(mapping_release_buffer)},
    {0, nullptr},
};

using Bytes = nb::ndarray<const std::uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

nb::tuple scan_strings(Bytes data, std::uint64_t start, std::uint64_t count, std::uint64_t budget) {
  insula::StringScan scan;
  {
    nb::gil_scoped_release released;
    scan = insula::scan_strings(data.data(), data.size(), start, count, budget);
  }
  if (scan.fault != insula::ScanFault::none) {
    const char *reason = scan.fault == insula::ScanFault::cut ? "cut" : "too_large";
    nb::tuple what = nb::make_tuple(reason, scan.fault_at);
    PyErr_SetObject(PyExc_ValueError, what.ptr());
    throw nb::python_error();
  }
  const std::size_t blob_size = scan.blob_size;
  std::uint8_t *blob = scan.blob.release();
  nb::capsule blob_owner(blob, [](void *p) noexcept { delete[] static_cast<std::uint8_t *>(p); });
  auto *offsets = new std::vector<std::int64_t>(std::move(scan.offsets));
  nb::capsule offsets_owner(
      offsets, [](void *p) noexcept { delete static_cast<std::vector<std::int64_t> *>(p); });
  return nb::make_tuple(
      nb::ndarray<nb::numpy, std::uint8_t, nb::ndim<1>>(blob, {blob_size}, blob_owner),
      nb::ndarray<nb::numpy, std::int64_t, nb::ndim<1>>(offsets->data(), {offsets->size()},
                                                        offsets_owner),
      scan.end);
}

} // namespace

void bind_mapping(nb::module_ &m) {
  nb::class_<Mapping>(m, "Mapping", nb::type_slots(mapping_slots),
                      "A file's bytes, read-only, through the buffer protocol.\n\n"
                      "If the file is cut short while mapped, the lost bytes read as zeros and\n"
                      "`poisoned` becomes True; check it after reading.")
      .def(
          "__init__",
          [](Mapping *self, const std::filesystem::path &path) {
            try {
              new (self) Mapping(path);
            } catch (const std::system_error &error) {
              raise_os_error(error, nb::cast(path));
            }
          },
          "path"_a, "Raises OSError; regular files only.")
      .def_prop_ro("poisoned", [](const Mapping &self) { return self.file().poisoned(); })
      .def_prop_ro("closed", [](const Mapping &self) { return self.closed(); })
      .def("__len__", [](const Mapping &self) { return self.file().size(); })
      .def(
          "view", [](nb::handle self) { return nb::steal(PyMemoryView_FromObject(self.ptr())); },
          nb::sig("def view(self) -> memoryview"), "memoryview(self), for type checkers.")
      .def(
          "drop",
          [](const Mapping &self, std::size_t offset, std::size_t length) {
            self.file().drop(offset, length);
          },
          "offset"_a, "length"_a,
          "Give the pages of a range back to the system; reading them again reads the file.")
      .def("close", &Mapping::close, "Raises BufferError while an array still shows the bytes.");
  m.def("scan_strings", &scan_strings, "data"_a, "start"_a, "count"_a, "budget"_a,
        "Copy a GGUF array of strings: (blob uint8[n], offsets int64[count + 1], end).\n\n"
        "ValueError(reason, at): 'cut' past the end of data, 'too_large' beyond budget bytes.");
}
