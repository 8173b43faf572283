// The tile registers of AMX: 8 of 16 rows of 64 bytes. C in 0 to 3, A in 4 and 5, B in 6 and 7.
// Plain instructions: the compilers' own macros take no template parameters for register numbers.
#pragma once
#include <cstddef>
#include <cstdint>

namespace {

struct T {
  // Tiles of A with `rows` rows of `words` words of k, of B with `words` rows.
  static void configure(int rows, int words) {
    alignas(64) uint8_t c[64] = {1}; // palette 1; bytes a row from 16 on, rows from 48 on
    for (int t = 0; t < 8; ++t) {
      const bool a = t == 4 || t == 5, b = t >= 6;
      c[16 + 2 * t] = static_cast<uint8_t>(a ? words * 4 : 64);
      c[48 + t] = static_cast<uint8_t>(b ? words : rows);
    }
    __asm__ volatile("ldtilecfg %0" ::"m"(c) : "memory");
  }
  static void release() { __asm__ volatile("tilerelease" ::: "memory"); }
  template <int t> static void zero() { __asm__ volatile("tilezero %%tmm%c0" ::"i"(t)); }
  template <int t> static void load(const void *p, size_t stride) {
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(p), "r"(stride), "i"(t) : "memory");
  }
  template <int c, int a, int b> static void dot() { // c += a b, signed bytes
    __asm__ volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(c), "i"(a), "i"(b));
  }
  template <int t> static void store(void *p) {
    __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(p), "r"(size_t{64}), "i"(t) : "memory");
  }
};

} // namespace
