// Detect -> table -> override. The only place that asks the processor what it can do.
#include <cstdint>
#include <cstring>

#include "insula_isa.h"
#include "kernels/table.h"

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#elif defined(__aarch64__) || defined(_M_ARM64)
#if defined(__linux__)
#include <sys/auxv.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#elif defined(_WIN32)
#include <windows.h>
#endif
#endif

namespace insula {
namespace {

#if defined(__x86_64__)
struct Cpu {
  bool avx2 = false, avxvnni = false, vnni256 = false, avx512 = false, amx = false;
};

uint64_t xcr0() {
  uint32_t lo, hi;
  __asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
  return static_cast<uint64_t>(hi) << 32 | lo;
}

// Tiles are a process's by permission; a sandbox may refuse it.
bool may_use_tiles() {
#if defined(__linux__)
  constexpr long kRequest = 0x1023, kTileData = 18; // ARCH_REQ_XCOMP_PERM
  return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
#else
  return false;
#endif
}

Cpu detect() {
  Cpu c;
  uint32_t a, b, cx, d;
  if (!__get_cpuid(1, &a, &b, &cx, &d))
    return c;
  const bool osxsave = cx >> 27 & 1, fma = cx >> 12 & 1, f16c = cx >> 29 & 1;
  if (!osxsave)
    return c;
  const uint64_t x = xcr0(); // what the operating system saves, not only what the CPU has
  if (!__get_cpuid_count(7, 0, &a, &b, &cx, &d))
    return c;
  const uint32_t b0 = b, c0 = cx, d0 = d;
  c.avx2 = (x & 6) == 6 && fma && f16c && (b0 >> 5 & 1);
  const bool f512 = c.avx2 && (x & 0xe6) == 0xe6 && (b0 >> 16 & 1) && (b0 >> 17 & 1) &&
                    (b0 >> 30 & 1) && (b0 >> 31 & 1);
  c.avx512 = f512 && (c0 >> 11 & 1);
  c.vnni256 = c.avx512;
  c.amx = c.avx512 && (x >> 17 & 3) == 3 && (d0 >> 24 & 3) == 3 && may_use_tiles();
  if (__get_cpuid_count(7, 1, &a, &b, &cx, &d))
    c.avxvnni = c.avx2 && (a >> 4 & 1);
  return c;
}

// A level is listed where the compiler knew its flags (INSULA_HAVE_*, see cmake/isa.cmake).
std::vector<Level> find() {
  [[maybe_unused]] const Cpu c = detect();
  std::vector<Level> all;
#ifdef INSULA_HAVE_AMX
  all.push_back({"amx", c.amx, table_amx(), "AMX-TILE and AMX-INT8, allowed by the system"});
#endif
#ifdef INSULA_HAVE_AVX512
  all.push_back({"avx512", c.avx512, table_avx512(), "AVX-512 F/BW/DQ/VL/VNNI"});
#endif
  // One level, two encodings: VEX for processors without AVX-512, EVEX for those without AVX-VNNI.
  [[maybe_unused]] const char *vnni = "AVX-VNNI (or AVX-512 VL with VNNI)";
#if defined(INSULA_HAVE_AVXVNNI) && defined(INSULA_HAVE_AVXVNNI_EVEX)
  all.push_back({"avxvnni", c.avxvnni || c.vnni256,
                 c.avxvnni ? table_avxvnni() : table_avxvnni_evex(), vnni});
#elif defined(INSULA_HAVE_AVXVNNI)
  all.push_back({"avxvnni", c.avxvnni, table_avxvnni(), vnni});
#elif defined(INSULA_HAVE_AVXVNNI_EVEX)
  all.push_back({"avxvnni", c.vnni256, table_avxvnni_evex(), vnni});
#endif
#ifdef INSULA_HAVE_AVX2
  all.push_back({"avx2", c.avx2, table_avx2(), "AVX2 with FMA and F16C"});
#endif
  all.push_back({"scalar", true, table_scalar(), ""});
  return all;
}
#elif defined(__aarch64__) || defined(_M_ARM64)
struct Cpu {
  bool dotprod = false, i8mm = false;
};

// The levels above plain NEON are compiled for ARMv8.2, so they need 8.1's atomics too. Features
// go by number where older headers have no name for them.
#if defined(__linux__)
Cpu detect() {
  const unsigned long one = getauxval(AT_HWCAP), two = getauxval(AT_HWCAP2); // asm/hwcap.h
  Cpu c;
  c.dotprod = (one >> 8 & 1) && (one >> 20 & 1);
  c.i8mm = c.dotprod && (two >> 13 & 1);
  return c;
}
#elif defined(__APPLE__)
Cpu detect() {
  auto has = [](const char *name) {
    int value = 0;
    size_t size = sizeof value;
    return sysctlbyname(name, &value, &size, nullptr, 0) == 0 && value != 0;
  };
  Cpu c;
  c.dotprod = has("hw.optional.arm.FEAT_LSE") && has("hw.optional.arm.FEAT_DotProd");
  c.i8mm = c.dotprod && has("hw.optional.arm.FEAT_I8MM");
  return c;
}
#elif defined(_WIN32)
Cpu detect() {
  constexpr DWORD kAtomics = 34, kDotProd = 43, kI8mm = 66; // PF_ARM_V8…_INSTRUCTIONS_AVAILABLE
  Cpu c;
  c.dotprod = IsProcessorFeaturePresent(kAtomics) && IsProcessorFeaturePresent(kDotProd);
  c.i8mm = c.dotprod && IsProcessorFeaturePresent(kI8mm);
  return c;
}
#else
Cpu detect() { return {}; }
#endif

std::vector<Level> find() {
  [[maybe_unused]] const Cpu c = detect();
  std::vector<Level> all;
#ifdef INSULA_HAVE_NEON_I8MM
  all.push_back({"neon-i8mm", c.i8mm, table_neon_i8mm(), "the extensions dotprod and i8mm"});
#endif
#ifdef INSULA_HAVE_NEON_DOTPROD
  all.push_back({"neon-dotprod", c.dotprod, table_neon_dotprod(), "the extension dotprod"});
#endif
  all.push_back({"neon", true, table_neon(), ""});
  all.push_back({"scalar", true, table_scalar(), ""});
  return all;
}
#else
std::vector<Level> find() { return {{"scalar", true, table_scalar(), ""}}; }
#endif

} // namespace

static std::vector<Level> &registry() {
  static std::vector<Level> all = find();
  return all;
}

const std::vector<Level> &levels() { return registry(); }
void add_level(const Level &level) { registry().insert(registry().begin(), level); }

const KernelTable *select_level(const char *name, std::string *error) {
  const bool any = !name || !*name;
  std::string have;
  for (const Level &l : levels()) {
    if (l.available && (any || !std::strcmp(l.name, name)))
      return l.table;
    if (!any && !std::strcmp(l.name, name)) {
      *error = std::string("instruction set '") + name + "' needs " + l.missing +
               ", which this processor lacks";
    }
    if (l.available)
      have += (have.empty() ? "" : ", ") + std::string(l.name);
  }
  if (error->empty())
    *error = std::string("unknown instruction set '") + name + "'";
  *error += "; available here: " + have;
  return nullptr;
}

} // namespace insula
